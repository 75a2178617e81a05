"""Text that a model writes for training, item by item: dealt to all processes, written down as it comes."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from xalign.journal import Journal, rewrite, sums_of
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
        part = Journal(_part(self.log, rank))
        self.writer.write({i: self.items[i] for i in mine}, lambda record: part.add([record]))


def spread(writer: Writer, items: Mapping[str, str], log: Path) -> list[dict[str, Any]]:
    """The writer's record of each item, in the items' order; also written to `log`.

    Until all are there, each process' records stand in ``<log>.<rank>``. A killed run, whatever the number of its
    processes, continues behind them; the stage's end checks and removes the digests beside them (`xalign.journal`).

    Args:
        items: id → text.
    """
    known = _read(log)
    todo = {i: text for i, text in items.items() if i not in known}
    if todo:
        perform(Share(writer, todo, log.resolve()))
        known = _read(log)
    records = [known[i] for i in items]
    if parts := [p for p in _files(log) if p != log]:
        rewrite(log, records)
        for path in parts:
            sums_of(path).unlink(missing_ok=True)  # first: digests without their lines would be damage
            path.unlink()
    return records


def _read(log: Path) -> dict[str, dict[str, Any]]:
    """The records that are there and as they were written, by id."""
    known = {}
    for path in _files(log):
        known.update(Journal(path).done)
    return known


def _files(log: Path) -> list[Path]:
    parts = [p for p in log.parent.glob(f"{log.name}.*") if p.suffix[1:].isdecimal()]
    return [*([log] if log.is_file() else []), *sorted(parts)]


def _part(log: Path, rank: int) -> Path:
    return log.with_name(f"{log.name}.{rank}")
