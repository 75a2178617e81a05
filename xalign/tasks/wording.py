"""The words of the benchmarks' prompts in every language; prompts.yaml says what each key is for."""
from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from xalign.languages import LANGUAGES

FILE = Path(__file__).with_name("prompts.yaml")


@lru_cache(maxsize=1)
def _all() -> dict[str, dict[str, Any]]:
    import yaml

    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def words(lang: str) -> dict[str, Any]:
    """The block of one language (ISO 639-3): key → template or list of words."""
    return _all()[lang]


def language_name(lang: str, told_in: str) -> str:
    """The name of `lang` as `told_in` writes it (CLDR), e.g. ``Deutsch`` for deu in deu."""
    from babel import Locale

    return Locale.parse(LANGUAGES[told_in].locale).languages[LANGUAGES[lang].iso1]


def say(told_in: str, key: str, **fields: object) -> str:
    """The template `key` of language `told_in`, filled.

    Args:
        fields: what its ``{places}`` are filled with, once: braces in a text stay. ``language`` is an ISO 639-3 code.
    """
    if "language" in fields:
        fields["language"] = language_name(str(fields["language"]), told_in)
    return re.sub(r"\{(\w+)\}", lambda hit: str(fields[hit[1]]), words(told_in)[key])
