"""The papers' analyses: what each computes beside the scores, and the table and picture that it makes of finished runs. No torch here."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import Node, XalignError
from xalign.tables import Grid, markdown, show

if TYPE_CHECKING:
    from xalign.cache import Artifact, Stage
    from xalign.config import Run
    from xalign.report.drawing import Plot
    from xalign.report.runs import FinishedRun

FOLDER = "study"  # of a run's folder: what the stages of its studies wrote


@dataclass(frozen=True)
class Findings:
    """What an analysis found: tables, the pictures beside them, and other files (name → text), e.g. laws for ``method.law``."""

    grids: Sequence[Grid]
    plots: Sequence[Plot] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study(Node):
    """One analysis; this one is none.

    A subclass names itself, declares its settings as fields, and makes `Findings` of finished runs. What needs the models is a
    stage of the study's own name: cached, planned and paid for like any other, its files exported to ``study/NAME/before|after``
    of the run's folder.
    """

    name: ClassVar[str] = ""
    alone: ClassVar[bool] = False  # can be asked of a backbone as it is (mode=study)
    sweeps: ClassVar[bool] = False  # compares the runs of a sweep: one run by itself shows nothing

    def stages(self, run: Run, weights: Stage, model: Stage | None) -> dict[str, Stage]:
        """``before`` and, with a trained `model`, ``after`` → the stage that computes what is needed; none by default."""
        return {}

    def rows(self, run: Run, found: Mapping[str, Artifact]) -> list[dict[str, Any]]:
        """A few numbers as rows of rows.jsonl: task, lang, metric, value, se, n, signature, when."""
        return []

    def findings(self, runs: Sequence[FinishedRun]) -> Findings:
        """Tables and pictures of `runs`.

        Raises:
            XalignError: they cannot show it; the text says what is missing and the remedy.
        """
        raise NotImplementedError(type(self).__name__)


def place(folder: Path, study: str, when: str) -> Path:
    """Where a run's folder keeps what the stage of a study wrote about the model ``before`` or ``after`` training."""
    return folder / FOLDER / study / when


def exported(run: FinishedRun, study: str) -> dict[str, Path]:
    """``before`` and ``after`` → the folder with what a study's stage wrote; only those that are there."""
    places = {when: place(run.folder, study, when) for when in ("before", "after")}
    return {when: path for when, path in places.items() if path.is_dir()}


def found(study: Study, runs: Sequence[FinishedRun]) -> Findings:
    """What a study finds in `runs`.

    Raises:
        XalignError: see `Study.findings`; the text names the study.
    """
    try:
        return study.findings(runs)
    except XalignError as e:
        raise XalignError(str(e) if str(e).startswith("study") else f"study={study.name}: {e}") from None


def show_study(study: Study, folders: Sequence[Path], out: Path) -> None:
    """Print and write a study of the runs in `folders`.

    Raises:
        XalignError: see `found`.
    """
    from xalign.report.runs import load_runs

    present(found(study, load_runs(list(dict.fromkeys(folders)))), out)


def present(findings: Findings, folder: Path) -> None:
    """Print the tables, and write them with the pictures and the other files into `folder`."""
    from xalign.report.drawing import save

    show(findings.grids)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.md").write_text(markdown(findings.grids), encoding="utf-8")
    for name, text in findings.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for plot in findings.plots:
        for kind in ("png", "pdf"):
            save(plot, folder / f"{plot.name}.{kind}")
    for name in ("tables.md", *findings.files, *(f"{plot.name}.{{png,pdf}}" for plot in findings.plots)):
        print(f"study    {folder / name}")
