"""``python -m xalign dashboard``: the W&B workspace over a project's runs: scores, curves, cost, tables. No torch."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from xalign.config import XalignError
from xalign.terminal import LineParser, reading
from xalign.tracking.accounts import wandb_key

SCORE = "choice/accuracy_pmi"


def workspace(entity: str, project: str, score: str = SCORE, name: str = "xalign") -> Any:
    """The dashboard (`wandb_workspaces.workspaces.Workspace`), not saved.

    Args:
        score: TASK/METRIC of the score that it is about.
    Raises:
        XalignError: the package is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as spaces
    except ImportError:
        raise XalignError("the dashboard needs wandb-workspaces; pip install 'xalign[dashboard]'") from None

    target, source, hours = f"target/{score}", f"source/{score}", "cost/device_hours"
    at = {"method": panels.Config("method"), "lang": panels.Config("lang")}

    def bars(title: str, metric: str) -> Any:
        return panels.BarPlot(title=title, metrics=[metric], groupby=at["method"], groupby_aggfunc="mean", groupby_rangefunc="stderr",
                              orientation="h", max_bars_to_show=30)

    def curve(title: str, metric: str = "", regex: str = "") -> Any:
        return panels.LinePlot(title=title, x="step", y=[metric] if metric else [], metric_regex=regex or None, title_x="training step",
                               max_runs_to_show=50)

    def against(x: str, y: str, title: str, log_x: bool = False) -> Any:
        return panels.ScatterPlot(title=title, x=panels.SummaryMetric(x), y=panels.SummaryMetric(y), log_x=log_x)

    def column(metric: Any, text: str) -> Any:
        return panels.ParallelCoordinatesPlotColumn(metric=metric, display_name=text)

    axes = [column(at["method"], "method"), column(at["lang"], "language"), column(panels.SummaryMetric(hours), "device-hours"),
            column(panels.SummaryMetric(source), "source"), column(panels.SummaryMetric(target), "target")]
    sections = [
        spaces.Section(name="Scores", is_open=True, panels=[
            bars(f"target languages after training: {score}", target), bars(f"source language after training: {score}", source),
            bars(f"gain on the target languages: {score}", f"gain/{target}"), against(source, target, "target against source"),
            against(hours, target, "target score against device-hours", log_x=True),
            panels.ParallelCoordinatesPlot(title="method, language, cost, scores", columns=axes)]),
        spaces.Section(name="Training", is_open=True, panels=[
            curve("loss", "loss"), curve("loss on held-out rows", "valid_loss"),
            curve("off-target rate of sampled answers", regex="off_target_[a-z]{3}"), curve("tokens a second", "tokens_per_second"),
            curve("norm of the gradient", "grad_norm"), curve("learning rate", "lr")]),
        spaces.Section(name="Cost", is_open=False, panels=[
            bars("device-hours, all stages", hours), bars("seconds of training", "cost/train_seconds"),
            bars("FLOPs of the models", "cost/flops"), bars("peak memory, GiB", "cost/peak_gib")]),
        spaces.Section(name="Tables and pictures", is_open=False, panels=[
            *(panels.WeavePanelSummaryTable(table_name=name) for name in ("scores", "examples", "cost")),
            panels.MediaBrowser(title="learning curves", media_keys=["learning_curves"])]),
    ]
    columns = ["config:method", "config:lang", "config:seed", f"summary:{target}", f"summary:{source}", f"summary:{hours}"]
    best = spaces.Ordering(spaces.Summary(target), ascending=False)
    table = spaces.RunsetSettings(pinned_columns=["run:displayName", *columns], order=[best])
    return spaces.Workspace(entity=entity, project=project, name=name, sections=sections, runset_settings=table,
                            settings=spaces.WorkspaceSettings(x_axis="step"))


def spec(made: Any) -> dict[str, Any]:
    """What saving would send to the server."""
    return json.loads(json.dumps(made._to_model().model_dump(by_alias=True, exclude_none=True), default=str))


def dashboard(argv: list[str]) -> None:
    """Make the dashboard, or write down what would be made.

    Raises:
        XalignError: no package, no key, or what the server answers.
    """
    parser = LineParser(prog="python -m xalign dashboard", description="Make the W&B dashboard of a project's runs.")
    parser.add_argument("--entity", required=True, help="team or user")
    parser.add_argument("--project", default="xalign", help="default: xalign")
    parser.add_argument("--score", default=SCORE, help=f"TASK/METRIC that it is about (default: {SCORE})")
    parser.add_argument("--name", default="xalign", help="the dashboard's name")
    parser.add_argument("--dry-run", type=Path, metavar="FILE", nargs="?", const=Path("dashboard.json"),
                        help="write what would be made to FILE (dashboard.json) instead; needs no key")
    asked = parser.parse_args(argv)
    if asked.score.count("/") != 1:
        raise XalignError(f"--score={asked.score}: write TASK/METRIC, e.g. {SCORE}, as the runs' summaries do behind target/")
    made = workspace(asked.entity, asked.project, asked.score, asked.name)
    if asked.dry_run:
        asked.dry_run.write_text(json.dumps(spec(made), indent=1) + "\n", encoding="utf-8")
        print(f"dry run: {sum(len(s.panels) for s in made.sections)} panels in {len(made.sections)} sections written to {asked.dry_run}")
        return
    if not wandb_key():
        raise XalignError("no W&B key found; run `wandb login` or set WANDB_API_KEY (--dry-run needs none)")
    try:
        made.save()
    except Exception as e:  # no network, no such project, the server's own refusals
        raise XalignError(f"{asked.entity}/{asked.project}: not saved: {type(e).__name__}: {' '.join(str(e).split())[:300]}") from None
    print(f"saved {made.url}")


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m xalign dashboard``; returns the exit code."""
    return reading(lambda: dashboard(list(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    sys.exit(main())
