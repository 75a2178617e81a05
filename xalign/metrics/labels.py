"""Metrics of label sequences: seqeval's entity scores and the accuracy over tokens."""
from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from xalign.metrics.statistics import CorpusMetric, value_function

Labels = Sequence[Sequence[str]]


class _Sequences(CorpusMetric):
    """Sentences of labels. One that is cut short is filled with O, as XGLUE's script does.

    Raises:
        ValueError: a sentence has more labels than words.
    """

    def per_example(self, predictions: Labels, references: Labels) -> list[float | None]:
        """The metric of each sentence by itself; None where it has nothing to find or to judge."""
        value = value_function(self.name)
        return [value(row) if any(row) else None for row in self.statistics(predictions, references)]

    def statistics(self, predictions: Labels, references: Labels) -> list[list[float]]:
        """One row of counts a sentence; see `value_of`."""
        rows = []
        for i, (given, gold) in enumerate(zip(predictions, references, strict=True)):
            if len(given) > len(gold):
                raise ValueError(f"{self.name}: sentence {i} has {len(given)} labels for {len(gold)} words")
            rows.append(self._counts([*given, *["O"] * (len(gold) - len(given))], list(gold)))
        return rows

    def _counts(self, given: list[str], gold: list[str]) -> list[float]:
        raise NotImplementedError


class SeqevalF1(_Sequences):
    """Micro F1 of entities (B-, I-, O labels) by seqeval; statistics: right, predicted, gold ones."""

    name = "seqeval_f1"

    @property
    def signature(self) -> str:
        return f"{self.name}|average:micro|mode:default|seqeval:{version('seqeval')}"

    def _counts(self, given: list[str], gold: list[str]) -> list[float]:
        import warnings

        from seqeval.metrics.sequence_labeling import get_entities

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it takes parts of speech for misspelt entities
            found, right = set(get_entities(given)), set(get_entities(gold))
        return [len(found & right), len(found), len(right)]


class SeqevalPrecision(SeqevalF1):
    """Micro precision by seqeval: what XGLUE's script gives for POS, where neighbours with one tag are one entity."""

    name = "seqeval_precision"


class TokenAccuracy(_Sequences):
    """Share of tokens with the right label; statistics: right, all."""

    name = "token_accuracy"
    signature = "token_accuracy|missing:wrong"  # type: ignore[assignment]

    def _counts(self, given: list[str], gold: list[str]) -> list[float]:
        return [sum(a == b for a, b in zip(given, gold, strict=True)), len(gold)]
