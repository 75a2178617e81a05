"""Parallel text: CLDR phrases and names, rendered in both languages from one record, and translated sentences."""
from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from xalign.data.lab.facts import chance, locale, tidy
from xalign.data.lab.terms import NAMED, term_ids, terms

PHRASE_KINDS = ("date", "duration", "list", "measure", "name")
TEST_PHRASES = 0.2
TEST_SENTENCES = 0.2
DURATIONS = ("year", "month", "week", "day", "hour", "minute", "second")
MEASURES = ("length-kilometer", "length-meter", "length-centimeter", "mass-kilogram", "mass-gram", "volume-liter",
            "speed-kilometer-per-hour", "area-square-kilometer", "digital-gigabyte", "energy-kilowatt-hour", "electric-volt",
            "power-watt", "temperature-celsius", "angle-degree")
MIN_WORDS = 5


@dataclass(frozen=True)
class Pair:
    """One text in two languages. kind: ``sentence``, ``phrase`` or ``names``."""

    id: str
    src: str
    tgt: str
    kind: str


def _held_out(*parts: object) -> str:
    return "test" if chance("phrase", *parts) < TEST_PHRASES else "train"


def _unit(lang: str, value: int, unit: str) -> str:
    from babel.units import format_unit

    text = format_unit(value, unit, length="long", locale=locale(lang))
    if unit in text:  # CLDR leaves out a long form that equals the short one; babel then prints the unit's id
        text = format_unit(value, unit, length="short", locale=locale(lang))
    return tidy(text)


def _list(lang: str, words: list[str]) -> str:
    from babel.lists import format_list

    return tidy(format_list(words, locale=locale(lang)))


def _date(rng: Random, split: str) -> tuple[str, Callable[[str], str]]:
    from babel.dates import format_date

    while True:
        day = datetime.date(1900, 1, 1) + datetime.timedelta(days=rng.randrange(50_000))
        form = rng.choice(("long", "full"))
        if _held_out("date", day.isoformat()) == split:
            return f"date/{day}/{form}", lambda lang: tidy(format_date(day, form, locale(lang)))


def _duration(rng: Random, split: str) -> tuple[str, Callable[[str], str]]:
    while True:
        first = rng.randrange(len(DURATIONS) - 1)
        parts = ((rng.randint(1, 60), DURATIONS[first]), (rng.randint(1, 60), DURATIONS[first + 1]))
        parts = parts[: rng.choice((1, 2))]
        code = "+".join(f"{n}{unit}" for n, unit in parts)
        if _held_out("duration", code) == split:
            return f"duration/{code}", lambda lang: _list(lang, [_unit(lang, n, f"duration-{u}") for n, u in parts])


def _measure(rng: Random, split: str) -> tuple[str, Callable[[str], str]]:
    while True:
        value, unit = rng.randint(1, 999), rng.choice(MEASURES)
        if _held_out("measure", value, unit) == split:
            return f"measure/{value}/{unit}", lambda lang: _unit(lang, value, unit)


@cache
def _terms_of(split: str, kind: str) -> tuple[str, ...]:
    """Terms for phrases. The facts' own names are in every training set (see `name_lists`), so tests hold the others."""
    entities = set(_entities(kind))
    return tuple(t for t in term_ids(kind) if (_held_out("term", t) == "test" and t not in entities) == (split == "test"))


def _kinds_of(split: str) -> list[str]:
    return [kind for kind in NAMED if len(_terms_of(split, kind)) >= 8]


def _listing(rng: Random, split: str) -> tuple[str, Callable[[str], str]]:
    # Only names of one kind stand together: a country beside its city would be a fact.
    kind = rng.choice(_kinds_of(split))
    picked = rng.sample(_terms_of(split, kind), rng.choice((2, 3, 4)))
    return f"list/{'+'.join(picked)}", lambda lang: _list(lang, [terms(lang)[kind][t] for t in picked])


def _name(rng: Random, split: str) -> tuple[str, Callable[[str], str]]:
    kind = rng.choice(_kinds_of(split))
    term = rng.choice(_terms_of(split, kind))
    return f"name/{term}", lambda lang: terms(lang)[kind][term]


