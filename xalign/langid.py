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
# CLD3 guesses below these [R]: of correct CLDR terms of two or three words it places 10-70 % elsewhere.
# An unspaced script says more with each character.
_MIN_CHARS = {True: 20, False: 10}
_MIN_WORDS = 4


@lru_cache(maxsize=1)
def _cld3():
    import gcld3

    return gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)


def script_share(text: str, lang: str) -> float | None:
    """Share of the letters of `text` that belong to the script of `lang`; None for a text without letters."""
    wanted = _SCRIPTS[LANGUAGES[lang].script]
    names = [unicodedata.name(ch, "") for ch in text if ch.isalpha()]
    return sum(name.startswith(wanted) for name in names) / len(names) if names else None


def judge(text: str, lang: str) -> bool | None:
    """True if `text` is in `lang`, False if not, None where nobody can tell.

    A text with most letters in another script is not in `lang`, however short. A longer one (four words
    and 20 characters; 10 characters in unspaced scripts) is what CLD3 says, confusable neighbours of
    `languages.py` included; None where CLD3 itself calls its answer unreliable.
    """
    language = LANGUAGES[lang]
    share = script_share(text, lang)
    if share is None:
        return None
    if share < 0.5:
        return False
    if language.script in ("Thai", "Khmr", "Hang", "Grek"):  # one language writes it; CLD3 takes Thai and Khmer for Marathi
        return True
    text = text.strip()
    if len(text) < _MIN_CHARS[language.spaced] or language.spaced and len(text.split()) < _MIN_WORDS:
        return None
    found = _cld3().FindLanguage(text=text)
    if not found.is_reliable:
        return None
    # CLD3 takes one Chinese text in fourteen for something else, but never Japanese for Chinese
    return found.language != "ja" if language.script == "Hans" else found.language in language.cld3


def guess(text: str) -> str:
    """ISO 639-3 code of the language that CLD3 takes `text` for (its own code, if `languages.py` lacks it); ``und`` if it is not sure."""
    found = _cld3().FindLanguage(text=text)
    if not found.is_reliable:
        return "und"
    own = [code for code, language in LANGUAGES.items() if found.language == language.iso1]
    return (own + [code for code, language in LANGUAGES.items() if found.language in language.cld3] + [found.language])[0]
