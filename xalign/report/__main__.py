"""The tables of finished runs; ``python -m xalign.report RUN [RUN ...]``.

Reads only what runs left behind: no torch, no cache, no models.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xalign.config import XalignError
from xalign.report.comparison import compare, comparison_csv
from xalign.report.latex import latex
from xalign.report.layout import pivot_grids, pivots_csv
from xalign.report.pivot import pivots
from xalign.report.run import before_after, rows_csv
from xalign.report.runs import load_runs
from xalign.tables import markdown, show
from xalign.terminal import LineParser, reading

ABOUT = """Tables of finished runs. One run: before and after training. Several: beside each other, one row a run.
With --by (or --metric, --task, --baseline): a table for every task and metric, target and source language, means over seeds."""
EXAMPLES = """examples:
  python -m xalign.report runs/ --by method,lang --metric accuracy --latex table.tex
  python -m xalign.report runs/ --by method,lang --baseline sft --metric chrf --task flores
  python -m xalign.report runs/ --by method,method.code_switch --html report.html
  python -m xalign.report experiment=sdrrl_table2 runs/       a paper's numbers beside ours"""


def _parser() -> argparse.ArgumentParser:
    parser = LineParser(prog="python -m xalign.report", description=ABOUT, epilog=EXAMPLES,
                        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, a folder that holds runs, or a quoted pattern")
    parser.add_argument("--by", metavar="KEY,KEY", help="rows and, last, columns: method, lang, backbone, seed, source, data, translator, "
                        "trainer, dictionary, filter, or a configuration key such as method.code_switch (default: method,lang). Runs that "
                        "differ in more than the seed are never averaged: their row says what differs")
    parser.add_argument("--metric", action="append", default=[], metavar="NAME", help="a metric or its first word: accuracy is "
                        "accuracy_raw and accuracy_pmi; may be repeated (default: the main metrics)")
    parser.add_argument("--task", action="append", default=[], metavar="NAME", help="only this task; may be repeated")
    parser.add_argument("--baseline", metavar="NAME", help="the system, or the run's folder, that marks of significance are against "
                        "(default: each system's untrained model)")
    parser.add_argument("--cost", action="store_true", help="the tables of what the runs cost too")
    for name, what in (("csv", "unrounded numbers"), ("markdown", "the tables as Markdown"), ("latex", "the tables for LaTeX, booktabs"),
                       ("html", "a page of its own: tables, plots, configurations, costs, examples")):
        parser.add_argument(f"--{name}", metavar="FILE", type=Path, help=f"write {what}")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="write the plots as PNG and PDF")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].startswith("experiment="):
        from xalign.report import papers

        return papers.main(argv)

    def work() -> None:
        args = _parser().parse_args(argv)
        runs = load_runs(args.runs)
        by = tuple(key.strip() for key in (args.by or "method,lang").split(","))
        tabled = bool(args.by or args.metric or args.task or args.baseline)
        found = pivots(runs, by, args.metric, args.task, args.baseline) if tabled or args.plots or args.html else []
        folders = [run.folder for run in runs]
        if tabled:
            grids = pivot_grids(found)
        else:
            grids = before_after(runs[0].rows) if len(runs) == 1 else compare(folders)
        if not grids:
            raise XalignError("these runs share no metric that systems are compared by; name one with --metric, or look at their study: "
                              "python -m xalign study NAME RUN ...")
        costs = []
        if args.cost or args.html:
            from xalign.report.cost import cost_grids

            costs = cost_grids(runs)
        shown = [*grids, *(costs if args.cost else [])]
        if args.csv and tabled:
            pivots_csv(found, args.csv)
        elif args.csv:
            rows_csv(runs[0].rows, args.csv) if len(runs) == 1 else comparison_csv(folders, args.csv)
        if args.markdown:
            args.markdown.write_text(markdown(shown), encoding="utf-8")
        if args.latex:
            args.latex.write_text(latex(shown), encoding="utf-8")
        show(shown)
        if args.plots:
            from xalign.report.plots import write_all

            write_all(runs, found, args.plots)
        if args.html:
            from xalign.report.page import write_page

            write_page(args.html, runs, found, grids, costs)
            print(f"page     {args.html}")

    return reading(work)


if __name__ == "__main__":
    sys.exit(main())
