"""The tables of finished runs: one before and after, several beside each other; ``python -m xalign.report RUN [RUN ...]``.

Reads only a run's rows.jsonl, run.json and config.yaml: no torch, no cache, no models.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xalign.report.comparison import compare, comparison_csv
from xalign.report.run import before_after, rows_csv
from xalign.rows import read_rows
from xalign.tables import markdown, show
from xalign.terminal import reading


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m xalign.report RUN [RUN ...] [--csv FILE] [--markdown FILE]``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m xalign.report", description="One finished run before and after, "
                                     "or several beside each other. RUN is a folder with rows.jsonl.")
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the unrounded numbers too")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables as Markdown too")
    args = parser.parse_args(argv)

    def work() -> None:
        single = len(args.runs) == 1
        grids = before_after(read_rows(args.runs[0])) if single else compare(args.runs)
        if args.csv:
            rows_csv(read_rows(args.runs[0]), args.csv) if single else comparison_csv(args.runs, args.csv)
        if args.markdown:
            args.markdown.write_text(markdown(grids), encoding="utf-8")
        show(grids)

    return reading(work)


if __name__ == "__main__":
    sys.exit(main())
