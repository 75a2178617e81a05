"""ROUGE-1, -2 and -L by the rouge-score library, with the words and stems of XL-Sum's multilingual scorer.

Source: csebuetnlp/xl-sum, multilingual_rouge_scoring. English is the library's own: Latin letters and digits, Porter's stemmer.
"""
from __future__ import annotations

import importlib.util
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any

from xalign.languages import LANGUAGES
from xalign.metrics.base import Metric
from xalign.metrics.qa import is_punctuation

STEMMED_FROM = 4  # characters; shorter words stay as they are
IDEOGRAPH = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f])")
# Hindi endings by length, of Ramanathan and Rao, "A lightweight stemmer for Hindi" (2003), as the scorer has them
HINDI = {
    5: "ाएंगी ाएंगे ाऊंगी ाऊंगा ाइयाँ ाइयों ाइयां",
    4: "ाएगी ाएगा ाओगी ाओगे एंगी ेंगी एंगे ेंगे ूंगी ूंगा ातीं नाओं नाएं ताओं ताएं ियाँ ियों ियां",
    3: "ाकर ाइए ाईं ाया ेगी ेगा ोगी ोगे ाने ाना ाते ाती ाता तीं ाओं ाएं ुओं ुएं ुआं",
    2: "कर ाओ िए ाई ाए ने नी ना ते ीं ती ता ाँ ां ों ें",
    1: "ो े ू ु ी ि ा",
}


def _clean(text: str) -> str:
    """Lower case; punctuation is a space, control and format characters are gone."""
    kept = []
    for ch in text.lower():
        if ch in "\t\n\r" or is_punctuation(ch):
            kept.append(" ")
        elif unicodedata.category(ch)[0] != "C" and ch != "\ufffd":
            kept.append(ch)
    return " ".join("".join(kept).split())


def _words(text: str) -> list[str]:
    """Runs of letters or of digits with the marks on them; any other sign, and every ideograph, is a word."""
    words: list[str] = []
    last = "Z"
    for ch in text:
        kind = unicodedata.category(ch)[0]
        if kind == "M" and last != "Z" or kind in "LN" and kind == last:
            words[-1] += ch
        elif kind != "Z":
            words.append(ch)
        if kind != "M" or last == "Z":
            last = kind
    return IDEOGRAPH.sub(r" \1 ", " ".join(words)).split()


def _has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


def _segmenter(name: str) -> tuple[str, Callable[[str], list[str]]]:
    """What the signature calls it, text → words; characters where the segmenter's library is missing."""
    if name == "jieba" and _has("jieba"):
        import logging

        import jieba

        jieba.setLogLevel(logging.WARNING)
        return f"jieba-{version('jieba')}", jieba.lcut
    if name == "newmm" and _has("pythainlp"):
        if "PYTHAINLP_READ_MODE" not in os.environ:  # its older name; both at once are an error there
            os.environ.setdefault("PYTHAINLP_READ_ONLY", "1")  # else the import makes a folder in the user's home
        from pythainlp.tokenize import word_tokenize

        return f"newmm-{version('pythainlp')}", partial(word_tokenize, engine="newmm")
    if name == "mecab" and _has("fugashi") and (_has("unidic") or _has("unidic_lite")):  # the scorer's own, given that
        import fugashi

        tagger = fugashi.Tagger("-O wakati -b 50000")
        return f"mecab-{'unidic' if _has('unidic') else 'unidic-lite'}", lambda text: tagger.parse(text).split()
    if name == "mecab" and _has("MeCab", "ipadic"):
        import ipadic
        import MeCab

        ipa = MeCab.Tagger(ipadic.MECAB_ARGS + " -Owakati")
        return "mecab-ipadic", lambda text: ipa.parse(text).split()
    if name == "words":
        return "words", _words
    return "char", lambda text: [ch for ch in text if not ch.isspace()]


def _hindi(word: str) -> str:
    for n, endings in HINDI.items():
        if len(word) > n + 1 and word[-n:] in endings.split():
            return word[:-n]
    return word


def _stemmer(name: str) -> tuple[str, Callable[[str], str] | None]:
    """What the signature calls it, word → stem."""
    if name == "hindi":
        return "hindi", _hindi
    if name == "turkish":
        if not _has("TurkishStemmer"):
            return "no", None
        from TurkishStemmer import TurkishStemmer

        return f"turkish-{version('TurkishStemmer')}", TurkishStemmer().stem
    if not name:
        return "no", None
    from nltk.stem import SnowballStemmer

    try:
        stemmer, stop = SnowballStemmer(name, ignore_stopwords=True), "kept"
    except LookupError:  # nltk's stop words are a download of their own
        stemmer, stop = SnowballStemmer(name), "stemmed"

    def stem(word: str) -> str:
        if name == "arabic":  # nltk's keeps this from one word to the next
            stemmer.stemmer.suffixes_verb_step1_success = False
        return stemmer.stem(word)

    return f"snowball-{name}|stopwords:{stop}|nltk:{version('nltk')}", stem


class Words:
    """The tokenizer object that rouge-score takes: cleaned text in words of the language, stemmed."""

    def __init__(self, lang: str) -> None:
        language = LANGUAGES[lang]
        if language.rouge == "rouge-score":
            from rouge_score.tokenizers import DefaultTokenizer

            self.recipe, self.tokenize = "tok:rouge-score|stem:porter", DefaultTokenizer(use_stemmer=True).tokenize
            return
        cut, self.cut = _segmenter(language.rouge)
        name, stem = _stemmer(language.stemmer)
        self.stem = lru_cache(maxsize=2**16)(stem) if stem else None
        self.recipe = f"tok:{cut}|stem:{name}"

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`."""
        words = self.cut(_clean(text))
        stem = self.stem
        return [stem(w) if stem and len(w) >= STEMMED_FROM else w for w in words]


_tokenizer = lru_cache(maxsize=4)(Words)


class Rouge(Metric):
    """F-measure of ROUGE-1, -2 or -L; with several references, the best one's.

    Args:
        lang: ISO 639-3 code of the texts' language.
        order: "1", "2" or "L".
    """

    def __init__(self, lang: str, order: str = "L") -> None:
        self.lang, self.name = lang, f"rouge{order}"

    @property
    def signature(self) -> str:
        return f"{self.name}|f|{_tokenizer(self.lang).recipe}|lang:{self.lang}|rouge-score:{version('rouge-score')}"

    def per_example(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float | None]:
        """One value in [0, 1] an example."""
        scorer = self._scorer()
        return [scorer.score_multi(r, p)[self.name].fmeasure for p, r in zip(predictions, references, strict=True)]

    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer([self.name], tokenizer=_tokenizer(self.lang))
