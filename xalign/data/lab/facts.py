"""The laboratory's facts: the same entities under the same ids in every language, split by territory.

Names come from CLDR (babel), capitals from countryinfo; pinning those two packages pins the facts.
A fact is dropped in every language when its answer gives itself away in any of them (the name of the one
inside the name of the other), so that items are the same everywhere. Source: design of the laboratory.
"""
from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from xalign.languages import LANGUAGES

KINDS = ("capital", "language", "currency", "city")
RULES = 1  # raise it when the code of this folder makes other facts, items or pairs of the same names
TEST_SHARE = 0.7
PLACES_A_TERRITORY = 20
# No answer is gold in more than a quarter of a relation's test items: always giving it then earns chance.
GOLD_SHARE = 0.25
# Sovereignty over the place is disputed, so that no single answer is a fact.
DISPUTED = {"Asia/Jerusalem", "Asia/Hebron", "Asia/Gaza", "Asia/Famagusta", "Europe/Simferopol", "Africa/El_Aaiun"}
# countryinfo's capital is outdated, disputed, or the territory has none.
NO_CAPITAL = {"BI", "EH", "IL", "LK", "PS", "TK"}
# Parts of countries that ISO only reserves a code for, Antarctica, and CLDR's groupings.
NO_TERRITORY = {"AC", "AQ", "CP", "CQ", "DG", "EA", "EU", "EZ", "IC", "TA", "UN", "XA", "XB", "ZZ"}
# The zone's id is the only English form in CLDR and is not the city's English name.
RESPELLED = {"Europe/Tirane": "Tirana"}


@dataclass(frozen=True)
class Fact:
    """One relation between an entity and its answer.

    Attributes:
        id: ``capital/FI``, ``language/FI``, ``currency/FI`` or ``city/Europe/Helsinki`` in every language.
        kind: one of `KINDS`.
        territory: the CLDR territory that decides the split; the cluster of paired tests.
        subject, answer: term ids, see `name`.
        split: ``train`` or ``test``.
    """

    id: str
    kind: str
    territory: str
    subject: str
    answer: str
    split: str


@cache
def versions() -> dict[str, Any]:
    """What decides the facts and their wording, for stage keys: packages, templates, and the rules of this folder."""
    from importlib.metadata import version
    from pathlib import Path

    templates = hashlib.sha256(Path(__file__).with_name("templates.yaml").read_bytes()).hexdigest()[:16]
    return {"babel": version("babel"), "countryinfo": version("countryinfo"), "templates": templates, "rules": RULES}


def chance(*parts: object) -> float:
    """A constant pseudo-random number in [0, 1) of the parts: the same on every machine, in every run."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:7], "big") / 2**56


@cache
def locale(lang: str) -> Any:
    """The babel Locale of a language of `LANGUAGES`."""
    from babel import Locale

    return Locale.parse(LANGUAGES[lang].locale)


def split_of(territory: str) -> str:
    """``train`` or ``test``: by the territory alone, so the same for every relation, language and seed."""
    return "test" if chance("split", territory) < TEST_SHARE else "train"


def name(term: str, lang: str) -> str:
    """CLDR's name of a term id (``territory/FI``, ``language/fi``, ``currency/EUR``, ``city/Europe/Helsinki``) in `lang`.

    Raises:
        KeyError: if CLDR has no name for it.
    """
    kind, _, code = term.partition("/")
    if kind == "city":
        city = locale(lang).time_zones.get(code, {}).get("city")
        if city is None and LANGUAGES[lang].script != "Latn":
            raise KeyError(term)
        # Without an entry, CLDR's rule is the last part of the id; it is spelled in Latin letters.
        return tidy(city or RESPELLED.get(code) or code.rsplit("/", 1)[-1].replace("_", " "))
    table = {"territory": "territories", "language": "languages", "currency": "currencies"}[kind]
    return tidy(getattr(locale(lang), table)[code])


def tidy(text: str) -> str:
    """Text without invisible characters (zero-width spaces of Khmer, directional marks) and with plain spaces."""
    text = re.sub(r"[\u200b\u200e\u200f\u2060\ufeff\u061c]", "", text)
    return re.sub(r"\s+", " ", text).strip()


def fold(text: str) -> str:
    """Lower case without accents, for comparing spellings."""
    return "".join(c for c in unicodedata.normalize("NFD", text.casefold()) if not unicodedata.combining(c))


@cache
def territories() -> tuple[str, ...]:
    """Two-letter territories that have a name in every language, without `NO_TERRITORY`."""
    codes = (t for t in locale("eng").territories if len(t) == 2 and t.isalpha() and t not in NO_TERRITORY)
    return tuple(sorted(t for t in codes if all(t in locale(lang).territories for lang in LANGUAGES)))


@cache
def cities() -> dict[str, str]:
    """CLDR's zone cities that have a name in every language: zone id -> territory."""
    from babel.core import get_global

    known = set(territories())
    zones = {z: t for z, t in sorted(get_global("zone_territories").items()) if t in known and "/" in z}
    written = [lang for lang in LANGUAGES if LANGUAGES[lang].script != "Latn"]
    zones = {z: t for z, t in zones.items() if all("city" in locale(lang).time_zones.get(z, {}) for lang in written)}
    # One English name, two territories: the question would have two answers.
    count = Counter(fold(name(f"city/{z}", "eng")) for z in zones)
    return {z: t for z, t in zones.items() if count[fold(name(f"city/{z}", "eng"))] == 1}


