"""Finished runs as systems: a system is every run of one configuration, whatever its seed and target language."""
from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from xalign.analysis.corpus import Examples, are_summed, paired_examples
from xalign.analysis.significance import Paired
from xalign.config import XalignError
from xalign.data.examples import read_jsonl
from xalign.rows import Row, flat_config, read_rows
from xalign.tables import is_number
from xalign.terminal import fail

NOT_THE_SYSTEM = ("seed", "lang", "runs", "cache", "plan", "tracker", "metric", "study", "choices")
EVALUATED = ("mode", "source", "backbone", "task", "tasks")  # what there is to an untrained model
NO_CHOICE = ("hydra/", "experiments", "tracker", "metric", "study")
SHORT = 32  # characters that a label may gain
Key = tuple[str, str, str]  # language, task, metric


@dataclass(frozen=True)
class ModelScores:
    """One model of one run.

    Attributes:
        when: ``after`` or, for the untrained model, ``before``.
        langs: the run's target languages (with mode=evaluate: all its languages).
    """

    folder: Path
    when: str
    rows: tuple[Row, ...] = field(repr=False)
    config: dict[str, Any] = field(repr=False)

    @property
    def trained(self) -> bool:
        return self.when == "after"

    @property
    def seed(self) -> int:
        return self.rows[0]["seed"]

    @property
    def langs(self) -> tuple[str, ...]:
        named = self.config.get("lang") or dict.fromkeys(r["lang"] for r in self.rows if r["lang"] != r["source"])
        return (named,) if isinstance(named, str) else tuple(named)

    @property
    def name(self) -> str:
        """The method; for a model that no method trained here, the backbone."""
        model = self.config.get("backbone.name")
        return self.rows[0]["method"] if self.trained else Path(model).name if model else self.rows[0]["backbone"]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything in the configuration that makes it another system."""
        if not self.config:
            return {"folder": str(self.folder)}
        parts = {k: v for k, v in self.config.items() if k.split(".")[0] not in NOT_THE_SYSTEM}
        if not self.trained:
            parts = {k: v for k, v in parts.items() if k.split(".")[0] in EVALUATED}
        kept = ("backbone", "task") if not self.trained else None
        return parts | {k: v for k, v in self.config.items() if k.startswith("choices.") and not k[8:].startswith(NO_CHOICE)
                        and (kept is None or k[8:] in kept)}

    @cached_property
    def examples(self) -> dict[Key, Examples]:
        """Per-example scores of every language, task and metric, in the order in which they were written."""
        found: dict[Key, Examples] = {}
        for lang in dict.fromkeys(r["lang"] for r in self.rows if r["when"] == self.when):
            path = self.folder / "predictions" / self.when / lang / "per_example_scores.jsonl"
            if path.is_file():
                for number, row in enumerate(read_jsonl(path), 1):
                    try:
                        examples = {i: [value, cluster, *more] for i, cluster, value, *more in row["examples"]}
                        found[lang, row["task"], row["metric"]] = examples
                    except (KeyError, TypeError, ValueError):
                        raise XalignError(f"{path}:{number}: is no list of per-example scores; repeat the run's command") from None
        return found

    def row(self, key: Key) -> Row | None:
        """The row of the whole test set."""
        return next((r for r in self.rows if r["when"] == self.when and (r["lang"], r["task"], r["metric"]) == key), None)


@dataclass(frozen=True)
class Scored:
    """One model's items of one language, task and metric, and the row that they add up to."""

    seed: int
    trained: bool
    examples: Examples
    row: Row | None


@dataclass
class System:
    """Models that differ only in seed and target language."""

    label: str
    models: list[ModelScores]

    @property
    def trained(self) -> bool:
        return self.models[0].trained

    @property
    def source(self) -> str:
        return self.models[0].rows[0]["source"]

    def scored(self, by_target: bool) -> dict[Key, dict[int, Scored]]:
        """Key → seed → scores. `by_target`: a source language's scores are those of one target's models, ``eng (fin)``."""
        out: dict[Key, dict[int, Scored]] = {}
        for model in self.models:
            for key, examples in model.examples.items():
                lang = key[0] if key[0] in model.langs or not by_target else f"{key[0]} ({', '.join(model.langs)})"
                out.setdefault((lang, *key[1:]), {})[model.seed] = Scored(model.seed, model.trained, examples, model.row(key))
        return out


