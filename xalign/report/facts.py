"""What the papers published: the facts of papers.yaml, each table as a `Block`. No torch."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from xalign.compose import package_folder
from xalign.config import XalignError, nearest
from xalign.report.against import Wanted, compose

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
