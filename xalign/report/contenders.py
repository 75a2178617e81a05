"""Which runs stand in which row and column of a table: rows are systems or references, and a cell's runs differ in the seed alone."""
from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from xalign.analysis.systems import tell_apart
from xalign.config import XalignError
from xalign.languages import LANGUAGES
from xalign.report.runs import FinishedRun
from xalign.rows import Row, as_roles
from xalign.tables import is_number

NODES = ("data", "translator", "trainer", "dictionary", "filter", "parallel", "task")
UNTRAINED = "untrained"
NO_RUN, NOT_SCORED = "no run", "not scored by it"  # why a cell is empty
Metric = tuple[str, str]  # task with its languages as roles, metric


@dataclass(frozen=True)
class Member:
    """One model of one run, for one of its target languages.

    Attributes:
        when: ``after``, ``before`` or ``baseline:NAME``.
        lang: the target language.
    """

    run: FinishedRun
    when: str
    lang: str

    def row(self, of_source: bool, metric: Metric) -> Row | None:
        """Its score on a metric, in its target language or in the source language."""
        index = self.run.__dict__.setdefault("_by_roles", {})
        if self.lang not in index:
            index[self.lang] = {(r["when"], r["lang"], *(as_roles(r[k], r["source"], self.lang) for k in ("task", "metric"))): r
                                for r in self.run.rows if r["lang"] in (self.lang, r["source"])}
        return index[self.lang].get((self.when, self.run.source if of_source else self.lang, *metric))


@dataclass
class Contender:
    """A row of a table.

    Attributes:
        kind: of a row that stands there to be compared with and does not compete: ``untrained`` or a baseline's name; else empty.
        lang: the target language; empty where languages are the columns.
        like: what an untrained model of the same backbone, source and tasks has in common with it.
        cells: column → its runs; those of a trained system have different seeds.
    """

    label: str
    kind: str
    lang: str
    like: str
    facts: dict[str, Any]
    cells: dict[str, list[Member]] = field(default_factory=dict)

    @property
    def reference(self) -> bool:
        return bool(self.kind)

    @property
    def name(self) -> str:
        """The method, the evaluated model's name or the reference's."""
        first = next(iter(self.cells.values()))[0]
        return self.kind or first.run.model(first.when).name

    @property
    def runs(self) -> list[FinishedRun]:
        return list({id(m.run): m.run for members in self.cells.values() for m in members}.values())

    @property
    def source(self) -> str:
        return self.runs[0].source


def check_keys(by: Sequence[str], runs: Iterable[FinishedRun]) -> None:
    """Raises XalignError for a key that tables cannot be arranged by."""
    known = {"method", "lang", "backbone", "seed", "source", *NODES}
    settings = {k for r in runs for k in r.config}
    for key in by:
        if key not in known and key not in settings:
            near = difflib.get_close_matches(key, sorted(known | settings), 3)
            raise XalignError(f"--by {key}: is no key of these runs; {'nearest: ' + ', '.join(near) + '; ' if near else ''}"
                              f"there are {', '.join(sorted(known))} and configuration keys such as method.code_switch")
    if len(set(by)) < len(by) or not by:
        raise XalignError(f"--by {','.join(by)}: name each key once")


def _fact(member: Member, key: str) -> str:
    """What a run has for a key of --by."""
    if key == "lang":
        return member.lang
    if key == "method":  # of a reference: of the run that recorded it
        return member.run.model("after" if member.run.trained else "before").name
    if key in ("backbone", "seed", "source"):
        return str(getattr(member.run, key))
    value = member.run.config.get(f"choices.{key}" if key in NODES else key)
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def _words(member: Member, key: str) -> str:
    fact = _fact(member, key)
    plain = key in ("method", "backbone", *NODES)
    return fact if plain else f"from {fact}" if key == "source" else f"{key.rpartition('.')[2]}={fact}"


def _identity(member: Member, over: str) -> dict[str, Any]:
    """Everything in the configuration that must be the same within a row; the column's own key may differ.

    A file that is named by its languages (``eng-fin.txt``) is the same for all of them.
    """
    own = member.run.model("after" if member.when == "after" else "before").identity
    dropped = {f"choices.{over}", over, "" if member.when == "after" else "mode"}
    node = f"{over}." if over in ("method", "backbone", *NODES) else "\n"
    roles = {k: as_roles(v, member.run.source, member.lang) if isinstance(v, str) and k != "source" else v
             for k, v in own.items()}
    return {k: v for k, v in roles.items() if k not in dropped and not k.startswith(node)}


