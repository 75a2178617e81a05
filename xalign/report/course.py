"""How numbers went while a run trained: its log.jsonl as series. No torch."""
from __future__ import annotations

from typing import TYPE_CHECKING

from xalign.tables import is_number

if TYPE_CHECKING:
    from xalign.report.runs import FinishedRun

Stage = tuple[str, list[tuple[int, float]]]


def series(run: FinishedRun, name: str) -> list[Stage]:
    """One number of a run's log: for each training stage its title and the (step, value) pairs that have the number.

    Every stage is there, so that the series of two names go together; its list is empty where it never recorded the number.
    A stage begins where the title changes or the step goes back; logs of older runs have no titles ("").
    """
    found: list[Stage] = []
    last = 0
    for record in run.log:
        title, step = record.get("stage", ""), record["step"]
        if not found or found[-1][0] != title or step < last:
            found.append((title, []))
        last = step
        if is_number(record.get(name)):
            found[-1][1].append((step, record[name]))
    return found
