"""``python -m xalign.report experiment=NAME``: a paper's published numbers beside ours. No torch.

The numbers are facts in papers.yaml; NAME is an experiment of ``experiments/``, or its laboratory variant NAME_lab, where another test
stands for the paper's and only orders, gains and their signs can be compared.
"""
from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from xalign.compose import package_folder
from xalign.config import XalignError, nearest
from xalign.report.against import Wanted, compose
from xalign.report.runs import FinishedRun, load_runs
from xalign.tables import markdown, show
from xalign.terminal import reading

AVERAGE = "average"  # the column of the paper's own averages


@dataclass(frozen=True)
class Part:
    """Scores that a published number is the mean of: `paper`'s, and what stands for them in the `laboratory` (None: nothing does)."""

    paper: Wanted
    laboratory: Wanted | None
    langs: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One published table.

    Attributes:
        parts: column → what its value is the mean of; empty for what no metric of ours measures.
        rows: row → column → published value, in `unit`.
        minus: values are differences from this row; empty: they are scores.
        digits: decimals that are published.
    """

    name: str
    title: str
    unit: str
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, float]]
    parts: Mapping[str, tuple[Part, ...]]
    minus: str
    digits: int

    @property
    def singles(self) -> tuple[str, ...]:
        """The columns without the average; a table of averages alone has just that."""
        return tuple(c for c in self.columns if c != AVERAGE or len(self.columns) == 1)


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(Path(__file__).with_name("papers.yaml").read_text(encoding="utf-8"))


def names() -> list[str]:
    """The experiments that have an entry, and those of their laboratory variants that can be run."""
    listed = _file()["experiments"]
    there = {p.stem for p in package_folder("experiments").glob("*.yaml")}
    return [*listed, *(f"{n}_lab" for n in listed if f"{n}_lab" in there or "laboratory" in listed[n])]


def facts(name: str) -> dict[str, Any]:
    """What papers.yaml says of one experiment, its paper's setting, reference and open questions joined in.

    Keys: experiment (whose file makes the runs), laboratory (bool), paper (name, title, authors, venue, url), place, title, unit, setting,
    reference, unsaid, says, errata, blocks, systems, and what only some have (cost, duel, allocation ...).

    Raises:
        XalignError: there is no such experiment.
    """
    if name not in names():
        raise XalignError(f"experiment={name}: no such experiment{nearest(name, names()) or '.'} There are: "
                          f"{', '.join(_file()['experiments'])}, and for some of them the laboratory's, NAME_lab")
    laboratory = name.endswith("_lab")
    own = dict(_file()["experiments"][name.removesuffix("_lab")])
    paper = dict(_file()["papers"][own["paper"]])
    shared, unsaid = paper.pop("setting", {}), paper.pop("unsaid", [])
    out = {"reference": paper.pop("reference", ""), "unit": "percent", "blocks": {}, "systems": {}, "errata": [], "says": [], **own,
           "setting": {**shared, **own.get("setting", {})}, "unsaid": [*unsaid, *own.get("unsaid", [])], "paper": paper}
    made = own.get("laboratory", name) if laboratory else name
    return {**out, "experiment": made, "laboratory": laboratory}


def blocks(name: str) -> list[Block]:
    """The published tables of one experiment."""
    known = facts(name)
    return [_block(name.removesuffix("_lab"), block, known["unit"]) for block in known["blocks"]]


def _block(experiment: str, name: str, unit: str) -> Block:
    node = _file()["experiments"][experiment]["blocks"][name]
    columns = tuple(node["columns"])
    rows = {row: dict(zip(columns, values, strict=True)) for row, values in node["rows"].items()}
    digits = max(len(repr(float(v)).partition(".")[2]) for values in rows.values() for v in values.values())
    parts: dict[str, tuple[Part, ...]] = {}
    for column in columns:
        if "score" in node:
            given = [] if column == AVERAGE else [{**node["score"], "columns": [column]}]
        else:
            given = [_referred(part, node.get("langs")) for part in node["parts"].get(column, [])]
        parts[column] = tuple(Part(_wanted(part), _wanted({"role": part["role"], **part["lab"]}) if "lab" in part else None,
                                   tuple(part["columns"])) for part in given)
    return Block(name, node["title"], unit, columns, rows, parts, node.get("minus", ""), digits)


def _referred(part: str | dict[str, Any], langs: Sequence[str] | None) -> dict[str, Any]:
    """A part in place, or that of another table's block and its languages (those of `langs` that it has)."""
    if isinstance(part, str):
        experiment, _, block = part.partition(".")
        node = _file()["experiments"][experiment]["blocks"][block]
        part = {**node["score"], "columns": [c for c in node["columns"] if c != AVERAGE and (langs is None or c in langs)]}
    return part


