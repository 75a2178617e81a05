"""Text that a model writes for training, item by item: dealt to all processes, written down as it comes."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from xalign.data.examples import read_jsonl, write_jsonl
from xalign.training.ranks import perform, place


class Writer(Protocol):
    """Writes one record an item; it is sent to every process, so it must pickle."""

    def write(self, items: Mapping[str, str], note: Callable[[dict[str, Any]], None]) -> None:
        """Call `note` with a record for each item (id → text), as soon as it is known; ``record["id"]`` names the item."""


@dataclass(frozen=True)
class Share:
    """A job (`xalign.training.ranks`): every process writes its share of `items` into a file of its own."""

    writer: Writer
    items: dict[str, str]
    log: Path

    def run(self) -> None:
        rank, world = place()
        mine = sorted(self.items, key=lambda i: len(self.items[i]))[rank::world]  # long and short ones to each
        if not mine:
            return
        with open(_part(self.log, rank), "a", encoding="utf-8", newline="\n") as f:
            def note(record: dict[str, Any]) -> None:
                f.write(json.dumps(record, ensure_ascii=False) + "\n")
                f.flush()

            self.writer.write({i: self.items[i] for i in mine}, note)


def spread(writer: Writer, items: Mapping[str, str], log: Path) -> list[dict[str, Any]]:
    """The writer's record of each item, in the items' order; also written to `log`.

    Until all are there, each process' records stand in ``<log>.<rank>``. A killed run, whatever the number of its
    processes, continues behind them.

    Args:
        items: id → text.
    """
    known = _read(log)
    todo = {i: text for i, text in items.items() if i not in known}
    if todo:
        perform(Share(writer, todo, log.resolve()))
        known = _read(log)
    records = [known[i] for i in items]
    if parts := list(log.parent.glob(f"{log.name}.*")):
        write_jsonl(log, records)
        for part in parts:
            part.unlink()
    return records


def _read(log: Path) -> dict[str, dict[str, Any]]:
    """The records that are there, by id; a last line that a killed process left unfinished is cut off."""
    known = {}
    for path in sorted(log.parent.glob(f"{log.name}*")):
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            path.write_bytes(data[:data.rfind(b"\n") + 1])
        known.update((r["id"], r) for r in read_jsonl(path))
    return known


def _part(log: Path, rank: int) -> Path:
    return log.with_name(f"{log.name}.{rank}")
