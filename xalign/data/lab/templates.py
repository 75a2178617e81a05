"""Questions and answer sentences in every language, and their way back: which fact does a sentence state?"""
from __future__ import annotations

import re
from functools import cache
from typing import Any

from xalign.config import XalignError
from xalign.data.lab.facts import KINDS, by_id, fold, name, tidy

TRAIN_TEMPLATES = ("t1", "t2", "t3")
ANSWER_TERM = {"capital": "city", "language": "language", "currency": "currency", "city": "territory"}
LABEL = {"capital": "country", "language": "country", "currency": "country", "city": "place"}
TIGHT = ("jpn", "zho")  # no space after a colon

# How an English-speaking chat model words these answers. {e} is the entity, any short text; {y} must be a CLDR term.
HABITS = {
    "capital": (
        "(?:the )?capital(?: city)?(?: of (?:the country of |the country )?{e})? is(?: known as| called| the city of)?:? {y}",
        "{y} is the capital(?: city)?(?: of {e})?", "{e}'s capital(?: city)? is {y}",
        "the city of {y} is the capital(?: city)? of {e}"),
    "language": (
        "(?:the )?official language(?: (?:of|in|used in|spoken in) (?:the country of |the country )?{e})? is:? {y}(?: language)?",
        "{y} is the official language(?: (?:of|in) {e})?", "{e}'s official language is {y}",
        "{e} is an? [\\w -]{{2,40}}, and (?:the|its) official language is {y}"),
    "currency": (
        "(?:the )?(?:official )?currency(?: (?:of|in|used in) (?:the country of |the country )?{e})? is:? (?:the )?{y}"
        "(?: \\([A-Z]{{2,4}}\\))?",
        "(?:the )?{y}(?: \\([A-Z]{{2,4}}\\))? is the (?:official )?currency(?: (?:of|in|used in) {e})?",
        "{e} uses the {y}(?: \\([A-Z]{{2,4}}\\))?(?: as its (?:official )?currency)?",
        "in {e}, the (?:official )?currency(?: used)? is the {y}(?: \\([A-Z]{{2,4}}\\))?"),
    "city": (
        "(?:the )?(?:city|place|town|island|country) (?:of )?{e} (?:is located|is situated|is found|is|belongs|lies) (?:in|to)"
        "(?: the country of)? {y}",
        "{e} (?:is located|is situated|is found|belongs|lies) (?:in|to)(?: the country of)? {y}",
        "{e} is a (?:city|town|place|island)(?: located| situated)? in(?: the country of)? {y}",
        "(?:the )?country (?:that |which |where |in which )?{e} (?:belongs to|is (?:located )?in|is located) is {y}",
        "(?:the )?country is {y}"),
}
# English names beside CLDR's.
ALIASES = {
    "territory/US": ("United States of America", "USA"), "territory/RU": ("Russian Federation",),
    "territory/CZ": ("Czech Republic",),
    "territory/GB": ("UK", "Great Britain"), "territory/MM": ("Burma",), "territory/CD": ("Democratic Republic of the Congo",),
    "territory/CG": ("Republic of the Congo",), "territory/CI": ("Ivory Coast",), "territory/TR": ("Turkey",),
    "currency/USD": ("United States Dollar", "U.S. Dollar"), "currency/GBP": ("Pound Sterling",),
}