def find_runs(arguments: Sequence[str]) -> list[Path]:
    """The run folders that the arguments name: run folders, folders that hold runs at any depth, or patterns that the shell left alone.

    Runs inside such a folder that are not finished are left out, and a line on stderr names them.
    Raises:
        XalignError: for a folder that holds no finished run, and a pattern without a match.
    """
    folders: list[Path] = []
    unfinished: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        named = [path] if path.exists() or not glob.has_magic(argument) else [Path(p) for p in sorted(glob.glob(argument))]
        held = [run for p in named for run in _held(p, unfinished)]
        if not held and named == [path] and (path in unfinished or not path.is_dir()):
            unfinished = [p for p in unfinished if p != path]
            held = [path]  # reading it says what is wrong with it
        if not held:
            lacks = "has no rows.jsonl and holds no finished run" if named == [path] else "no finished run matches"
            raise XalignError(f"{argument}: {lacks}{_named(unfinished)}")
        folders += held
    if unfinished:
        fail(f"note: left out, not finished: {', '.join(map(str, unfinished))}")
    return list({p.resolve(): p for p in folders}.values())


def _held(folder: Path, unfinished: list[Path], named: bool = True) -> list[Path]:
    """The finished runs in `folder`, itself or at any depth; runs that are not finished are added to `unfinished`."""
    config = folder / "config.yaml"
    if (folder / "rows.jsonl").is_file() and (named or config.is_file()):  # caches have rows.jsonl of another kind
        return [folder]
    if config.is_file() and "\nchoices:" in config.read_text(encoding="utf-8", errors="replace"):  # a run writes it first
        unfinished.append(folder)
        return []
    parts = [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != "." and p.name != "wandb"] if folder.is_dir() else []
    return [run for part in parts for run in _held(part, unfinished, named=False)]


def _named(unfinished: Sequence[Path]) -> str:
    names = ", ".join(p.name for p in unfinished[:4]) + (" ..." if len(unfinished) > 4 else "")
    return f"; not finished: {names}; repeat their commands" if names else ""


def load_systems(folders: Sequence[Path]) -> list[System]:
    """The systems of the given runs in order; a single one is joined by its untrained model, which comes first.

    Raises:
        XalignError: for a folder that is no finished run, and for one system without an untrained model beside it.
    """
    runs = []
    for folder in folders:
        rows, config = tuple(read_rows(folder)), flat_config(folder)
        when = "after" if any(r["when"] == "after" for r in rows) else "before"
        runs.append(ModelScores(folder, when, rows, config))
    systems = _grouped(runs)
    if len(systems) == 1:
        if not systems[0].trained:
            raise XalignError(f"{folders[0]}: holds one untrained model; name a second run to compare it with")
        before = [ModelScores(m.folder, "before", m.rows, m.config) for m in systems[0].models]
        systems.insert(0, System("untrained", before))
    _name(systems)
    return systems


def _grouped(models: Sequence[ModelScores]) -> list[System]:
    """Models of one identity together; a second one for the same language and seed starts another system."""
    groups: dict[str, list[System]] = {}
    order: list[System] = []
    for model in models:
        same = groups.setdefault(json.dumps(model.identity, sort_keys=True, default=str), [])
        own = {(lang, model.seed) for lang in model.langs}
        free = next((s for s in same if not own & {(lang, m.seed) for m in s.models for lang in m.langs}), None)
        if free is None:
            free = System(model.name, [])
            same.append(free)
            order.append(free)
        free.models.append(model)
    return order


def _name(systems: Sequence[System]) -> None:
    """Make labels distinct."""
    facts = [s.models[0].identity | {"seed": s.models[0].seed, "lang": ",".join(s.models[0].langs)} for s in systems]
    labels, _ = tell_apart([s.label for s in systems], facts, [s.models[0].folder for s in systems])
    for s, label in zip(systems, labels, strict=True):
        s.label = label


