"""Runs as variants of one configuration: which differ in what, what each is called, which parts it has. No torch."""
from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xalign.analysis.systems import differing
from xalign.config import XalignError
from xalign.languages import LANGUAGES
from xalign.report.against import fits
from xalign.report.contenders import NODES, Contender, Member
from xalign.report.runs import FinishedRun
from xalign.rows import as_roles
from xalign.tables import is_number, number

CHOSEN = ("method", "backbone", *NODES)  # keys that a group's choice has


@dataclass
class Variant:
    """Runs that differ in seed and target language alone.

    Attributes:
        facts: key → value, of the keys that tell variants apart; ``lang`` is empty for one model a language.
        members: target language → its models, one a seed.
    """

    facts: dict[str, Any]
    label: str = ""
    members: dict[str, list[Member]] = field(default_factory=dict)

    @property
    def runs(self) -> list[FinishedRun]:
        return list({id(m.run): m.run for members in self.members.values() for m in members}.values())

    @property
    def contender(self) -> Contender:
        """As tables of runs know it."""
        return Contender(self.label, "", "", "", {}, self.members)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({r.seed for r in self.runs}))


def _configuration(run: FinishedRun) -> dict[str, Any]:
    """What makes the run's model another system; its languages in file names are roles: ``muse/src-tgt.txt``."""
    target = run.langs[0] if len(run.langs) == 1 else ""
    own = dict(run.model("after").identity)
    for name, node in zip(str(own.get("choices.task")).split(","), own.pop("tasks", []), strict=False):
        own |= {f"task.{name}.{k}": v for k, v in node.items()}
    return {k: as_roles(v, run.source, target) if isinstance(v, str) and k != "source" else v for k, v in own.items()} | {
        "lang": list(run.langs) if len(run.langs) > 1 else []}


def _value(run: FinishedRun, key: str) -> Any:
    if key in CHOSEN and f"choices.{key}" not in run.config:
        return run.method if key == "method" else run.backbone if key == "backbone" else None
    own = _configuration(run) | {"source": run.source}
    return own.get(f"choices.{key}" if key in CHOSEN else key, run.config.get(key))


def variants_of(runs: Sequence[FinishedRun], by: Sequence[str] = ()) -> tuple[list[Variant], list[str]]:
    """(the variants in order of first appearance, the keys that tell them apart): `by`, or all in which the trained runs differ.

    Raises:
        XalignError: nothing differs; `by` names a key that no run has, or leaves out one in which runs of a variant differ; two runs of
            one variant, language and seed.
    """
    trained = [r for r in runs if r.trained]
    if not trained:
        raise XalignError("none of these runs has trained a model: an ablation compares trained models")
    configurations = [_configuration(r) for r in trained]
    keys = list(by) or [k.removeprefix("choices.") for k in differing(configurations)]
    for key in by:
        if all(_value(r, key) is None for r in trained):
            near = difflib.get_close_matches(key, {*CHOSEN, "source", "lang", *(k for c in configurations for k in c)}, 3)
            raise XalignError(f"study.by={key}: none of these runs has it{'; nearest: ' + ', '.join(near) if near else ''}")
    found: dict[str, Variant] = {}
    for run in trained:
        facts = {key: _value(run, key) for key in keys}
        variant = found.setdefault(json.dumps(facts, default=str), Variant(facts))
        for lang in run.langs:
            variant.members.setdefault(lang, []).append(Member(run, "after", lang))
    if len(found) < 2:
        raise XalignError(f"{len(trained)} run{'s' * (len(trained) > 1)} of one configuration, nothing differs but seed and language: name "
                          "the runs of a sweep over what is to be left out or changed, such as method.subsets")
    for variant in found.values():
        _refuse_mixed(variant)
    return list(found.values()), keys


def _refuse_mixed(variant: Variant) -> None:
    """Raise XalignError if runs of a variant are no repetitions of each other."""
    first = variant.runs[0]
    for run in variant.runs[1:]:
        if keys := [k.removeprefix("choices.") for k in differing([_configuration(first), _configuration(run)])]:
            raise XalignError(f"{first.folder} and {run.folder} differ in {', '.join(keys)}, which study.by leaves out: add it")
    for lang, members in variant.members.items():
        for k, m in enumerate(members):
            if same := next((o.run.folder for o in members[:k] if o.run.seed == m.run.seed), None):
                raise XalignError(f"{same} and {m.run.folder} are the same variant in {lang} with seed {m.run.seed}: name one of them")


def _listed(value: Any) -> bool:
    """True for a list of names: parts that a variant has."""
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


