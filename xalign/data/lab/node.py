"""The configuration node of the laboratory's questions."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import Node, Run, within
from xalign.data.examples import Example, write_jsonl


@dataclass(frozen=True)
class LabData(Node):
    """Questions about CLDR facts of the training territories; the test items are `xalign.data.lab.choice_items`."""

    answer_tokens: ClassVar[int] = 48  # an answer to these questions is a name or a sentence; a longer one rambles

    questions: int = within(90, 1, 100_000, "there are about 600 training questions; a larger number takes them all")

    def questions_stage(self, run: Run, lang: str) -> Stage:
        """``examples.jsonl``: training questions with their short answers in `lang`; the seed picks which."""
        from xalign.data.lab.facts import versions

        def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
            rows = training_examples(lang, self.questions, run.seed)
            kinds = sorted({e.source for e in rows})
            write_jsonl(folder / "examples.jsonl", rows)
            return {"examples": len(rows), "territories": len({e.group for e in rows}),
                    **{kind: sum(e.source == kind for e in rows) for kind in kinds}}

        params = {"data": "lab", "lang": lang, "questions": self.questions, "seed": run.seed, **versions()}
        return Stage("questions", 1, params, work, seconds=2, label=f"lab questions {lang}")


def training_examples(lang: str, limit: int, seed: int) -> list[Example]:
    """Up to `limit` training questions, every fact once before any fact a second time (in another wording)."""
    from random import Random

    from xalign.data.lab.facts import facts
    from xalign.data.lab.items import interleave
    from xalign.data.lab.templates import TRAIN_TEMPLATES, render

    rng = Random(f"questions {seed}")
    train = [f for f in facts() if f.split == "train"]
    wordings = {f.id: rng.sample(TRAIN_TEMPLATES, len(TRAIN_TEMPLATES)) for f in train}
    rows = []
    for turn in range(len(TRAIN_TEMPLATES)):
        by_kind: dict[str, list] = {}
        for fact in rng.sample(train, len(train)):
            by_kind.setdefault(fact.kind, []).append(fact)
        for fact in interleave([by_kind[k] for k in sorted(by_kind)]):
            code = f"{fact.id}/{wordings[fact.id][turn]}"
            prompt, response = render(code, lang)
            rows.append(Example(code, lang, prompt, response, source=f"lab:{fact.kind}", group=fact.territory))
    return rows[:limit]
