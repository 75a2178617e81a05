"""The laboratory's translator: exact, from CLDR, with a seeded amount of noise."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, within
from xalign.data.examples import Example, read_examples, write_jsonl
from xalign.translators.base import SIDES, Translator, count_sides, record

if TYPE_CHECKING:
    from xalign.config import Run

UNKNOWN = "unknown text"
NOISES = ("untranslated", "wrong term", "dropped word")
_SENTENCE = re.compile(r"(?<=[.!?。।។])\s+")


@dataclass(frozen=True)
class LabTranslator(Translator):
    """Renders the laboratory's rows in the other language and knows CLDR's terms and the answer sentences.

    Attributes:
        noise: share of translations that are spoiled: a term stays untranslated, becomes a wrong term of
            its kind, or a word is dropped.
    """

    noise: float = within(0.0, low=0, high=1)

    def check_source(self, run: Run) -> None:
        """Raise ConfigError for data other than the laboratory's: nearly all of it would be unknown text."""
        from xalign.data.lab import LabData

        if not isinstance(run.data, LabData):
            raise ConfigError(f"translator=lab: translates the laboratory's own texts only, not data={run.choices.get('data')}; "
                              "use translator=nllb (a local folder or another size: translator.name=...)")

    def stage(self, run: Run, examples: Stage, lang: str, sides: Sequence[str] = SIDES) -> Stage:
        """See `Translator.stage`; the facts also count the noise."""
        from xalign.data.lab.facts import versions

        source, noise, seed = run.source, self.noise, run.seed

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            words = Phrasebook.load(source, lang)
            rows = read_examples(inputs[0].file("examples.jsonl"))
            records, spoiled = [], Counter[str]()
            for row in rows:
                texts: dict[str, str | None] = {}
                for side in sides:
                    texts[side] = words.translate(row, side)
                    rng = Random(f"{seed}:{lang}:{side}:{row.id}")
                    if texts[side] is not None and rng.random() < noise:
                        texts[side], kind = words.spoil(getattr(row, side), str(texts[side]), rng)
                        spoiled[kind] += 1
                records.append(record(row.id, texts, {side: UNKNOWN for side in sides if texts[side] is None}))
            write_jsonl(folder / "examples.jsonl", records)
            return {**count_sides(records, sides), "noise": {kind: spoiled[kind] for kind in NOISES}}

        params = {"translator": "lab", "source": source, "lang": lang, "sides": list(sides), "noise": noise,
                  "seed": seed if noise else None, **versions()}
        return Stage("translate", 1, params, work, inputs=(examples,), seconds=3,
                     label=f"translate {source}→{lang} (lab, {' and '.join(sides)})")


@dataclass(frozen=True)
class Phrasebook:
    """What the laboratory knows of one language pair.

    Attributes:
        source, lang: ISO 639-3 codes.
        terms: source term → target term.
        kinds: kind of term → target terms, for wrong terms of the same kind.
    """

    source: str
    lang: str
    terms: Mapping[str, str]
    kinds: Mapping[str, Sequence[str]]
    folded: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        folded: dict[str, str] = {}
        for term, translation in self.terms.items():
            folded.setdefault(term.casefold(), translation)
        object.__setattr__(self, "folded", folded)

    @classmethod
    def load(cls, source: str, lang: str) -> Phrasebook:
        """CLDR's terms of the two languages."""
        from xalign.data.lab import phrase_table, term_kinds

        return cls(source, lang, phrase_table(source, lang), term_kinds(lang))

    def term(self, text: str) -> str | None:
        """One term; case is forgiven, since a model writes "the Euro" where CLDR has "euro"."""
        text = text.strip()
        return self.terms.get(text) or self.folded.get(text.casefold())

    def translate(self, row: Example, side: str) -> str | None:
        """One side of a row: exact if it is a laboratory row's own text, else by `text`; None if unknown."""
        from xalign.data.lab import render

        if row.source.startswith("lab:"):
            at = SIDES.index(side)
            if render(row.id, self.source)[at] == getattr(row, side):
                return render(row.id, self.lang)[at]
        return self.text(getattr(row, side))

    def text(self, text: str) -> str | None:
        """Free text: a term, or answer sentences that `parse_sentence` knows, every one of them; else None."""
        from xalign.data.lab import parse_sentence, render_sentence

        text = text.strip()
        if not text:
            return None
        alone = self.term(text) or self.term(text.rstrip("."))
        if alone:
            return alone
        out = []
        for sentence in _SENTENCE.split(text):
            stated = parse_sentence(sentence, self.source)
            if stated is None:
                return None
            out.append(render_sentence(*stated, self.lang))
        return " ".join(out)

    def spoil(self, original: str, translation: str, rng: Random) -> tuple[str, str]:
        """A worse `translation` of `original` and which of `NOISES` it suffered; always another text.

        The longest term that stands in both texts is left untranslated or becomes another one of its kind,
        or a word is dropped; where the drawn kind cannot be done, the next one is.
        """
        pairs = [(s, t) for s, t in self.terms.items() if t in translation and s in original]
        src, tgt = max(pairs, key=lambda pair: len(pair[1]), default=("", ""))
        first = rng.randrange(len(NOISES))
        for kind in NOISES[first:] + NOISES[:first]:
            if kind == "untranslated" and tgt and src != tgt:
                return translation.replace(tgt, src), kind
            if kind == "wrong term" and tgt:
                others = sorted({t for terms in self.kinds.values() if tgt in terms for t in terms} - {tgt})
                if others:
                    return translation.replace(tgt, rng.choice(others)), kind
            words = translation.split()
            if kind == "dropped word" and len(words) > 1:
                del words[rng.randrange(len(words))]
                return " ".join(words), kind
        # A single word that no term table knows: half of it is lost.
        return translation[:max(len(translation) // 2, 1)] if len(translation) > 1 else translation + translation, "dropped word"