def parts_of(variants: Sequence[Variant], keys: Sequence[str]) -> dict[str, list[str]]:
    """The parts that some variants have and others lack, as a tick or nothing a variant; a number that is more than on or off as it is."""
    found: dict[str, list[str]] = {}
    for key in keys:
        values = [v.facts[key] for v in variants]
        known = [v for v in values if v is not None]
        name = key.rpartition(".")[2]
        if key == "lang" or key.startswith("task."):
            continue
        if all(map(_listed, known)):
            for part in dict.fromkeys(p for v in sorted(known, key=len, reverse=True) for p in v):
                found[part] = ["" if v is None or part not in v else "✓" for v in values]
        elif all(isinstance(v, bool) for v in known) or all(is_number(v) for v in known) and len({*known, 0}) == 2:
            found[name] = ["✓" if v else "" for v in values]
        elif all(is_number(v) for v in known) and 0 in known:
            found[name] = [number(v) if v else "" for v in values]
    return {name: ticks for name, ticks in found.items() if len(set(ticks)) > 1}


def fullest(variants: Sequence[Variant], keys: Sequence[str], settings: Mapping[str, Any]) -> Variant:
    """Of the variants with these settings the one with most parts; of several one model a language, or the first.

    Raises:
        XalignError: no variant has the settings.
    """
    fit = [i for i, v in enumerate(variants) if any(fits(r, settings) for r in v.runs)]
    if not fit:
        raise XalignError(f"study.full={_settings(settings)}: no variant has these settings; there are "
                          + "; ".join(_settings(v.facts) for v in variants))
    parts = parts_of(variants, keys).values()
    return variants[max(fit, key=lambda i: (sum(bool(ticks[i]) for ticks in parts), not variants[i].facts.get("lang"), -i))]


def _settings(facts: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_plain(value)}" for key, value in facts.items())


def _plain(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), default=str).replace('"', "")


def label_all(variants: Sequence[Variant], keys: Sequence[str], full: Variant, every: bool, names: Mapping[str, str]) -> list[str]:
    """Call each variant by what it lacks or has other than `full`, and `full` by what it lacks itself; then by `names`.

    Args:
        every: by its choices (method, source language ...) too where they are those of `full`.
    Returns:
        The `names` of no variant.
    """
    every = every or not any(isinstance(v.facts[k], (list, bool)) or is_number(v.facts[k]) for v in variants for k in keys if k != "lang")
    most = fullest(variants, keys, {})
    called = [_words(v.facts, (most if v is full else full).facts, every) or "full" for v in variants]
    for v, label in zip(variants, called, strict=True):
        v.label = names.get(label, label)
    labels = [v.label for v in variants]
    for v in variants:
        if labels.count(v.label) > 1:
            v.label += " " + " ".join(f"{k.rpartition('.')[2]}={_plain(x)}" for k, x in v.facts.items())
    return [name for name in names if name not in called]


def _words(facts: Mapping[str, Any], full: Mapping[str, Any], every: bool) -> str:
    """``without mt direction=source``: where `facts` are not those of `full`."""
    words, lacks = [], []
    for key, own in facts.items():
        whole, name = full[key], key.rpartition(".")[2]
        if own is None or own == whole and not (every and (isinstance(own, str) or key == "lang")):
            continue
        if key == "lang":
            words.append(_models(own))
        elif isinstance(own, str):
            words.append(own if key in CHOSEN else f"from {named(own)}" if key == "source" else f"{name}={own}")
        elif _listed(own) and _listed(whole):
            gone, new = [x for x in whole if x not in own], [x for x in own if x not in whole]
            if new or len(gone) > len(own):
                words.append(f"{'only' if gone else 'with'} {' and '.join(own if gone else new)}")
            else:
                lacks += gone
        elif not own and (isinstance(own, bool) or is_number(own)):
            lacks.append(name)
        else:
            words.append(f"with {name}" if own is True else f"{name}={_plain(own)}")
    return " ".join([*([f"without {' and '.join(lacks)}"] if lacks else []), *words])


def named(code: str) -> str:
    """``Finnish`` for ``fin``."""
    return LANGUAGES[code].name if code in LANGUAGES else code


def _models(langs: Sequence[str]) -> str:
    if not langs:
        return "one model a language"
    return f"one model for {' and '.join(map(named, langs)) if len(langs) <= 3 else f'{len(langs)} languages'}"


def ordered(variants: Sequence[Variant], references: Sequence[Variant], full: Variant, names: Mapping[str, str]) -> list[Variant]:
    """References first, then as `names` lists them, then by how much differs from `full`, numbers by size."""
    listed = list(names.values())

    def place(v: Variant) -> tuple[Any, ...]:
        away = sum(len({*own} ^ {*whole}) if _listed(own) and _listed(whole) else own != whole
                   for own, whole in zip(v.facts.values(), full.facts.values(), strict=True))
        numbers = [x for x in v.facts.values() if is_number(x)]
        return all(v is not r for r in references), listed.index(v.label) if v.label in listed else len(listed), away, numbers

    return sorted(variants, key=place)
