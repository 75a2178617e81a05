"""``python -m xalign.report experiment=NAME``: a paper's published numbers beside ours. No torch.

The numbers are facts in papers.yaml; NAME is an experiment of ``experiments/``, or its laboratory variant NAME_lab, where another test
stands for the paper's and only orders, gains and their signs can be compared.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xalign.report.beside import beside, cells_csv
from xalign.report.cost import stage_rows
from xalign.report.facts import facts
from xalign.report.latex import latex
from xalign.report.method_cost import method_grid, papers_grid
from xalign.report.papertables import grids
from xalign.report.runs import FinishedRun, load_runs
from xalign.tables import markdown, show
from xalign.terminal import LineParser, reading


def finished(paths: Sequence[str]) -> list[FinishedRun]:
    """The finished runs under `paths`; none where a folder has none or ``runs`` is not there yet.

    Raises:
        XalignError: for a named folder that does not exist.
    """
    there = [p for p in paths or ("runs",) if not Path(p).is_dir() or any(Path(p).rglob("rows.jsonl"))]
    return load_runs(there) if there and (paths or Path("runs").is_dir()) else []


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m xalign.report experiment=NAME [RUN ...] [--csv F] [--markdown F] [--latex F]``; returns the exit code."""
    parser = LineParser(prog="python -m xalign.report experiment=NAME", description="A paper's published numbers beside ours.")
    parser.add_argument("experiment", metavar="experiment=NAME", help="a paper's table or figure, or its laboratory variant NAME_lab")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders, or folders that hold runs; default: runs")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the unrounded numbers too, one line a cell")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables as Markdown too")
    parser.add_argument("--latex", metavar="FILE", type=Path, help="write the tables as LaTeX too")

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
        if args.csv:
            cells_csv(args.csv, name, tables)
        if args.markdown:
            args.markdown.write_text(markdown(made), encoding="utf-8")
        if args.latex:
            args.latex.write_text(latex(made), encoding="utf-8")
        show(made)

    return reading(work)