def tell_apart(labels: Sequence[str], facts: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    """(labels made distinct, notes): by all that differs in the facts where that is short, else by as much of it as is
    needed, and a note says the rest; by the folder where nothing differs or no short words do."""
    out, notes = list(labels), []
    for label in [k for k in dict.fromkeys(labels) if labels.count(k) > 1]:
        same = [i for i, k in enumerate(labels) if k == label]
        keys = differing([facts[i] for i in same])
        chosen = keys
        if any(len(_words(facts[i], keys)) > SHORT for i in same):
            chosen = []
            for k in keys:  # as few as tell them apart
                if len({_words(facts[i], [*chosen, k]) for i in same}) > len({_words(facts[i], chosen) for i in same}):
                    chosen.append(k)
        texts = [_words(facts[i], chosen) for i in same]
        short = len(set(texts)) == len(texts) and all(len(t) <= SHORT for t in texts)
        for i, text in zip(same, texts, strict=True):
            out[i] = f"{label} {text if short else folders[i].name.rpartition('-')[2]}".strip()
            rest = [f"{k.removeprefix('choices.')}={str(facts[i].get(k))[:60]}" for k in keys if not short or k not in chosen]
            if rest or not keys:
                notes.append(f"{out[i]}: {', '.join(rest) or f'the same configuration and seed as another run, {folders[i]}'}")
    return [str(folder) if out.count(label) > 1 else label for label, folder in zip(out, folders, strict=True)], notes


def differing(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which facts differ, without those that follow from a differing choice (another backbone has other settings)."""
    def values(key: str, among: Sequence[Mapping[str, Any]]) -> set[str]:
        return {json.dumps(f.get(key), default=str) for f in among}

    keys = [k for k in dict.fromkeys(k for f in facts for k in f) if len(values(k, facts)) > 1]
    plain = [k for k in keys if not k.startswith("choices.")]
    for choice in [k for k in keys if k not in plain]:
        parts = [[f for f in facts if values(choice, [f]) == {v}] for v in sorted(values(choice, facts))]
        own = [k for k in keys if k.split(".")[0].rstrip("s") == choice[8:] and all(len(values(k, part)) == 1 for part in parts)]
        keys = [k for k in keys if k not in (own or ([choice] if plain else []))]
    return sorted(keys, key=lambda k: not k.startswith("choices."))


def _words(facts: Mapping[str, Any], keys: Sequence[str]) -> str:
    """``smollm2 code_switch=0.15``."""
    values = {k: Path(v).name if isinstance(v, str) and "/" in v else v for k in keys for v in [facts.get(k)]}
    return " ".join(str(v) if k.startswith("choices.") or k == "lang" else f"{k.rpartition('.')[2]}={v}" for k, v in values.items())


def pair_up(a: dict[int, Scored], b: dict[int, Scored]) -> tuple[list[tuple[Scored, Scored]], str]:
    """Which runs of two systems are compared with each other, and a note where that is not plain.

    Runs of one seed are a pair, other seeds are left out: all against all would count every run several times as if
    it were independent. A model that was only evaluated has no training seed and stands beside every run of the other.
    Without a common seed as many runs of each are paired in order: which of them stand together does not matter
    to the tests, only that both systems are means of equally many runs; of unequally many, one mean would vary less than the
    other, and the two could not be exchanged.
    """
    one, two = ([s[k] for k in sorted(s)] for s in (a, b))
    if len(one) == 1 and not one[0].trained and two[0].trained:
        return [(one[0], x) for x in two], ""
    if len(two) == 1 and not two[0].trained and one[0].trained:
        return [(x, two[0]) for x in one], ""
    common = sorted(set(a) & set(b))
    if common:
        left = sorted(set(a) ^ set(b))
        return [(a[k], b[k]) for k in common], f"seed {', '.join(map(str, left))} has no partner and is left out" if left else ""
    k = min(len(one), len(two))
    names = [", ".join(str(x.seed) for x in side[:k]) for side in (one, two)]
    return list(zip(one[:k], two[:k], strict=True)), f"no seed in common: seed {names[0]} is compared with seed {names[1]}"


@dataclass(frozen=True)
class Outcome:
    """Two systems on one metric.

    Attributes:
        result: None if they cannot be compared; `note` then says why.
        total: items that either was asked; `result.n` are those that both were.
    """

    result: Paired | None
    total: int
    note: str = ""


def compare_on(metric: str, a: dict[int, Scored], b: dict[int, Scored], bootstrap: bool = True) -> Outcome:
    """Paired test of `b` against `a` (seed → scores) on the items that all their runs share."""
    pairs, note = pair_up(a, b)
    sides = [[x.examples for x in side] for side in zip(*pairs, strict=True)]
    total = len(set().union(*(e for side in sides for e in side)))
    rows = [x.row for pair in pairs for x in pair]
    recipes = list(dict.fromkeys(r["signature"] for r in rows if r and r.get("signature")))
    notes, summed = [note] * bool(note), are_summed([*sides[0], *sides[1]])
    if len(recipes) > 1:
        notes.append(f"scored by different recipes ({' / '.join(recipes)})")
        if summed:
            return Outcome(None, total, f"{notes[-1]}: not compared")
    result = paired_examples(metric, *sides, bootstrap=bootstrap)
    if result is None:
        return Outcome(None, total, "no item in common")
    values = [v[0] for v in sides[0][0].values() if v[0] is not None]
    if not summed and rows[0] and is_number(rows[0]["value"]) and abs(rows[0]["value"] - sum(values) / len(values)) > 1e-6:
        notes.append("means of sentence scores: these runs kept no statistics of the corpus score")
    return Outcome(result, total, "; ".join(notes))
