"""``python -m xalign.report experiment=NAME``: a paper's published numbers beside ours. No torch.

The numbers are facts in papers.yaml; NAME is an experiment of ``experiments/``, or its laboratory variant NAME_lab, where another test
stands for the paper's and only orders, gains and their signs can be compared.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xalign.compose import package_folder
from xalign.config import XalignError
from xalign.report.beside import beside, cells_csv
from xalign.report.cost import stage_rows
from xalign.report.facts import commands, facts
from xalign.report.latex import latex
from xalign.report.method_cost import method_grid, papers_grid
from xalign.report.papertables import grids
from xalign.report.runs import FinishedRun, load_runs
from xalign.studies.base import found, present
from xalign.tables import markdown, show
from xalign.terminal import LineParser, reading

if TYPE_CHECKING:
    from xalign.studies.base import Study


def finished(paths: Sequence[str]) -> list[FinishedRun]:
    """The finished runs under `paths`; none where a folder has none or ``runs`` is not there yet.

    Raises:
        XalignError: for a named folder that does not exist.
    """
    there = [p for p in paths or ("runs",) if not Path(p).is_dir() or any(Path(p).rglob("rows.jsonl"))]
    return load_runs(there) if there and (paths or Path("runs").is_dir()) else []


def of_experiment(name: str, runs: Sequence[FinishedRun], paths: Sequence[str]) -> list[FinishedRun]:
    """Those of `runs` that a sweep of the experiment made or found finished; all of them where none is known to be."""
    folders = set()
    for path in (p for base in paths or ("runs",) for p in Path(base).rglob("sweeps/*/sweep.json")):
        jobs = json.loads(path.read_text(encoding="utf-8"))["jobs"]
        folders |= {Path(job["folder"]).name for job in jobs if f"experiments={name}" in job["overrides"]}
    own = [r for r in runs if r.folder.name in folders or r.config.get("choices.experiments") == name]
    return own or list(runs)


def chosen_study(name: str) -> Study | None:
    """The study that an experiment's YAML chooses, with its settings; None if it chooses none, or there is no such YAML."""
    import yaml

    from xalign.studies.__main__ import make_study

    path = package_folder("experiments") / f"{name}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {"defaults": []}
    study = next((e["override /study"] for e in values["defaults"] if "override /study" in e), None)
    return make_study(study, values.get("study")) if study else None


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m xalign.report experiment=NAME [RUN ...] [--csv F] [--markdown F] [--latex F] [--plots DIR]``; returns the exit code."""
    parser = LineParser(prog="python -m xalign.report experiment=NAME", description="A paper's published numbers beside ours.")
    parser.add_argument("experiment", metavar="experiment=NAME", help="a paper's table or figure, or its laboratory variant NAME_lab")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders, or folders that hold runs; default: runs")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the unrounded numbers too, one line a cell")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables as Markdown too")
    parser.add_argument("--latex", metavar="FILE", type=Path, help="write the tables as LaTeX too")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="where the experiment's study is written (default: study/NAME)")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page of its own: tables, pictures, costs, examples")

    def work() -> None:
        args = parser.parse_args(argv)
        name = args.experiment.removeprefix("experiment=")
        known, runs = facts(name), finished(args.runs)
        tables = beside(name, runs)
        made = grids(name, tables, runs)
        if "cost" in known:
            stand = {r.folder: r for t in tables for s in t.systems.values() for r in s.runs}.values()
            spent = [(run, rows) for run in stand for rows in [stage_rows(run)] if rows]
            made += [*([method_grid(spent)] if spent else []), papers_grid()]
        study = chosen_study(name)
        own = of_experiment(name, runs, args.runs)
        seen, lacking = None, None
        try:
            seen = found(study, own) if study and runs else None
        except XalignError as e:  # the paper's tables stand without it
            lacking = e
        if args.csv:
            cells_csv(args.csv, name, tables)
        if args.markdown:
            args.markdown.write_text(markdown([*made, *(seen.grids if seen else [])]), encoding="utf-8")
        if args.latex:
            args.latex.write_text(latex([*made, *(seen.grids if seen else [])]), encoding="utf-8")
        show(made)
        if seen:
            present(seen, args.plots or Path("study") / name)
        if lacking:
            raise lacking
        if args.html and not own:
            raise XalignError(f"--html {args.html}: there are no finished runs to write about; make them with: {commands(name)[0]}")
        if args.html:
            from xalign.report.cost import cost_grids
            from xalign.report.page import write_page
            from xalign.report.pivot import pivots

            write_page(args.html, own, pivots(own, metrics=[]), made, cost_grids(own), seen)
            print(f"page     {args.html}")

    return reading(work)
