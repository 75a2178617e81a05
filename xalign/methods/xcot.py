"""xCoT-style tuning (Chai et al., arXiv 2401.07037), a baseline of SDRRL; METHODS.md section 1."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import within
from xalign.data.codeswitch import read_dictionary, switch_questions
from xalign.data.examples import Example, read_examples, read_jsonl
from xalign.methods.base import Method
from xalign.methods.sdrrl import four_subsets, transfer_set
from xalign.methods.supervised import failures, filtered, write_rows

if TYPE_CHECKING:
    from torch import Tensor

    from xalign.config import Run
    from xalign.data.packing import Batch
    from xalign.training.losses import LossOut, Targets


@dataclass(frozen=True)
class XCOT(Method):
    """Code-switched target questions answered in the source language, under the eyes of the model reading the source question.

    Attributes:
        code_switch: probability of replacing a question's token that the dictionary knows, in TL.
        restate: probability that an answer of TL starts with the question in the source language, on its own line.
        kl: weight of the divergence from the model's own predictions for the source question (`divergence`); 0 leaves it out.
    """

    name: ClassVar[str] = "xcot"
    translates: ClassVar[bool] = True

    code_switch: float = within(0.15, low=0, high=1, note="as in SDRRL: 0.15")
    restate: float = within(0.5, low=0, high=1)
    kl: float = within(1.0, low=0)

    def rows(self, run: Run) -> Stage:
        """TL (T(x) switched, y or x and y), with x as the pivot of the divergence, and TT (T(x), T(y))."""
        questions = run.data.questions_stage(run, run.source)
        needs = {"questions": questions, "translated": filtered(run, questions)}
        if self.code_switch:
            needs["dictionary"] = run.dictionary.stage(run, run.target)
        source, target, seed, pivots = run.source, run.target, run.seed, self.kl > 0

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            files = dict(zip(needs, inputs, strict=True))
            examples = read_examples(files["questions"].file("examples.jsonl"))
            records = list(read_jsonl(files["translated"].file("examples.jsonl")))
            chosen = transfer_set(examples, [], records, [])
            crossed = four_subsets(chosen, ["TL"], target)
            facts: dict[str, Any] = {"not translated": failures(records)}
            if "dictionary" in files:
                words = {target: read_dictionary(files["dictionary"].file("dictionary.tsv"), inverse=True)}
                crossed, facts["code-switched questions"] = switch_questions(crossed, words, self.code_switch, seed)
            asked = {f"{e.id}/TL": e.prompt for e in examples}
            if pivots:
                crossed = [row.with_(pivot=asked[row.id]) for row in crossed]
            crossed, facts["restated questions"] = restated(crossed, asked, self.restate, seed)
            return write_rows(folder, crossed + four_subsets(chosen, ["TT"], target), facts, required=("TL", "TT"))

        params = {"method": "xcot", "source": source, "target": target, "code_switch": self.code_switch, "restate": self.restate,
                  "seed": seed, "pivots": pivots}
        return Stage("rows", 1, params, work, inputs=tuple(needs.values()), label=f"rows xcot {source}→{target}")

    def loss(self, model: Any, batch: Any) -> LossOut:
        """CE; with `kl` also the weighted sum of `divergence`, logged as ``kl`` (without the targets' weights)."""
        if not self.kl:
            return super().loss(model, batch)
        from xalign.training.losses import cross_entropy, targets

        found = targets(model, batch)
        out, (kl, weights) = cross_entropy(found), divergence(model, batch, found)
        return replace(out, sum=out.sum + self.kl * (kl * weights).sum(), logs={**out.logs, "kl": kl.detach().sum()})

    def loss_params(self) -> dict[str, Any]:
        """See `Method.loss_params`."""
        return {**super().loss_params(), **({"kl": self.kl} if self.kl else {})}


def restated(rows: Sequence[Example], asked: dict[str, str], p: float, seed: int) -> tuple[list[Example], int]:
    """Put the question `asked` (by row id) before the answer, on a line of its own, with probability `p`; and how often."""
    chosen = {row.id for row in rows if Random(f"restate:{seed}:{row.id}").random() < p}
    return [row.with_(response=f"{asked[row.id]}\n{row.response}") if row.id in chosen else row for row in rows], len(chosen)


def divergence(model: Any, batch: Batch, found: Targets) -> tuple[Tensor, Tensor]:
    """KL(stopgrad p(.|x_S, y<t) ‖ p(.|x_L, y<t)) over the whole vocabulary, at every target t of the rows that have a twin.

    Both sides are the model as it is now; the gradient flows through the target-language side alone [R].

    Args:
        found: the model's predictions for `batch`.
    Returns:
        [n] in nats, in the rows' order, and [n] the targets' weights in the loss; empty if no row has a twin.
    """
    import torch
    from torch.nn.functional import kl_div, log_softmax

    from xalign.data.choices import collate
    from xalign.training.losses import targets, twins

    paired = torch.tensor([row.twin is not None for row in batch.rows], device=found.rows.device)
    if any(row.twin for row in batch.rows):
        pivots = twins(batch)
    else:  # all the same one forward pass: under ZeRO-3 every process must make as many
        shortest = min(batch.rows, key=lambda row: row.tokens).unlabelled()
        pivots = collate([shortest], batch.layout is not None).to(batch.input_ids.device)
    with torch.no_grad():
        known = targets(model, pivots).logits
    kept = paired[found.rows]  # a twin has its row's targets, and the twins stand in the rows' order
    student, teacher = (log_softmax(logits.float(), -1) for logits in (found.logits[kept], known))
    return kl_div(student, teacher, reduction="none", log_target=True).sum(-1), found.weights[kept]
