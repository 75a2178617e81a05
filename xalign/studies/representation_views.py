"""What the stages of `representations` wrote, gathered over runs: one table, one CSV. No torch."""
from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import RECEIPT
from xalign.config import XalignError
from xalign.data.examples import read_jsonl
from xalign.report.contenders import UNTRAINED, contenders, labelled
from xalign.report.drawing import language
from xalign.report.repeat import repeat_command
from xalign.rows import STARS, stars
from xalign.studies.base import exported
from xalign.studies.representations import ALL, FILES, METRICS, TESTED, Representations, stated
from xalign.tables import MISSING, Grid, number, p_value, with_error

if TYPE_CHECKING:
    from xalign.report.runs import FinishedRun

NAME = Representations.name
Key = tuple[str, str, int | str, str]  # language, pooling, layer, metric
Value = tuple[float | None, float | None]  # with its standard error
NAMES = {"retrieval@1": "retrieval@1", "retrieval@1_centred": "retrieval@1, centred", "margin": "cosine margin", "cka": "CKA"}
OF = {"mean": "mean of the tokens", "last": "last token"}


class Space:
    """What one stage wrote about one model.

    Attributes:
        facts: of the receipt; `key`: the stage's, the same for the same model and texts.
        layers: how many, without the embeddings; n: sentences.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
            self.facts, self.key = receipt["facts"], receipt["key"]
            self.layers, self.n = int(self.facts["layers"]), int(self.facts["texts"])
            self.langs: list[str] = self.facts["langs"]
        except (OSError, ValueError, KeyError, TypeError):
            raise XalignError(f"{folder / RECEIPT}: is missing or damaged; repeat the run's command to write it again") from None
        self.stated = stated(self.layers)

    def _records(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.is_file():
            raise XalignError(f"{path}: is missing; repeat the run's command to write it again")
        return list(read_jsonl(path))

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The lines of layers.jsonl."""
        return self._records(FILES[0])

    @cached_property
    def _values(self) -> dict[Key, Value]:
        return {(r["lang"], r["pooling"], r["layer"], r["metric"]): (r["value"], r["se"]) for r in self.records}

    def value(self, lang: str, pooling: str, layer: int | str, metric: str) -> Value:
        return self._values.get((lang, pooling, layer, metric), (None, None))

    @cached_property
    def _details(self) -> tuple[list[str], dict[Key, list[float | None]]]:
        ids, *details = self._records(FILES[1])
        return ids["ids"], {(r["lang"], r["pooling"], r["layer"], r["metric"]): r["values"] for r in details}

    @property
    def ids(self) -> list[str]:
        return self._details[0]

    def parts(self, *key: Any) -> list[float | None] | None:
        """Each sentence's part in a value of a stated layer, see `xalign.analysis.geometry.Measured`."""
        return self._details[1].get(key)  # type: ignore[arg-type]

    @cached_property
    def points(self) -> dict[tuple[str, int], dict[str, dict[str, tuple[float, float]]]]:
        """(map, layer) → language → id → place."""
        found: dict[tuple[str, int], dict[str, dict[str, tuple[float, float]]]] = {}
        for r in self._records(FILES[2]):
            found.setdefault((r["map"], r["layer"]), {}).setdefault(r["lang"], {})[r["id"]] = (r["x"], r["y"])
        return found


@dataclass(frozen=True)
class Change:
    """After minus before, with its standard error over sentences; for retrieval p of the paired randomisation test."""

    diff: float
    se: float
    n: int
    p: float | None = None
    detectable: float | None = None


def change(pairs: Sequence[tuple[Space, Space]], lang: str, pooling: str, layer: int | str, metric: str) -> Change | None:
    """The change from the first of each pair to the second; several pairs are runs of one system, a sentence's results are one cluster."""
    from xalign.analysis.significance import paired

    before, after, clusters, diffs = [], [], [], []
    for one, two in pairs:
        old, new = one.parts(lang, pooling, layer, metric), two.parts(lang, pooling, layer, metric)
        if not old or not new or None in old or None in new or one.ids != two.ids:
            return None
        before, after, clusters = before + old, after + new, clusters + one.ids
        diffs.append(two.value(lang, pooling, layer, metric)[0] - one.value(lang, pooling, layer, metric)[0])  # type: ignore[operator]
    if not pairs:
        return None
    test = paired(before, after, clusters, bootstrap=False)
    tested = metric in TESTED
    return Change(statistics.fmean(diffs), test.se, test.n, test.p_randomisation if tested else None, test.detectable() if tested else None)


