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

    @property
    def iso1(self) -> str:
        """ISO 639-1 code, e.g. ``ja``."""
        return self.locale.split("_")[0]


def _row(code: str, name: str, script: str, locale: str, family: str, **more: object) -> tuple[str, Language]:
    cld3 = more.pop("cld3", (locale.split("_")[0],))
    flores = more.pop("flores", f"{code}_{script}")
    rbnf = more.pop("rbnf", locale.split("_")[0])
    return code, Language(code, name, script, flores, locale, family, cld3=cld3, rbnf=rbnf, **more)  # type: ignore[arg-type]


LANGUAGES: dict[str, Language] = dict([
    _row("eng", "English", "Latn", "en", "West Germanic"),
    _row("ces", "Czech", "Latn", "cs", "West Slavic"),
    _row("dan", "Danish", "Latn", "da", "North Germanic", cld3=("da", "no")),
    _row("ukr", "Ukrainian", "Cyrl", "uk", "East Slavic"),
    _row("bul", "Bulgarian", "Cyrl", "bg", "South Slavic"),
    _row("fin", "Finnish", "Latn", "fi", "Uralic"),
    _row("hun", "Hungarian", "Latn", "hu", "Uralic"),
    _row("nob", "Norwegian Bokmål", "Latn", "nb", "North Germanic", cld3=("no", "nb", "nn", "da"), rbnf="no"),
    _row("ind", "Indonesian", "Latn", "id", "Austronesian", cld3=("id", "ms")),
    _row("jpn", "Japanese", "Jpan", "ja", "Japonic", bleu="ja-mecab", cld3=("ja",), spaced=False),
    _row("kor", "Korean", "Hang", "ko", "Koreanic", bleu="ko-mecab"),
    _row("por", "Portuguese", "Latn", "pt", "Romance", cld3=("pt", "gl")),
    _row("slv", "Slovenian", "Latn", "sl", "South Slavic", cld3=("sl", "hr", "bs")),
    _row("vie", "Vietnamese", "Latn", "vi", "Austroasiatic"),
    _row("pol", "Polish", "Latn", "pl", "West Slavic"),
    _row("tha", "Thai", "Thai", "th", "Kra-Dai", bleu="char", spaced=False),
    _row("khm", "Khmer", "Khmr", "km", "Austroasiatic", bleu="char", spaced=False),
    _row("fra", "French", "Latn", "fr", "Romance"),
    _row("spa", "Spanish", "Latn", "es", "Romance", cld3=("es", "gl", "ca")),
    _row("deu", "German", "Latn", "de", "West Germanic", cld3=("de", "lb")),
    _row("slk", "Slovak", "Latn", "sk", "West Slavic"),
    _row("ara", "Arabic", "Arab", "ar", "Semitic", flores="arb_Arab"),
    _row("ell", "Greek", "Grek", "el", "Hellenic"),
    _row("hin", "Hindi", "Deva", "hi", "Indo-Aryan"),
    _row("tur", "Turkish", "Latn", "tr", "Turkic"),
    _row("zho", "Chinese", "Hans", "zh_Hans", "Sinitic", flores="zho_Hans", bleu="zh", cld3=("zh", "zh-Latn"), spaced=False, rbnf="zh"),
])
