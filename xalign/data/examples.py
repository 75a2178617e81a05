"""The one record that data, methods and the trainer exchange, and its JSON-lines form."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xalign.data.reading import numbered


@dataclass(frozen=True)
class Example:
    """One prompt and its response.

    Attributes:
        id: stable over languages: the same fact or row has the same id in every language.
        lang: ISO 639-3 language of the prompt.
        prompt, response: plain text, before any chat template.
        source: where it comes from, e.g. ``lab:capital`` or ``alpaca``.
        subset: the method's name for the row's kind (``LL``, ``TL``, ``mt`` ...).
        split: ``train`` or ``test``.
        group: rows that must stay on one side of a train/validation cut (the entity or source row).
        weight: weight of each supervised token of the row in the loss; 1 for a plain mean over tokens.
        options: what an encoder chooses from, the response among them; empty for free text.
        pivot: the same prompt in the source language, for a loss that compares the two; empty: none.
        pivot_options: `options` in the same order, as they stand beside the pivot.
    """

    id: str
    lang: str
    prompt: str
    response: str
    source: str = ""
    subset: str = ""
    split: str = "train"
    group: str = ""
    weight: float = 1.0
    options: tuple[str, ...] = ()
    pivot: str = ""
    pivot_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("options", "pivot_options"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def with_(self, **changes: Any) -> Example:
        """A copy with `changes`."""
        return dataclasses.replace(self, **changes)


def write_jsonl(path: Path, records: Iterable[Any]) -> int:
    """Write dataclasses or dicts as UTF-8 JSON lines; returns how many."""
    n = 0
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        for record in records:
            data = dataclasses.asdict(record) if dataclasses.is_dataclass(record) else record
            f.write(json.dumps(data, ensure_ascii=False) + "\n")
            n += 1
    return n


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield one dict a line.

    Raises:
        XalignError: for a line that is not a JSON object, naming file and line number.
    """
    for _, record in numbered(path, own=True):
        yield record


def read_examples(path: Path) -> list[Example]:
    """Read a file that `write_jsonl` made of Examples."""
    return [Example(**record) for record in read_jsonl(path)]