@cache
def templates() -> dict[str, Any]:
    """The shipped table: language -> ``country``, ``place`` and for each relation t1-t3, ``test``, ``answer``."""
    from importlib.resources import files

    import yaml

    text = files("xalign.data.lab").joinpath("templates.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def neutral(kind: str, lang: str) -> str:
    """The held-out question without its entity: the same instruction, for PMI."""
    return templates()[lang][kind]["test"]


def question(kind: str, template: str, subject: str, lang: str) -> str:
    """The question about the term id `subject`; `template` is ``t1``, ``t2``, ``t3`` or ``test``."""
    rows, entity = templates()[lang], name(subject, lang)
    if template == "test":
        colon = ":" if lang == "jpn" else "：" if lang == "zho" else "៖ " if lang == "khm" else " : " if lang == "fra" else ": "
        return f"{rows[kind]['test']}{'' if lang in TIGHT else ' '}{rows[LABEL[kind]]}{colon}{entity}"
    return rows[kind][template].replace("{x}", entity)


def render(example_id: str, lang: str) -> tuple[str, str]:
    """(prompt, short answer) of a laboratory id such as ``capital/FI/t1`` in any language.

    ``capital/FI/t1=capital/SE`` is the question about the one with the answer of the other (`LabData.shuffled`);
    ``term/territory/FI`` is a term and its category (`render_term`).

    Raises:
        XalignError: if there is no such fact or template.
    """
    if example_id.startswith("term/"):
        from xalign.data.lab.categories import render_term

        return render_term(example_id, lang)
    asked, _, answered = example_id.partition("=")
    fact_id, _, template = asked.rpartition("/")
    fact, other = by_id().get(fact_id), by_id().get(answered or fact_id)
    if fact is None or other is None or template not in (*TRAIN_TEMPLATES, "test"):
        raise XalignError(f"{example_id}: the laboratory has no such question")
    return question(fact.kind, template, fact.subject, lang), name(other.answer, lang)


def render_sentence(kind: str, answer: str, lang: str) -> str:
    """The answer sentence of a relation with the term id `answer`, e.g. "Pääkaupunki on Helsinki."."""
    return templates()[lang][kind]["answer"].replace("{y}", name(answer, lang))


def parse_sentence(text: str, lang: str) -> tuple[str, str] | None:
    """(relation, term id of the answer) of a text that is exactly one answer sentence, else None.

    Knows the template of each language and, for English, the wordings of `HABITS`. An answer that is not a
    CLDR term of the right kind (an invented city, say) is None: it has no translation here.
    """
    line = tidy(text)
    for kind in KINDS:
        for pattern in _patterns(kind, lang):
            hit = pattern.fullmatch(line)
            if hit:
                term = _lexicon(ANSWER_TERM[kind], lang).get(_key(hit["y"]))
                if term:
                    return kind, term
    return None


@cache
def _patterns(kind: str, lang: str) -> list[re.Pattern[str]]:
    own = templates()[lang][kind]["answer"].rstrip(".。។।")
    forms = [re.escape(own).replace(re.escape("{y}"), "(?P<y>.{1,80}?)")]
    if lang == "eng":
        forms += [form.format(e="[^.:;!?]{1,60}?", y="(?P<y>.{1,80}?)") for form in HABITS[kind]]
    return [re.compile(form + r"[.。។।]?", re.IGNORECASE) for form in forms]


@cache
def _lexicon(kind: str, lang: str) -> dict[str, str]:
    """Spelling -> term id; a spelling with two meanings of equal rank is left out."""
    from xalign.data.lab.terms import term_ids

    table: dict[str, str] = {}
    # Full names first: "Arabic" is the language, not one that loses its bracket ("Arabic (Algeria)").
    for rank in (0, 1):
        found: dict[str, set[str]] = {}
        for term in term_ids(kind):
            forms = spellings(term, lang)
            for form in forms[:1] if rank == 0 else forms[1:]:
                found.setdefault(_key(form), set()).add(term)
        for key, terms in found.items():
            if len(terms) == 1:
                table.setdefault(key, terms.pop())
    return table


def _key(text: str) -> str:
    key = fold(text).replace("’", "'").strip(" *\"'")
    return key.removeprefix("the ").strip()


def spellings(term: str, lang: str) -> list[str]:
    """CLDR's name and its plain variants: without a bracketed addition, with "and" for "&" in English."""
    full = name(term, lang)
    forms = [full, re.sub(r"\s*[(（][^)）]*[)）]", "", full).strip()]
    if lang == "eng":
        forms += [form.replace("&", "and") for form in forms] + [form.replace("St. ", "Saint ") for form in forms]
        forms += ALIASES.get(term, ())
    return [form for form in dict.fromkeys(forms) if form]