@dataclass
class Entry:
    """One system, over its languages and seeds.

    Attributes:
        label: what tells it from the others.
        spaces: language → of each run, by seed, {"before": ..., "after": ...}; a model that nothing trained has no "after".
    """

    label: str
    spaces: dict[str, list[dict[str, Space]]] = field(default_factory=dict)

    @property
    def when(self) -> str:
        """Which of its spaces is the model that it is about."""
        return "after" if all("after" in found for runs in self.spaces.values() for found in runs) else "before"

    @property
    def every(self) -> list[Space]:
        return [space for runs in self.spaces.values() for found in runs for space in found.values()]

    def own(self, lang: str, when: str = "") -> list[Space]:
        """Its spaces in one language, a seed each; the model that it is about unless `when` says another."""
        return [found[when or self.when] for found in self.spaces.get(lang, ()) if (when or self.when) in found]

    def pairs(self, lang: str) -> list[tuple[Space, Space]]:
        return [(found["before"], found["after"]) for found in self.spaces.get(lang, ()) if len(found) == 2]


def gather(runs: Sequence[FinishedRun]) -> tuple[list[Entry], list[str]]:
    """The systems of `runs`, and notes on what is left out or not said by a label.

    Raises:
        XalignError: if no run has such a stage, with the command that adds it to the first; if the runs show different texts.
    """
    found = {run.folder: {when: Space(path) for when, path in exported(run, NAME).items()} for run in runs}
    shown = [run for run in runs if found[run.folder]]
    if not shown:
        command = repeat_command(runs[0]) if runs else ""
        remedy = f"{command} study={NAME}" if command else f"repeat a run's command with study={NAME}"
        raise XalignError(f"study={NAME}: none of the {len(runs)} run{'s' * (len(runs) != 1)} has it; compute it with: {remedy}")
    texts: dict[str, str] = {}
    for run in shown:
        for space in found[run.folder].values():
            texts.setdefault(about(space), run.folder.name)
    if len(texts) > 1:
        named = "; ".join(f"{name}: {what}" for what, name in texts.items())
        raise XalignError(f"study={NAME}: these runs show different texts ({named}); name runs that show the same ones, or repeat theirs "
                          "with one set of study.* keys")
    rows = [c for c in contenders(shown, ("method",), "lang")[0] if not c.kind or c.kind == UNTRAINED]
    rows = [c for c in rows if not c.kind] or rows  # a trained model brings its own untrained one
    labels, notes = labelled(rows)
    entries = []
    for label, row in zip(labels, rows, strict=True):
        entry = Entry(label)
        for lang, members in row.cells.items():
            entry.spaces[lang] = [found[m.run.folder] for m in sorted(members, key=lambda m: m.run.seed)]
        entries.append(entry)
    lacking = [run.name for run in runs if run not in shown]
    if lacking:
        notes.append(f"left out, without study={NAME}: {', '.join(lacking[:4])}{f' and {len(lacking) - 4} more' * (len(lacking) > 4)}.")
    return entries, notes


def about(space: Space) -> str:
    """Which texts, in words: ``200 held-out sentences``."""
    facts = space.facts
    what = {"sentences": "held-out sentences of the laboratory", "questions": "held-out questions of the laboratory"}.get(
        facts["text"], f"lines of {facts['path']}")
    return f"{facts['texts']} {what}" + ", in the prompt template" * bool(facts["instruction"])


def signature(space: Space, metric: str, layer: int | str, pooling: str) -> str:
    """How a number came about."""
    kind = {"margin": "cosine|against:other-pairs", "cka": "linear|hsic:unbiased"}.get(metric, "cosine|both-ways|ties:shared")
    where = f"layers:1-{space.layers},mean" if layer == ALL else f"layer:{space.layers if layer == 'last' else layer}/{space.layers}"
    facts = space.facts
    start = ",without-start-token" if facts["kind"] == "causal" and pooling == "mean" else ""
    text = f"file:{facts['path']}" if facts["text"] == "files" else facts["text"]
    kind += "|centred:by-language" * metric.endswith("_centred")
    return (f"{metric.removesuffix('_centred')}|{kind}|{where}|tokens:{pooling}{start}|text:{text}"
            f"|prompt:{'template' if facts['instruction'] else 'none'}|v:1")