def _wanted(part: Mapping[str, Any]) -> Wanted:
    return Wanted(part["role"], part["task"], part["metric"], part.get("n", 0), part.get("signature", ""), part.get("theirs", ""))


def commands(experiment: str) -> list[str]:
    """The commands in the header of experiments/EXPERIMENT.yaml; the plain one where there is none."""
    path, lines = package_folder("experiments") / f"{experiment}.yaml", list[str]()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        text = line.lstrip("# ")
        if text.startswith("command:"):
            lines.append(text.removeprefix("command:").strip())
        elif lines and line.startswith("#    "):  # goes on, or another one
            lines[-1:] = [lines[-1], text] if text.startswith("python") else [f"{lines[-1]} {text}"]
        elif lines:
            break
    return lines or [f"python -m xalign -m experiment={experiment}"]


def languages(experiment: str) -> list[str]:
    """The target languages that experiments/EXPERIMENT.yaml asks for; empty where it leaves them open."""
    return re.findall(r"[a-z]{3}", str(compose(experiment, ()).get("lang", "")))


def finished(paths: Sequence[str]) -> list[FinishedRun]:
    """The finished runs under `paths`; none where a folder has none or ``runs`` is not there yet.

    Raises:
        XalignError: for a named folder that does not exist.
    """
    there = [p for p in paths or ("runs",) if not Path(p).is_dir() or any(Path(p).rglob("rows.jsonl"))]
    return load_runs(there) if there and (paths or Path("runs").is_dir()) else []


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m xalign.report experiment=NAME [RUN ...] [--csv F] [--markdown F] [--latex F]``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m xalign.report experiment=NAME", description="A paper's published numbers beside ours.")
    parser.add_argument("experiment", metavar="experiment=NAME", help="a paper's table or figure, or its laboratory variant NAME_lab")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders, or folders that hold runs; default: runs")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the unrounded numbers too, one line a cell")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables as Markdown too")
    parser.add_argument("--latex", metavar="FILE", type=Path, help="write the tables as LaTeX too")
    args = parser.parse_args(argv)

    def work() -> None:
        from xalign.report.beside import beside, cells_csv
        from xalign.report.papertables import grids

        name = args.experiment.removeprefix("experiment=")
        known, runs = facts(name), finished(args.runs)
        tables = beside(name, runs)
        made = grids(name, tables, runs)
        if "cost" in known:
            from xalign.report.cost import stage_rows
            from xalign.report.method_cost import method_grid, papers_grid

            stand = {r.folder: r for t in tables for s in t.systems.values() for r in s.runs}.values()
            spent = [(run, rows) for run in stand for rows in [stage_rows(run)] if rows]
            made += [*([method_grid(spent)] if spent else []), papers_grid()]
        if args.csv:
            cells_csv(args.csv, name, tables)
        if args.markdown:
            args.markdown.write_text(markdown(made), encoding="utf-8")
        if args.latex:
            from xalign.report.latex import latex

            args.latex.write_text(latex(made), encoding="utf-8")
        show(made)

    return reading(work)
