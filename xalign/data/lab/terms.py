"""CLDR's terms as a phrase table: territories, languages, currencies, cities, scripts, months, weekdays, units."""
from __future__ import annotations

from functools import cache

from xalign.data.lab.facts import cities, locale, name, territories, tidy
from xalign.languages import LANGUAGES

NAMED = ("territory", "language", "currency", "city")


@cache
def term_ids(kind: str) -> tuple[str, ...]:
    """Ids of the terms of a kind of `NAMED` that have a name in every language."""
    if kind == "territory":
        codes = list(territories())
    elif kind == "city":
        codes = list(cities())
    else:
        table = {"language": "languages", "currency": "currencies"}[kind]
        codes = [c for c in getattr(locale("eng"), table) if all(c in getattr(locale(lang), table) for lang in LANGUAGES)]
        if kind == "language":  # "en_GB" and the like are varieties, not languages
            codes = [c for c in codes if "_" not in c]
    return tuple(f"{kind}/{code}" for code in sorted(codes))


@cache
def terms(lang: str) -> dict[str, dict[str, str]]:
    """kind -> {term id: name in `lang`}."""
    where = locale(lang)
    table = {kind: {term: name(term, lang) for term in term_ids(kind)} for kind in NAMED}
    table["script"] = {f"script/{k}": tidy(v) for k, v in where.scripts.items()}
    for kind, forms in (("month", where.months), ("weekday", where.days)):
        table[kind] = {f"{kind}/{k}": tidy(v) for k, v in forms["stand-alone"]["wide"].items()}
    table["unit"] = {}
    for unit, styles in where.unit_display_names.items():
        text = styles.get("long") or styles.get("short") or ""  # CLDR leaves out a long form that equals the short one
        # Some units are displayed by their own id: no translation.
        if text and unit not in text:
            table["unit"][f"unit/{unit}"] = tidy(text)
    return {kind: {k: v for k, v in rows.items() if v} for kind, rows in table.items()}


def phrase_table(src: str, tgt: str) -> dict[str, str]:
    """Source term -> target term; of two terms with one spelling the first kind wins."""
    source, target = terms(src), terms(tgt)
    table: dict[str, str] = {}
    for kind, rows in source.items():
        for term, text in rows.items():
            if term in target[kind]:
                table.setdefault(text, target[kind][term])
    return table


def term_kinds(lang: str) -> dict[str, list[str]]:
    """kind -> the names of that kind in `lang`, for wrong terms of the same kind."""
    return {kind: sorted(set(rows.values())) for kind, rows in terms(lang).items()}
