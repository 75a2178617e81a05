"""What every translator gives: one record a row, a side either translated or marked as failed."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xalign.cache import Stage
from xalign.config import Node

if TYPE_CHECKING:
    from xalign.config import Run

SIDES = ("prompt", "response")


@dataclass(frozen=True)
class Translator(Node):
    """Base of the translator nodes."""

    def stage(self, run: Run, examples: Stage, lang: str, sides: Sequence[str] = SIDES) -> Stage:
        """Translate ``examples.jsonl`` of `examples` from ``run.source`` into `lang`.

        The artifact's ``examples.jsonl`` has one record a row, in the same order: ``{"id", "prompt",
        "response", "failed"}``; a side that was not asked for or could not be translated is null, and
        ``failed`` names the reason of the latter. Nothing is ever passed through untranslated.
        """
        raise NotImplementedError(type(self).__name__)

    def check_source(self, run: Run) -> None:
        """Raise ConfigError if this translator cannot read the run's data; called by methods that translate."""


def record(row_id: str, texts: Mapping[str, str | None], failed: Mapping[str, str]) -> dict[str, Any]:
    """One line of a translation artifact."""
    return {"id": row_id, "prompt": texts.get("prompt"), "response": texts.get("response"), "failed": dict(failed)}


def count_sides(records: Iterable[Mapping[str, Any]], sides: Sequence[str]) -> dict[str, Any]:
    """Per side how many records were translated, and how many failed for each reason."""
    records = list(records)
    return {side: {"translated": sum(r[side] is not None for r in records),
                   "failed": dict(Counter(r["failed"][side] for r in records if side in r["failed"]))} for side in sides}