def average(spaces: Sequence[Space], *key: Any) -> Value:
    """The mean over runs of one system, with its standard error over them; of one run, over sentences."""
    found = [space.value(*key) for space in spaces]
    values = [v for v, _ in found if v is not None]
    if not values:
        return None, None
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), spread or found[0][1]


def table_rows(space: Space) -> list[tuple[str, str, int | str]]:
    """(name, pooling, layer) of the rows of a table."""
    named = {name: number for name, number in space.stated.items() if name in ("first", "middle", "last")}
    rows: list[tuple[str, str, int | str]] = [(f"{name} ({number})", "mean", number) for name, number in named.items()]
    return [*rows, ("mean of layers", "mean", ALL), (f"last ({space.layers}), last token", "last", space.layers)]


def grid(entries: Sequence[Entry], notes: Sequence[str] = ()) -> Grid:
    """A section a language, its rows the systems and their layers."""
    several, trained = len(entries) > 1, any(e.when == "after" for e in entries)
    space = entries[0].every[0]
    table = Grid(f"Translations in the model's space: {about(space)}", [*["model"] * several, "layer"], left=(0, 1)[:1 + several])
    for metric in METRICS:
        columns = ["before", "after", "change", *["p"] * (metric in TESTED)] if trained else ["value"]
        table.groups.append((len(table.columns), len(table.columns) + len(columns) - 1, NAMES[metric]))
        table.columns += columns
    tests: list[tuple[int, int, Change]] = []
    for lang in dict.fromkeys(lang for e in entries for lang in e.spaces):
        table.rows.append([f"{language(lang)} and {language(space.facts['source'])}"])
        for entry in (e for e in entries if lang in e.spaces):
            for i, (name, pooling, layer) in enumerate(table_rows(entry.own(lang)[0])):
                cells = [*([entry.label if not i else ""] if several else []), name]
                for metric in METRICS:
                    key = lang, pooling, layer, metric
                    moved = change(entry.pairs(lang), *key)
                    before, after = (with_error(*average(entry.own(lang, when), *key)) for when in ("before", "after"))
                    cells += [before, after, with_error(moved.diff, moved.se, sign=True) if moved else MISSING] if trained else [before]
                    if trained and metric in TESTED:
                        cells.append(MISSING)
                        tests += [(len(table.rows), len(cells) - 1, moved)] if moved and moved.p is not None else []
                table.rows.append(cells)
    for (row, column, moved), mark in zip(tests, stars([t[2].p for t in tests]), strict=True):
        table.rows[row][column] = p_value(moved.p) + mark
        if mark and moved.diff:
            table.colours[row, column] = table.colours[row, column - 1] = "green" if moved.diff > 0 else "red"
    seeds = max(len(runs) for e in entries for runs in e.spaces.values())
    over = "seeds (of one seed: over sentences)" if seeds > 1 else "them"
    table.notes = [f"n {spread_of(entries)} sentences; ± standard error over {over}. Layers were chosen beforehand; layer 0 "
                   "is the embeddings. Vectors are the mean of a text's tokens but where the last token is named.",
                   f"retrieval@1: the translation is the nearest of all by cosine, mean of both directions; chance {number(1 / space.n)}. "
                   "centred: after each language's mean vector has been subtracted. margin: mean cosine of translations minus that of all "
                   "other pairs. CKA: linear, unbiased (0 for unrelated vectors)."]
    if tests:
        table.notes.append(f"p: two-sided paired randomisation over sentences; {STARS.format(k=len(tests))}.")
    table.notes += notes
    return table


def spread_of(entries: Iterable[Entry]) -> str:
    numbers = sorted({space.n for e in entries for space in e.every})
    return "–".join(f"{n:,}" for n in dict.fromkeys((numbers[0], numbers[-1])))


def layers_csv(entries: Sequence[Entry]) -> str:
    """Every layer's numbers, one a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("system", "run", "when", "lang", "pooling", "layer", "metric", "value", "se", "n"))
    written = set()
    for entry in entries:
        for space in entry.every:
            if space.folder not in written:
                written.add(space.folder)
                for r in space.records:
                    shown = ("" if r[k] is None else r[k] for k in ("lang", "pooling", "layer", "metric", "value", "se", "n"))
                    writer.writerow((entry.label, space.folder.parents[2].name, space.folder.name, *shown))
    return out.getvalue()
