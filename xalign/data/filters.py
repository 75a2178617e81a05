"""Filters over translations (SDRRL section 4.1 and appendix A), one count for every rule and side."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import Artifact, Stage
from xalign.config import Node, within
from xalign.data.examples import Example, read_examples, read_jsonl, write_jsonl
from xalign.languages import LANGUAGES
from xalign.metrics.comet import Quality, check_checkpoint, check_python, checkpoint_params, comet_scores

if TYPE_CHECKING:
    from xalign.config import Run

SIDES = ("prompt", "response")
RULES = ("html", "words", "word_chars", "ratio", "language", "quality", "duplicate")
_HTML = re.compile(r"</?[A-Za-z][^<>]*>|<!--|&(?:[a-z]{2,8}|#\d+);")
# Characters that make a word where no spaces part them [R].
_CHARS_PER_WORD = {"Jpan": 2.0, "Hans": 1.6, "Thai": 4.0, "Khmr": 5.0}


def count_words(text: str, lang: str) -> float:
    """Whitespace tokens; in unspaced scripts, characters divided by the script's usual word length."""
    per_word = _CHARS_PER_WORD.get(LANGUAGES[lang].script)
    return sum(not c.isspace() for c in text) / per_word if per_word else len(text.split())

# Below, the ratio says nothing: one name is one word here and four there [R].
_MIN_RATIO_WORDS = 6


@dataclass(frozen=True)
class Filters(Node):
    """Which translations are dropped. Each side (question, answer) is judged by itself.

    Attributes:
        html: drop a translation with markup that its source text has not.
        max_words: longest text, in words.
        max_word_chars: longest word, in characters; not judged in unspaced scripts.
        max_ratio: words of the longer text (if it has six or more) over words of the shorter one.
        langid: drop a translation that CLD3 or its script places in another language.
        dedup: drop a row whose translated question and answer occurred before.
        cometkiwi: reference-free quality model (a local checkpoint file, or a hub id such as
            Unbabel/wmt22-cometkiwi-da); null applies none, and the facts say so.
        threshold: lowest quality that is kept.
        comet_python: interpreter that has unbabel-comet; null is this one.
    """

    html: bool = True
    max_words: int = within(100, low=1)
    max_word_chars: int = within(40, low=1)
    max_ratio: float = within(3.0, low=1)
    langid: bool = True
    dedup: bool = True
    cometkiwi: str | None = None
    threshold: float = within(0.8, low=0, high=1, note="the paper's value is 0.8")
    comet_python: str | None = None

    def check_run(self, run: Run) -> None:
        """Raise ConfigError for a checkpoint or interpreter that is not there."""
        if self.cometkiwi:
            check_checkpoint("filter.cometkiwi", self.cometkiwi, references=False)
        if self.comet_python:
            check_python("filter.comet_python", self.comet_python)

    def params(self) -> dict[str, Any]:
        """What decides which translations stay."""
        values = {name: getattr(self, name) for name in ("html", "max_words", "max_word_chars", "max_ratio", "langid", "dedup")}
        checkpoint = checkpoint_params(self.cometkiwi) if self.cometkiwi else None
        return {**values, "cometkiwi": checkpoint, "threshold": self.threshold if self.cometkiwi else None}

    def rule(self, original: str, text: str, source: str, lang: str) -> str | None:
        """The first of the per-text rules that drops `text`, the translation of `original` into `lang`; None keeps it."""
        words, before = count_words(text, lang), count_words(original, source)
        if self.html and _HTML.search(text) and not _HTML.search(original):
            return "html"
        if words > self.max_words:
            return "words"
        if LANGUAGES[lang].spaced and any(len(word) > self.max_word_chars for word in text.split()):
            return "word_chars"
        longer, shorter = max(words, before), min(words, before)
        if longer >= _MIN_RATIO_WORDS and longer > self.max_ratio * max(shorter, 1):
            return "ratio"
        if self.langid:
            from xalign.langid import judge

            if judge(text, lang) is False:
                return "language"
        return None

    def apply(self, originals: Sequence[Example], translated: Sequence[Mapping[str, Any]], source: str, lang: str,
              quality: Sequence[float] | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Judge translations row by row.

        Args:
            originals: the untranslated rows.
            translated: one record a row, as `Translator.stage` writes them: id, prompt, response (null: not translated), failed.
            source, lang: ISO 639-3 codes of the two languages.
            quality: one score in [0, 1] for every text that is not null, in the order of rows and sides.
        Returns:
            The records with dropped sides set to null and the rule's name in ``failed``; and the facts:
            per side how many were translated, kept, dropped by each rule, and too short for CLD3.
        """
        scores = iter(quality) if quality is not None else None
        counts: dict[str, Counter[str]] = {side: Counter() for side in SIDES}
        seen: set[tuple[str, str]] = set()
        out = []
        for example, record in zip(originals, translated, strict=True):
            new = {**record, "failed": dict(record["failed"])}
            score = {side: next(scores) for side in SIDES if record[side] is not None} if scores is not None else {}
            pair = (record["prompt"] or example.prompt, record["response"] or example.response)
            again = self.dedup and pair in seen
            seen.add(pair)
            for side in SIDES:
                text, count = record[side], counts[side]
                if text is None:
                    continue
                count["translated"] += 1
                rule = self.rule(getattr(example, side), text, source, lang)
                rule = rule or ("quality" if score and score[side] < self.threshold else None) or ("duplicate" if again else None)
                if rule:
                    count[rule] += 1
                    new[side], new["failed"][side] = None, rule
                else:
                    count["kept"] += 1
                    count["language not judged"] += self.langid and _unjudged(text, lang)
            out.append(new)
        facts = {side: {"translated": c["translated"], "kept": c["kept"], "language not judged": c["language not judged"],
                        "dropped": {rule: c[rule] for rule in RULES}} for side, c in counts.items() if c["translated"]}
        return out, facts

    def stage(self, run: Run, source: Stage, translated: Stage, lang: str) -> Stage:
        """``examples.jsonl`` like the translator's, without the translations that a rule drops."""
        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            originals = read_examples(inputs[0].file("examples.jsonl"))
            records = list(read_jsonl(inputs[1].file("examples.jsonl")))
            quality = self._quality(originals, records)
            kept, facts = self.apply(originals, records, run.source, lang, quality.scores if quality else None)
            write_jsonl(folder / "examples.jsonl", kept)
            return {**facts, "cometkiwi": quality.signature if quality else
                    "no text to score" if self.cometkiwi else "no checkpoint, not applied"}

        return Stage("filter", 1, {**self.params(), "source": run.source, "lang": lang}, work, inputs=(source, translated),
                     seconds=1, label=f"filter {source.name} {run.source}→{lang}")

    def _quality(self, originals: Sequence[Example], records: Sequence[Mapping[str, Any]]) -> Quality | None:
        """The scores that `apply` takes; None without a checkpoint or without translations."""
        rows = [{"src": getattr(example, side), "mt": record[side]} for example, record in zip(originals, records, strict=True)
                for side in SIDES if record[side] is not None]
        return comet_scores(rows, self.cometkiwi, references=False, python=self.comet_python, key="filter.cometkiwi",
                            python_key="filter.comet_python") if self.cometkiwi and rows else None


def _unjudged(text: str, lang: str) -> bool:
    from xalign.langid import judge

    return judge(text, lang) is None
