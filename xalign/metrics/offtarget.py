"""How much of what was generated is in the wrong language."""
from __future__ import annotations

from collections.abc import Sequence

from xalign.languages import LANGUAGES
from xalign.metrics.base import Metric


class OffTarget(Metric):
    """Share of texts in another language than the expected one; texts that nobody can judge are left out.

    Longer texts are judged by script and CLD3 (`xalign.langid.judge`; neighbours that CLD3 takes for each other,
    `languages.CONFUSABLE`, count as one language), short ones by script alone, and
    only where the expected script is not Latin: there a wrong and a right one can be told apart.
    """

    name = "off_target"

    @property
    def signature(self) -> str:
        from importlib.metadata import version

        return f"cld3:{version('cld3-py')}|short:by-script|unjudged:left-out"

    def per_example(self, texts: Sequence[str], languages: Sequence[str]) -> list[float | None]:
        """1 for a text in the wrong language, 0 in the right one, None where it cannot be told."""
        return [self._one(text, lang) for text, lang in zip(texts, languages, strict=True)]

    def _one(self, text: str, lang: str) -> float | None:
        from xalign.langid import judge, script_share

        # A short Latin text says too little, even when its script is wrong: judging only wrong ones would bias the rate.
        found = judge(text, lang)
        latin = LANGUAGES[lang].script == "Latn"
        if found is None:
            share = script_share(text, lang)
            return None if latin or share is None else 0.0
        short = len(text.strip()) < 20
        return None if latin and short and not found else float(not found)


def judged_language(answer: str, lang: str) -> tuple[float | None, str | None]:
    """(1 if the answer is not in `lang`, 0 if it is, None if nobody can tell; its language, ``und`` where that cannot be named)."""
    from xalign.langid import guess, script_share

    wrong = OffTarget().per_example([answer], [lang])[0]
    if not wrong:
        return wrong, None if wrong is None else lang
    found = guess(answer)  # of a text that is in no language, CLD3 names one of another script
    named = found != lang and (found not in LANGUAGES or (script_share(answer, found) or 0) >= 0.5)
    return wrong, found if named else "und"
