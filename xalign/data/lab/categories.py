"""Term classification: is this name a country, a city, a language, a currency or a unit? CLDR's terms in 26 languages.

The same terms are used in every language. A term is left out everywhere if in any language it is also a name of
another category ("Singapore", or a language that is called like its country), so that one answer is right. Scripts
are no category: nearly all are named like a language, and about twenty terms would be left.
"""
from __future__ import annotations

from collections import Counter
from functools import cache
from random import Random

from xalign.config import XalignError
from xalign.data.examples import Example
from xalign.data.lab.facts import TEST_SHARE, chance, cities, fold, split_of
from xalign.data.lab.items import ChoiceItem, interleave
from xalign.data.lab.terms import terms
from xalign.languages import LANGUAGES

# CLDR's territories are countries and their dependencies.
KIND = {"country": "territory", "city": "city", "language": "language", "currency": "currency", "unit": "unit"}
CATEGORIES = tuple(KIND)  # as a model reads them, English in every language
TEST_TERMS = 420   # 84 of each category
CITIES_A_TERRITORY = 2  # no country dominates the cities
# What a term is compared with for PMI: it says nothing, and every tokenizer knows it.
NEUTRAL = "?"
OCEANS = ("city/Antarctica/", "city/Atlantic/", "city/Indian/", "city/Pacific/")  # zones there are mostly named after islands
# CLDR's placeholders, a grouping, a unit that is displayed as "light", and islands and regions among the zone cities.
NO_TERM = {"language/mul", "language/und", "language/zxx", "currency/XXX", "territory/QO", "unit/speed-light-speed",
           "city/America/Antigua", "city/America/Bahia", "city/America/Grand_Turk", "city/America/Noronha", "city/America/St_Kitts",
           "city/America/St_Thomas", "city/America/St_Vincent", "city/America/Thule", "city/America/Tortola", "city/Asia/Kamchatka",
           "city/Asia/Sakhalin", "city/Australia/Lindeman", "city/Australia/Lord_Howe"}


def cluster_of(term: str) -> str:
    """The territory of a territory or city, which decides the split; any other term stands for itself."""
    kind, _, code = term.partition("/")
    return code if kind == "territory" else cities()[code] if kind == "city" else term


def term_split(term: str) -> str:
    """``train`` or ``test``, the same in every language; places go with their territory."""
    cluster = cluster_of(term)
    return split_of(cluster) if cluster != term else "test" if chance("term", term) < TEST_SHARE else "train"


@cache
def usable(split: str) -> dict[str, tuple[str, ...]]:
    """category → its unambiguous terms of one side, in a constant shuffled order."""
    meant: dict[tuple[str, str], set[str]] = {}  # (language, spelling) → kinds
    for lang in LANGUAGES:
        for kind in KIND.values():
            for text in terms(lang)[kind].values():
                meant.setdefault((lang, fold(text)), set()).add(kind)
    words = {fold(category) for category in CATEGORIES}
    out = {}
    for category, kind in KIND.items():
        common = set.intersection(*({*terms(lang)[kind]} for lang in LANGUAGES)) - NO_TERM
        places: Counter[str] = Counter()
        own = []
        for term in sorted(common, key=lambda t: chance("term order", t)):
            folded = [(lang, fold(terms(lang)[kind][term])) for lang in LANGUAGES]
            if term_split(term) != split or term.startswith(OCEANS) or any(len(meant[f]) > 1 or f[1] in words for f in folded):
                continue
            places[cluster_of(term)] += 1
            if kind != "city" or places[cluster_of(term)] <= CITIES_A_TERRITORY:
                own.append(term)
        out[category] = tuple(own)
    return out


def category_of(term: str) -> str:
    """The category of a term id such as ``territory/FI``."""
    kind = term.partition("/")[0]
    return next(category for category, own in KIND.items() if own == kind)


def term_items(lang: str, source: str, limit: int = TEST_TERMS) -> list[ChoiceItem]:
    """Terms of the test side with their categories in turn, equally many of each; the first `limit` of `TEST_TERMS`.

    The question is the term's name alone, the options are `CATEGORIES` in English, the neutral question is `NEUTRAL`.
    """
    each = [row[:TEST_TERMS // len(CATEGORIES)] for row in usable("test").values()]
    items = []
    for term in interleave(each)[:limit]:
        category = category_of(term)
        here, there = (terms(code)[KIND[category]][term] for code in (lang, source))
        items.append(ChoiceItem(f"term/{term}", lang, category, cluster_of(term), here, CATEGORIES, CATEGORIES.index(category),
                                NEUTRAL, here.casefold() != there.casefold()))
    return items


def term_examples(lang: str, limit: int, seed: int, shuffled: bool = False) -> list[Example]:
    """Up to `limit` terms of the training side with their categories in turn; the seed picks which.

    Args:
        shuffled: every term with a wrong category, each of the others equally often (``term/territory/FI=city``).
    """
    rng = Random(f"terms {seed}")
    rows = [[(term, k) for k, term in enumerate(rng.sample(own, len(own)))] for own in usable("train").values()]
    turns = [row[i] for i in range(max(map(len, rows))) for row in rows if i < len(row)]
    out = []
    for term, k in turns[:limit]:
        code, at = f"term/{term}", CATEGORIES.index(category_of(term))
        if shuffled:
            code += "=" + CATEGORIES[(at + 1 + k % (len(CATEGORIES) - 1)) % len(CATEGORIES)]
        prompt, response = render_term(code, lang)
        out.append(Example(code, lang, prompt, response, source="lab:term", group=cluster_of(term), options=CATEGORIES))
    return out


def render_term(example_id: str, lang: str) -> tuple[str, str]:
    """(name in `lang`, English category) of ``term/territory/FI``; ``term/territory/FI=city`` answers with another category.

    Raises:
        XalignError: if there is no such term or category.
    """
    term, _, answered = example_id.removeprefix("term/").partition("=")
    kind = term.partition("/")[0]
    text = terms(lang).get(kind, {}).get(term)
    if kind not in KIND.values() or text is None or answered not in ("", *CATEGORIES):
        raise XalignError(f"{example_id}: the laboratory has no such term")
    return text, answered or category_of(term)
