"""A budget of translation rows shared in several ways among the languages of one model (x-LLM section 3.3 and Table 4). No torch."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xalign.config import ConfigError, XalignError
from xalign.studies.base import Findings, Study

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.report.runs import FinishedRun

SWEEP = "make them by -m method=muit 'lang=[...]' method.budget=N method.allocation=uniform,optimised method.law=FILE"


@dataclass(frozen=True)
class Allocation(Study):
    """What each language was trained on, its scores, and the paired difference to the even split beside what the laws predicted.

    Attributes:
        score: as of study=scaling.
    """

    name: ClassVar[str] = "allocation"
    sweeps: ClassVar[bool] = True

    score: str = "auto"

    def check_run(self, run: Run) -> None:
        """Refuse what shares no budget."""
        method = run.choices.get("method")
        if run.mode != "train" or not hasattr(run.method, "allocation"):
            what = f"method={method}" if run.mode == "train" else f"mode={run.mode}"
            raise ConfigError(f"study=allocation: compares how method=muit shares a budget of translation rows, and {what} shares none; "
                              "take method=muit, or leave the study out")

    def findings(self, runs: Sequence[FinishedRun]) -> Findings:
        """Tables of rows and scores, their picture, ``allocation.csv``."""
        from xalign.studies.allocation_plot import draw
        from xalign.studies.allocation_report import allocation_csv, rows_grid, scores_grid
        from xalign.studies.allocation_runs import compare_all, gather
        from xalign.studies.scaling import Scaling

        own = [run for run in runs if run.method == "muit" and run.trained]
        if not own:
            there = ", ".join(sorted({r.method for r in runs}))
            raise XalignError(f"compares trained runs of method=muit, and here are runs of {there}; {SWEEP}")
        task, metric = Scaling(score=self.score).scored(own)
        splits, notes = gather(own, task, metric)
        if not any(len(split.ways) > 1 for split in splits):
            there = "; ".join(f"{split.budget:,} rows {', '.join(w.name for w in split.ways)}" for split in splits)
            raise XalignError(f"no budget was shared in two ways ({there}); {SWEEP}")
        compare_all(splits, metric)
        return Findings([rows_grid(splits, own), scores_grid(splits, task, metric, notes)], [draw(splits, task, metric)],
                        {"allocation.csv": allocation_csv(splits, task, metric)})