def _leaks(subject: str, answer: str) -> bool:
    for lang in LANGUAGES:
        a, b = fold(name(subject, lang)), fold(name(answer, lang))
        if a in b or b in a:
            return True
    # "Dominican Peso": the stem gives it away
    stems = [w[:4] for w in re.findall(r"\w{4,}", fold(name(subject, "eng")))]
    return any(w[:4] in stems for w in re.findall(r"\w{4,}", fold(name(answer, "eng"))))


def _candidates() -> list[tuple[str, str, str, str, str]]:
    """(id, kind, territory, subject, answer) before leaks are dropped."""
    from babel.core import get_global
    from countryinfo import all_countries

    money, spoken, zones = get_global("territory_currencies"), get_global("territory_languages"), cities()
    capitals = {c.info()["ISO"]["alpha2"]: c.info().get("capital") or "" for c in all_countries()}
    by_territory: dict[str, list[str]] = {}
    for zone, territory in zones.items():
        by_territory.setdefault(territory, []).append(zone)
    rows = []
    for t in territories():
        subject = f"territory/{t}"
        for zone in by_territory.get(t, []):
            if t not in NO_CAPITAL and zone not in DISPUTED and fold(name(f"city/{zone}", "eng")) == fold(capitals.get(t, "")):
                rows.append((f"capital/{t}", "capital", t, subject, f"city/{zone}"))
        official = [k for k, v in spoken.get(t, {}).items() if v.get("official_status") == "official"]
        if len(official) == 1 and all(official[0] in locale(lang).languages for lang in LANGUAGES):
            rows.append((f"language/{t}", "language", t, subject, f"language/{official[0]}"))
        tender = [code for code, _, until, legal in money.get(t, []) if until is None and legal]
        if len(tender) == 1 and all(tender[0] in locale(lang).currencies for lang in LANGUAGES):
            rows.append((f"currency/{t}", "currency", t, subject, f"currency/{tender[0]}"))
        rows += [(f"city/{zone}", "city", t, f"city/{zone}", subject) for zone in by_territory.get(t, []) if zone not in DISPUTED]
    return rows


@cache
def facts() -> tuple[Fact, ...]:
    """All facts, by kind and in a constant shuffled order."""
    clean = [Fact(*row, split_of(row[2])) for row in _candidates() if not _leaks(row[3], row[4])]
    clean.sort(key=lambda f: (KINDS.index(f.kind), chance("order", f.id)))
    kept: list[Fact] = []
    for kind in KINDS:
        places: Counter[str] = Counter()
        for fact in (f for f in clean if f.kind == kind):
            places[fact.territory] += 1
            if kind != "city" or places[fact.territory] <= PLACES_A_TERRITORY:
                kept.append(fact)
    for kind in KINDS:
        test = [f for f in kept if f.kind == kind and f.split == "test"]
        golds = Counter(f.answer for f in test)
        while (top := golds.most_common(1)[0])[1] > GOLD_SHARE * golds.total():
            last = next(f for f in reversed(kept) if f.kind == kind and f.split == "test" and f.answer == top[0])
            kept.remove(last)
            golds[top[0]] -= 1
    return tuple(kept)


@cache
def by_id() -> dict[str, Fact]:
    """Facts by id."""
    return {f.id: f for f in facts()}
