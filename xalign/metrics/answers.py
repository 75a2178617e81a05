"""Metrics of short free answers against one or more right ones: exact match, F1, containment."""
from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from xalign.languages import LANGUAGES
from xalign.metrics.base import Metric


def normalise(text: str, cased: bool = False) -> str:
    """NFKC, one space between words, no punctuation at either end, lower case unless `cased`; a text of punctuation alone keeps it."""
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    edges = {ch for ch in text if unicodedata.category(ch)[0] in "PZ"}
    text = text.strip("".join(edges)) or text
    return text if cased else text.casefold()


class _Answer(Metric):
    """The best value over the right answers of each example."""

    recipe = ""

    def per_example(self, predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float | None]:
        """One value in [0, 1] an example, from the answer given and all right ones."""
        return [max(self._one(p, a) for a in right) for p, right in zip(predictions, answers, strict=True)]

    @property
    def signature(self) -> str:
        return self.recipe

    def _one(self, prediction: str, answer: str) -> float:
        raise NotImplementedError


class ExactMatch(_Answer):
    """1 if the whole answer is right; `cased` tells a copied English name from one written as the language does."""

    def __init__(self, cased: bool = False) -> None:
        self.cased = cased
        self.name = "em_cased" if cased else "em"
        self.recipe = f"nfkc|edge-punctuation:off|case:{'kept' if cased else 'folded'}"

    def _one(self, prediction: str, answer: str) -> float:
        return float(normalise(prediction, self.cased) == normalise(answer, self.cased))


class Containment(_Answer):
    """1 if the right answer stands somewhere in the one given (x-LLM's "exact match")."""

    name = "containment"
    recipe = "nfkc|case:folded|substring"

    def _one(self, prediction: str, answer: str) -> float:
        return float(normalise(answer) in normalise(prediction))


class F1(_Answer):
    """Overlap of the two bags of words; of characters in languages that write no spaces."""

    name = "f1"

    def __init__(self, lang: str) -> None:
        self.spaced = LANGUAGES[lang].spaced
        self.recipe = f"nfkc|case:folded|unit:{'word' if self.spaced else 'character'}"

    def _units(self, text: str) -> list[str]:
        text = normalise(text)
        if self.spaced:
            return [w for w in map(normalise, text.split()) if any(unicodedata.category(ch)[0] not in "PZ" for ch in w)]
        return [ch for ch in text if unicodedata.category(ch)[0] not in "PZ"]

    def _one(self, prediction: str, answer: str) -> float:
        given, right = Counter(self._units(prediction)), Counter(self._units(answer))
        same = (given & right).total()
        return 2 * same / (given.total() + right.total()) if same else 0.0
