"""The configuration node of the laboratory's questions."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, Node, Run
from xalign.data.examples import Example, write_jsonl
from xalign.values import shown

if TYPE_CHECKING:
    from xalign.data.lab.facts import Fact


QUESTIONS = {"causal": 90, "encoder": 582}  # 582: every training fact in its three wordings; an encoder's rows cost little
TERMS = {"causal": 0, "encoder": 240}


def whole(value: Any, key: str, low: int, high: int, note: str) -> None:
    """Raise ConfigError unless `value` is ``auto`` or a whole number in [low, high]."""
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high):
        raise ConfigError(f"{key}={shown(value)}: must be auto or a whole number in [{low}, {high}]; {note}")


@dataclass(frozen=True)
class LabData(Node):
    """Questions about CLDR facts of the training territories, and terms to classify; every row has options to choose from.

    The test items are `xalign.data.lab.choice_items` and `term_items`.

    Attributes:
        questions: how many questions; auto depends on the backbone (`QUESTIONS`).
        terms: how many terms to classify; auto depends on the backbone (`TERMS`).
        shuffled: the control run: same questions, same answers, wrongly paired within each relation. What a model
            gains from it, it gains from the format.
    """

    answer_tokens: ClassVar[int] = 48  # an answer to these questions is a name or a sentence; a longer one rambles
    multilingual: ClassVar[bool] = True  # there are questions in every language
    has_options: ClassVar[bool] = True  # an encoder can be trained on it

    questions: Any = "auto"
    terms: Any = "auto"
    shuffled: bool = False

    def check(self, path: str) -> None:
        super().check(path)
        whole(self.questions, f"{path}.questions", 1, 100_000, f"there are {QUESTIONS['encoder']}, a larger number takes them all")
        whole(self.terms, f"{path}.terms", 0, 100_000, "a number beyond the training terms takes them all")

    def questions_stage(self, run: Run, lang: str) -> Stage:
        """``examples.jsonl``: training rows with short answers and options in `lang`; the seed picks which."""
        from xalign.data.lab.categories import term_examples
        from xalign.data.lab.facts import versions

        questions = QUESTIONS[run.backbone.kind] if self.questions == "auto" else self.questions
        terms = TERMS[run.backbone.kind] if self.terms == "auto" else self.terms

        def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
            rows = training_examples(lang, questions, run.seed, self.shuffled)
            territories = len({e.group for e in rows})
            rows += term_examples(lang, terms, run.seed, self.shuffled)
            kinds = sorted({e.source for e in rows})
            write_jsonl(folder / "examples.jsonl", rows)
            return {"examples": len(rows), "territories": territories, **{kind: sum(e.source == kind for e in rows) for kind in kinds}}

        params = {"data": "lab", "lang": lang, "questions": questions, "terms": terms, "seed": run.seed, **versions(),
                  **({"shuffled": True} if self.shuffled else {})}
        return Stage("questions", 2, params, work, seconds=2, label=f"lab questions {lang}")


def mispaired(facts: Sequence[Fact]) -> dict[str, str]:
    """Fact id → id of another fact of the same relation with another answer.

    Every fact lends its answer once; the answers keep their frequencies. (No answer fills half a relation.)
    """
    wrong = {}
    for kind in dict.fromkeys(f.kind for f in facts):
        own = sorted((f for f in facts if f.kind == kind), key=lambda f: (f.answer, f.id))
        shift = max(Counter(f.answer for f in own).values())
        wrong |= {f.id: own[(i + shift) % len(own)].id for i, f in enumerate(own)}
    return wrong


def training_examples(lang: str, limit: int, seed: int, shuffled: bool = False) -> list[Example]:
    """Up to `limit` training questions, every fact once before any fact a second time (in another wording).

    Args:
        shuffled: give each question another fact's answer (`mispaired`).
    """
    from random import Random

    from xalign.data.lab.facts import facts
    from xalign.data.lab.items import interleave, options_of
    from xalign.data.lab.templates import TRAIN_TEMPLATES, render

    rng = Random(f"questions {seed}")
    train = [f for f in facts() if f.split == "train"]
    wordings = {f.id: rng.sample(TRAIN_TEMPLATES, len(TRAIN_TEMPLATES)) for f in train}
    wrong = mispaired(train) if shuffled else {}
    rows = []
    for turn in range(len(TRAIN_TEMPLATES)):
        by_kind: dict[str, list] = {}
        for fact in rng.sample(train, len(train)):
            by_kind.setdefault(fact.kind, []).append(fact)
        for fact in interleave([by_kind[k] for k in sorted(by_kind)]):
            code = f"{fact.id}/{wordings[fact.id][turn]}" + (f"={wrong[fact.id]}" if shuffled else "")
            prompt, response = render(code, lang)
            rows.append(Example(code, lang, prompt, response, source=f"lab:{fact.kind}", group=fact.territory,
                                options=options_of(code, lang)))
    return rows[:limit]
