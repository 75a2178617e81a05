"""The configuration node of the laboratory's questions."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import Node, Run, within
from xalign.data.examples import Example, write_jsonl

if TYPE_CHECKING:
    from xalign.data.lab.facts import Fact


@dataclass(frozen=True)
class LabData(Node):
    """Questions about CLDR facts of the training territories; the test items are `xalign.data.lab.choice_items`.

    Attributes:
        questions: how many.
        shuffled: the control run: same questions, same answers, wrongly paired within each relation. What a model
            gains from it, it gains from the format.
    """

    answer_tokens: ClassVar[int] = 48  # an answer to these questions is a name or a sentence; a longer one rambles

    questions: int = within(90, 1, 100_000, "there are about 600 training questions; a larger number takes them all")
    shuffled: bool = False

    def questions_stage(self, run: Run, lang: str) -> Stage:
        """``examples.jsonl``: training questions with their short answers in `lang`; the seed picks which."""
        from xalign.data.lab.facts import versions

        def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
            rows = training_examples(lang, self.questions, run.seed, self.shuffled)
            kinds = sorted({e.source for e in rows})
            write_jsonl(folder / "examples.jsonl", rows)
            return {"examples": len(rows), "territories": len({e.group for e in rows}),
                    **{kind: sum(e.source == kind for e in rows) for kind in kinds}}

        params = {"data": "lab", "lang": lang, "questions": self.questions, "seed": run.seed, **versions(),
                  **({"shuffled": True} if self.shuffled else {})}
        return Stage("questions", 1, params, work, seconds=2, label=f"lab questions {lang}")


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
    from xalign.data.lab.items import interleave
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
            rows.append(Example(code, lang, prompt, response, source=f"lab:{fact.kind}", group=fact.territory))
    return rows[:limit]
