"""One row per language: everything that depends on the language is here. A new language is a new row."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """A language as every part of xalign sees it.

    Attributes:
        code: ISO 639-3, e.g. ``jpn``.
        name: English name, as instructions write it.
        script: ISO 15924 script, e.g. ``Jpan``.
        flores: FLORES-200 / NLLB code.
        locale: CLDR locale (babel).
        family: genealogical family or branch, as prompts write it.
        bleu: sacrebleu tokenizer that segments the language when flores200 is not available.
        cld3: codes that CLD3 may answer for it (confusable neighbours included).
        spaced: words are separated by spaces.
        rbnf: locale of `unicode_rbnf`.
        articles: pattern of what MKQA's official script takes out of answers, written so that it does what theirs
            does (in French "les" loses its "le"); MLQA's has the same one for the languages that it knows.
        rouge: how ROUGE finds words: ``words``, or a segmenter of `xalign.metrics.rouge`.
        stemmer: ROUGE's, by the name that XL-Sum's scorer has for the language; empty: none.
    """

    code: str
    name: str
    script: str
    flores: str
    locale: str
    family: str
    bleu: str = "13a"
    cld3: tuple[str, ...] = ()
    spaced: bool = True
    rbnf: str = ""
    articles: str = ""
    rouge: str = "words"
    stemmer: str = ""

    @property
    def iso1(self) -> str:
        """ISO 639-1 code, e.g. ``ja``."""
        return self.locale.split("_")[0]


# CLD3's codes of languages that it often takes for each other: Indonesian and Malay; Norwegian and Danish; Croatian, Serbian, Bosnian.
CONFUSABLE = (("id", "ms"), ("no", "nb", "nn", "da"), ("hr", "sr", "bs"))


def _row(code: str, name: str, script: str, locale: str, family: str, **more: object) -> tuple[str, Language]:
    iso1 = locale.split("_")[0]
    cld3 = next((group for group in CONFUSABLE if iso1 in group), (iso1,))
    flores = more.pop("flores", f"{code}_{script}")
    rbnf = more.pop("rbnf", iso1)
    return code, Language(code, name, script, flores, locale, family, cld3=cld3, rbnf=rbnf, **more)  # type: ignore[arg-type]


LANGUAGES: dict[str, Language] = dict([
    _row("eng", "English", "Latn", "en", "West Germanic", articles=r"\b(a|an|the)\b", rouge="rouge-score", stemmer="porter"),
    _row("ces", "Czech", "Latn", "cs", "West Slavic"),
    _row("dan", "Danish", "Latn", "da", "North Germanic", articles=r"\b(en|et)\b", stemmer="danish"),
    _row("ukr", "Ukrainian", "Cyrl", "uk", "East Slavic"),
    _row("bul", "Bulgarian", "Cyrl", "bg", "South Slavic"),
    _row("fin", "Finnish", "Latn", "fi", "Uralic", articles=r"\b(se|yks|yksi)\b", stemmer="finnish"),
    _row("hun", "Hungarian", "Latn", "hu", "Uralic", articles=r"\b(a|az|egy)\b", stemmer="hungarian"),
    _row("nob", "Norwegian Bokmål", "Latn", "nb", "North Germanic", rbnf="no", articles=r"\b(en|et|ei)\b", stemmer="norwegian"),
    _row("ind", "Indonesian", "Latn", "id", "Austronesian"),
    _row("jpn", "Japanese", "Jpan", "ja", "Japonic", bleu="ja-mecab", spaced=False, rouge="mecab"),
    _row("kor", "Korean", "Hang", "ko", "Koreanic", bleu="ko-mecab"),
    _row("por", "Portuguese", "Latn", "pt", "Romance", articles=r"\b(o|a|os|as|um|uma|uns|umas)\b", stemmer="portuguese"),
    _row("slv", "Slovenian", "Latn", "sl", "South Slavic"),
    _row("vie", "Vietnamese", "Latn", "vi", "Austroasiatic", articles=r"\b(của|là|cái|chiếc|những)\b"),
    _row("pol", "Polish", "Latn", "pl", "West Slavic"),
    _row("tha", "Thai", "Thai", "th", "Kra-Dai", bleu="char", spaced=False, rouge="newmm"),
    _row("khm", "Khmer", "Khmr", "km", "Austroasiatic", bleu="char", spaced=False, rouge="char"),
    _row("fra", "French", "Latn", "fr", "Romance", articles=r"\b(le|la|du|de|un)", stemmer="french"),
    _row("spa", "Spanish", "Latn", "es", "Romance", articles=r"\b(un|una|unos|unas|el|la|los|las)\b", stemmer="spanish"),
    _row("deu", "German", "Latn", "de", "West Germanic",
         articles=r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b", stemmer="german"),
    _row("slk", "Slovak", "Latn", "sk", "West Slavic"),
    _row("ara", "Arabic", "Arab", "ar", "Semitic", flores="arb_Arab", articles="ال", stemmer="arabic"),
    _row("ell", "Greek", "Grek", "el", "Hellenic"),
    _row("hin", "Hindi", "Deva", "hi", "Indo-Aryan", stemmer="hindi"),
    _row("tur", "Turkish", "Latn", "tr", "Turkic", stemmer="turkish"),
    _row("zho", "Chinese", "Hans", "zh_Hans", "Sinitic", flores="zho_Hans", bleu="zh", spaced=False, rbnf="zh", rouge="jieba"),
])
