"""Which language a text is in: CLD3, and the share of its letters in a language's script."""
from __future__ import annotations

import unicodedata
from functools import lru_cache

from xalign.languages import LANGUAGES

# Unicode character names begin with their script; Han is shared by Japanese and Chinese.
_SCRIPTS = {
    "Latn": ("LATIN",), "Cyrl": ("CYRILLIC",), "Grek": ("GREEK",), "Arab": ("ARABIC",), "Deva": ("DEVANAGARI",),
    "Thai": ("THAI",), "Khmr": ("KHMER",), "Hang": ("HANGUL",), "Hans": ("CJK", "IDEOGRAPHIC"),
    "Jpan": ("HIRAGANA", "KATAKANA", "CJK", "IDEOGRAPHIC", "HALFWIDTH KATAKANA", "KATAKANA-HIRAGANA"),
}
# CLD3 guesses below these lengths [R]; a character of an unspaced script says about twice as much.
_MIN_CHARS = {True: 20, False: 10}


@lru_cache(maxsize=1)
def _cld3():
    import gcld3

    return gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)


def detect(text: str) -> str:
    """CLD3's language code of `text`, e.g. ``fi``; ``und`` when it has no idea. 37 µs a call."""
    return _cld3().FindLanguage(text=text).language


def script_share(text: str, lang: str) -> float | None:
    """Share of the letters of `text` that belong to the script of `lang`; None for a text without letters."""
    wanted = _SCRIPTS[LANGUAGES[lang].script]
    names = [unicodedata.name(ch, "") for ch in text if ch.isalpha()]
    return sum(name.startswith(wanted) for name in names) / len(names) if names else None


def judge(text: str, lang: str) -> bool | None:
    """True if `text` is in `lang`, False if not, None where nobody can tell.

    A text with most letters in another script is not in `lang`, however short. A longer one (two words
    and 20 characters; 10 characters in unspaced scripts) is what CLD3 says, confusable neighbours of
    `languages.py` included.
    """
    language = LANGUAGES[lang]
    share = script_share(text, lang)
    if share is None:
        return None
    if share < 0.5:
        return False
    text = text.strip()
    if len(text) < _MIN_CHARS[language.spaced] or language.spaced and " " not in text:
        return None
    return detect(text) in language.cld3
