"""Exact match and token F1 of extracted or short answers, as the benchmarks' own scripts normalise them."""
from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from xalign.languages import LANGUAGES
from xalign.metrics.base import Metric

MLQA_LANGUAGES = ("ara", "deu", "eng", "hin", "spa", "vie", "zho")


def is_punctuation(ch: str) -> bool:
    """Unicode's punctuation, and the ASCII signs that Unicode calls symbols ($, +, < ...)."""
    return ch in string.punctuation or unicodedata.category(ch)[0] == "P"


@dataclass(frozen=True)
class Scheme:
    """How a benchmark splits answers into tokens.

    Attributes:
        recipe: what the signature says.
        tokens: text → normalised tokens.
        unanswerable: the benchmark has questions without an answer (gold: the empty string).
    """

    recipe: str
    tokens: Callable[[str], list[str]]
    unanswerable: bool = False


def _tokens(text: str, punctuation: Callable[[str], bool], articles: str, unit: str) -> list[str]:
    text = "".join(ch for ch in text.lower() if not punctuation(ch))
    if articles:
        text = re.sub(articles, " ", text)
    if unit == "character":
        return [ch for ch in text if ch.strip()]
    return (re.sub("([\u4e00-\u9fa5])", r" \1 ", text) if unit == "han-character" else text).split()


def _scheme(script: str, punctuation: str, articles: str, removed: str, unit: str, unanswerable: bool = False) -> Scheme:
    test = is_punctuation if punctuation == "unicode" else string.punctuation.__contains__
    recipe = f"{script}|case:lower|punctuation:{punctuation}|articles:{removed}|unit:{unit}"
    return Scheme(recipe, partial(_tokens, punctuation=test, articles=articles, unit=unit), unanswerable)


def mkqa(lang: str) -> Scheme:
    """MKQA's: ASCII punctuation, the language's articles, characters where no spaces are written.

    For languages that MKQA lacks: no articles, words. Source: apple/ml-mkqa, mkqa_eval_util.py.
    """
    language = LANGUAGES[lang]
    return _scheme("mkqa", "ascii", language.articles, lang if language.articles else "none",
                   "word" if language.spaced else "character", True)


def mlqa(lang: str) -> Scheme:
    """MLQA's: Unicode punctuation, the language's articles, Chinese characters one by one among other words.

    For languages that MLQA lacks: no articles; characters where no spaces are written. Source: facebookresearch/MLQA,
    mlqa_evaluation_v1.py.
    """
    articles = LANGUAGES[lang].articles if lang in MLQA_LANGUAGES else ""
    unit = "han-character" if lang == "zho" else "word" if LANGUAGES[lang].spaced else "character"
    return _scheme("mlqa", "unicode", articles, lang if articles else "none", unit)


def squad() -> Scheme:
    """SQuAD 1.1's, which XQuAD takes for every language: ASCII punctuation, English articles, words between spaces."""
    return _scheme("squad1.1", "ascii", LANGUAGES["eng"].articles, "eng", "word")


class _Answers(Metric):
    """The best value over the right answers; questions without an answer are left out (MKQA's answerable-only scores)."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme

    @property
    def signature(self) -> str:
        return self.scheme.recipe + ("|questions:answerable" if self.scheme.unanswerable else "")

    def per_example(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float | None]:
        """One value in [0, 1] an example, from the answer given and all right ones."""
        values = self.all_questions(predictions, references)
        return [v if any(right) or not self.scheme.unanswerable else None for v, right in zip(values, references, strict=True)]

    def all_questions(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """The same with the questions that have no answer."""
        return [max(self._one(p, a) for a in right) for p, right in zip(predictions, references, strict=True)]

    def _one(self, prediction: str, answer: str) -> float:
        raise NotImplementedError


class AnswerEM(_Answers):
    """1 if the normalised answer is one of the right ones."""

    name = "em"

    def _one(self, prediction: str, answer: str) -> float:
        return float(self.scheme.tokens(prediction) == self.scheme.tokens(answer))


class AnswerF1(_Answers):
    """F1 of the two bags of tokens."""

    name = "f1"

    def _one(self, prediction: str, answer: str) -> float:
        given, right = Counter(self.scheme.tokens(prediction)), Counter(self.scheme.tokens(answer))
        if self.scheme.unanswerable and not (given and right):
            return float(given == right)
        same = (given & right).total()
        return 2 * same / (given.total() + right.total()) if same else 0.0


class BestF1(Metric):
    """MKQA's F1 over all questions at the threshold on the no-answer probability that makes it highest.

    Questions are taken in the order of that probability; up to some place their answers count, after it "no answer"
    is what was said. The official script tries every place, also among equal probabilities, where the order of the
    examples decides: so does this. Without probabilities they are all 0, as theirs are. Source: apple/ml-mkqa,
    mkqa_eval_util.py.

    Args:
        probabilities: `per_example` and `score` get a third column, each answer's no-answer probability.
    """

    name = "f1_best"

    def __init__(self, scheme: Scheme, probabilities: bool = False) -> None:
        self.scheme, self.probabilities = scheme, probabilities

    @property
    def signature(self) -> str:
        return f"{self.scheme.recipe}|questions:all|threshold:best|no-answer:{'given' if self.probabilities else '0'}"

    def per_example(self, predictions: Sequence[str], references: Sequence[Sequence[str]],
                    no_answer: Sequence[float] | None = None) -> list[float | None]:
        """One value in [0, 1] an example, at the best threshold of the whole set."""
        if (no_answer is not None) != self.probabilities:
            raise ValueError("no-answer probabilities are given exactly when BestF1(probabilities=True)")
        right = [any(r) for r in references]
        raw = AnswerF1(self.scheme).all_questions(predictions, references)
        gains = [raw[i] if right[i] else -float(bool(predictions[i])) for i in range(len(raw))]
        order = sorted(range(len(raw)), key=(no_answer or [0.0] * len(raw)).__getitem__)
        best = total = float(right.count(False))
        place = 0
        for k, i in enumerate(order, 1):
            total += gains[i]
            if total > best:
                best, place = total, k
        answered = set(order[:place])
        return [(0.0 if right[i] else 1.0) + (gains[i] if i in answered else 0.0) for i in range(len(raw))]