def _members(run: FinishedRun) -> Iterable[Member]:
    whens = dict.fromkeys(r["when"] for r in run.rows)
    return (Member(run, when, lang) for when in whens for lang in run.langs)


def contenders(runs: Sequence[FinishedRun], keys: Sequence[str], over: str) -> tuple[list[Contender], list[str]]:
    """(rows: references first, columns). Two runs of one configuration and seed are two rows; labels may still be the same."""
    members = [m for run in runs for m in _members(run)]
    bases = {_like(m) for m in members if m.run.trained}  # the untrained model of a trained run, evaluated by itself, is one of them
    groups: dict[Any, list[Contender]] = {}
    scores: dict[int, dict[Any, Any]] = {}
    rows: list[Contender] = []
    for m in members:
        kind = m.when.partition(":")[2] or (UNTRAINED if m.when == "before" and (m.run.trained or _like(m) in bases) else "")
        free = bool(kind) and kind != UNTRAINED and not kind.endswith("-shot")  # needs no model: chance, majority, copy
        words = [_words(m, k) for k in keys if not kind or k == "source" or k == "backbone" and not free]
        label = " ".join(dict.fromkeys([kind] * bool(kind) + words)) or _fact(m, "method")
        lang = "" if over == "lang" else m.lang
        facts = _identity(m, over) | ({"seed": m.run.seed} if "seed" in keys and not kind else {})
        same = groups.setdefault((kind, label, lang, "" if free else json.dumps(facts, sort_keys=True, default=str)), [])
        column, own = _fact(m, over), _scores(m)
        row = next((c for c in same if (_agree(scores[id(c)], own) if free else
                                        kind or all(o.run.seed != m.run.seed for o in c.cells.get(column, ())))), None)
        if row is None:
            row = Contender(label, kind, lang, _like(m), facts)
            same.append(row)
            rows.append(row)
        scores.setdefault(id(row), {}).update(own)
        row.cells.setdefault(column, []).append(m)
    rows.sort(key=lambda c: (not c.reference, c.kind == UNTRAINED))
    found = dict.fromkeys(column for c in rows for column in c.cells)
    known = list(LANGUAGES)
    return rows, sorted(found, key=lambda c: known.index(c) if c in known else len(known)) if over == "lang" else _sorted(found)


def labelled(rows: Sequence[Contender]) -> tuple[list[str], list[str]]:
    """(the rows' labels made distinct by what differs, notes on what the labels do not say)."""
    labels, notes = tell_apart([c.label for c in rows], [c.facts for c in rows], [c.runs[0].folder for c in rows])
    models = [label for c, label in zip(rows, labels, strict=True) if c.kind in ("", UNTRAINED)]
    return labels, [n for n in notes if any(n.startswith(f"{label}: ") for label in models)]


def _scores(m: Member) -> dict[Any, Any]:
    return {(r["lang"], r["task"], r["metric"]): r["value"] for r in m.run.rows if r["when"] == m.when}


def _agree(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return all(one.get(k, v) == v for k, v in other.items())


def _like(m: Member) -> str:
    return json.dumps({k: v for k, v in m.run.model("before").identity.items() if k != "mode"}, sort_keys=True, default=str)


def _sorted(found: Iterable[str]) -> list[str]:
    """Numbers by size, then the others as they came."""
    def size(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return math.inf

    return sorted(found, key=size)


def scored_runs(c: Contender, column: str, metric: Metric, of_source: bool, notes: list[str]) -> tuple[list[tuple[Member, Row]], str]:
    """The runs of a cell with their numbers, one a seed, and why there is none."""
    scored = [(m, r) for m in c.cells.get(column, ()) for r in [m.row(of_source, metric)] if r is not None]
    found = [(m, r) for m, r in scored if is_number(r["value"])]
    if not found:
        lacking = NOT_SCORED if column in c.cells and not c.reference else NO_RUN
        return [], next((r.get("reason") or "no reason given" for _, r in scored), lacking)
    if found[0][0].when == "after":
        return found, ""
    first: dict[int, tuple[Member, Row]] = {}  # what nobody trained has one value, however many runs recorded it
    for m, r in found:
        first.setdefault(m.run.seed, (m, r))
    kept = list(first.values()) if len({r["value"] for _, r in first.values()}) > 1 else found[:1]
    others = sorted({r["value"] for _, r in found} - {r["value"] for _, r in kept})
    if others:
        notes.append(f"{c.label}, {column}: other runs recorded {', '.join(f'{v:.4g}' for v in others)}; the first value is shown.")
    return kept, ""