def phrases(src: str, tgt: str, split: str, n: int, seed: int = 0) -> list[Pair]:
    """`n` different CLDR phrases: dates, durations, lists, measures and names in turn.

    The values (the day, the amount and unit, the term) of ``train`` and ``test`` are disjoint. Phrases
    that read the same in both languages are left out.
    """
    makers = {"date": _date, "duration": _duration, "list": _listing, "measure": _measure, "name": _name}
    rng = Random(f"phrases {split} {seed}")
    found: dict[str, Pair] = {}
    for attempt in range(60 * n):
        if len(found) == n:
            break
        code, say = makers[PHRASE_KINDS[attempt % len(PHRASE_KINDS)]](rng, split)
        a, b = say(src), say(tgt)
        if a != b:
            found.setdefault(code, Pair(code, a, b, "phrase"))
    return list(found.values())


def names(src: str, tgt: str) -> list[Pair]:
    """Every entity's name, those of test territories too: names, never facts."""
    source, target = terms(src), terms(tgt)
    return [Pair(f"name/{t}", source[kind][t], target[kind][t], "names") for kind in NAMED for t in _entities(kind)]


@cache
def _entities(kind: str) -> tuple[str, ...]:
    """Terms that the facts use as subject or answer."""
    from xalign.data.lab.facts import facts

    used = {t for f in facts() for t in (f.subject, f.answer)}
    return tuple(t for t in term_ids(kind) if t in used)


def name_lists(src: str, tgt: str, passes: float = 1.0, seed: int = 0, size: int = 6) -> list[Pair]:
    """All names in CLDR lists of `size`, so that one row aligns several.

    Args:
        passes: how often each name occurs; 2.5 gives two full passes and half of a third, each shuffled anew.
    """
    rows = []
    for turn in range(int(passes) + (passes % 1 > 0)):
        share = min(1.0, passes - turn)
        for kind in NAMED:
            rng = Random(f"names {seed} {turn} {kind}")
            picked = list(_entities(kind))
            rng.shuffle(picked)
            picked = picked[: round(share * len(picked))]
            for start in range(0, len(picked), size):
                group = picked[start:start + size]
                rows.append(Pair(f"names/{turn}/{kind}/{start // size}", _list(src, [terms(src)[kind][t] for t in group]),
                                 _list(tgt, [terms(tgt)[kind][t] for t in group]), "names"))
    return rows


def sentences(folder: Path, src: str, tgt: str, split: str) -> list[Pair]:
    """Clean translated sentences of the Home Assistant artifact, split by id.

    A sentence has at least five words in English, no placeholder, markup or link, and differs from the
    source text; each English text and each target text occurs once.
    """
    def load(lang: str) -> dict[str, str]:
        return json.loads((Path(folder) / f"{lang}.json").read_text(encoding="utf-8"))

    english = load("eng")
    source, target = english if src == "eng" else load(src), english if tgt == "eng" else load(tgt)
    seen: set[str] = set()
    rows = []
    for key in sorted(english):
        texts = [tidy(t.get(key, "")) for t in (english, source, target)]
        if len(texts[0].split()) < MIN_WORDS or not all(map(_clean, texts)) or texts[1] == texts[2]:
            continue
        marks = {f"e {texts[0].casefold()}", f"s {texts[1].casefold()}", f"t {texts[2].casefold()}"}
        # A text left in English is no translation.
        untranslated = any(lang != "eng" and text.casefold() == texts[0].casefold() for lang, text in zip((src, tgt), texts[1:]))
        if untranslated or marks & seen:
            continue
        seen |= marks
        # Decided by the English text, so that the languages agree and a repeated text stays on one side.
        if ("test" if chance("sentence", texts[0].casefold()) < TEST_SENTENCES else "train") == split:
            rows.append(Pair(f"ha/{key}", texts[1], texts[2], "sentence"))
    return rows


def _clean(text: str) -> bool:
    return bool(text) and not re.search(r"[{}<>\[\]`|]|https?:|www\.|%s|\\|__|^\W*$", text)
