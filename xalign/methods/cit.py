"""CIT: cross-lingual instruction tuning (Li et al., arXiv 2311.08089), a baseline of SDRRL; METHODS.md section 1."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import within
from xalign.data.examples import Example, read_examples, read_jsonl
from xalign.languages import LANGUAGES
from xalign.methods.base import Method
from xalign.methods.sdrrl import Transfer, four_subsets, transfer_set
from xalign.methods.supervised import filtered, write_rows

if TYPE_CHECKING:
    from torch import Tensor

    from xalign.config import Run
    from xalign.data.packing import Batch, Row
    from xalign.training.losses import LossOut


@dataclass(frozen=True)
class CIT(Method):
    """Questions in either language, answered in the language that their last line names.

    Attributes:
        passes: how often each question is drawn (R); every pass draws the languages of question and answer anew.
        cross: probability that the answer is in the other language than the question.
        contrastive: weight of the contrastive term on questions (`pairs_apart`); 0 leaves it out.
        temperature: divides the cosines of that term.
    """

    name: ClassVar[str] = "cit"
    translates: ClassVar[bool] = True

    passes: int = within(3, low=1, note="the paper's code takes 3")
    cross: float = within(0.5, low=0, high=1, note="the paper's code takes 0.5")
    contrastive: float = within(0.0, low=0, note="the paper's code takes 1.5")
    temperature: float = within(0.05, above=0, note="the paper's code takes 0.05")

    def rows(self, run: Run) -> Stage:
        """The passes over D; subsets as in SDRRL: LL (x, y), TL (T(x), y), LT (x, T(y)), TT (T(x), T(y))."""
        questions = run.data.questions_stage(run, run.source)
        source, target, seed = run.source, run.target, run.seed

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            records = list(read_jsonl(inputs[1].file("examples.jsonl")))
            chosen = transfer_set(read_examples(inputs[0].file("examples.jsonl")), [], records, [])
            rows, missing = [], Counter[str]()
            for number in range(1, self.passes + 1):
                found, lost = self.one_pass(chosen, records, source, target, seed, number)
                rows += found
                missing += lost
            crossed = any("T" in row.subset for row in rows)  # else it would be SFT under another name
            return write_rows(folder, rows, {"not translated": dict(missing)}, shown=("LL", "TL", "LT", "TT"),
                              required=() if crossed else ("TL", "LT", "TT"))

        params = {"method": "cit", "source": source, "target": target, "passes": self.passes, "cross": self.cross, "seed": seed,
                  "twins": self.contrastive > 0}
        return Stage("rows", 1, params, work, inputs=(questions, filtered(run, questions)), label=f"rows cit {source}→{target}")

    def one_pass(self, chosen: Sequence[Transfer], records: Sequence[Mapping[str, Any]], source: str, target: str, seed: int,
                 number: int) -> tuple[list[Example], Counter[str]]:
        """Each question once, with the request to answer in a language as its last line.

        Args:
            chosen: the questions with their translations.
            records: the translator's, row by row; they say why a side is missing.
            number: of the pass; the rows' ids end with it.
        Returns:
            The rows, and how many were left out because a side that they need is missing, by side and reason. With `contrastive`
            a row's pivot is the same request about the question in the other language, where there is one.
        """
        rows, missing = [], Counter[str]()
        for t, record in zip(chosen, records, strict=True):
            subset = draw(t.example.id, self.cross, seed, number)
            side = "prompt" if subset[0] == "T" and t.question is None else "response" if subset[1] == "T" and t.answer is None else ""
            if side:
                missing[f"{side}: {record['failed'][side]}"] += 1
            for row in four_subsets([t], [subset], target):
                ask = f"\nAnswer in {LANGUAGES[target if subset[1] == 'T' else source].name}."
                other = (t.example.prompt if subset[0] == "T" else t.question) if self.contrastive else None
                rows.append(row.with_(id=f"{t.example.id}/{number}", prompt=row.prompt + ask, pivot=other + ask if other else ""))
        return rows, missing

    def loss(self, model: Any, batch: Any) -> LossOut:
        """CE of the answers; with `contrastive` also the weighted sum of `pairs_apart`, logged as ``contrastive``."""
        out = super().loss(model, batch)
        if not self.contrastive:
            return out
        term = pairs_apart(model, batch, self.temperature)
        return replace(out, sum=out.sum + self.contrastive * term, logs={**out.logs, "contrastive": term.detach()})

    def loss_params(self) -> dict[str, Any]:
        """See `Method.loss_params`."""
        term = {"contrastive": self.contrastive, "temperature": self.temperature} if self.contrastive else {}
        return {**super().loss_params(), **term}


def draw(question: str, cross: float, seed: int, number: int) -> str:
    """The subset of a question in a pass: its language is a fair coin, the answer's is the other one with probability `cross`."""
    rng = Random(f"cit:{seed}:{question}:{number}")
    first = rng.choice("LT")
    return first + ("LT".replace(first, "") if rng.random() < cross else first)


def pairs_apart(model: Any, batch: Batch, temperature: float) -> Tensor:
    """Contrastive term: a question is to be closer to itself in the other language than to the other questions.

    InfoNCE in one direction, as in the paper's code: each row's prompt against the twins' prompts of the micro-batch,
    over cosines of the first layer's states at the prompts' last tokens, divided by `temperature`. Other passes
    over the same question are no negatives [R]. The larger the micro-batches, the more negatives a row has.

    Returns:
        Scalar, in nats: the sum over the rows that have a twin of InfoNCE times the row's targets (times their weight). One
        row alone has nothing to be told from and adds 0.
    """
    import torch
    from torch.nn.functional import cross_entropy, normalize

    rows = [row for row in batch.rows if row.twin]
    # without rows there is a forward pass all the same: under ZeRO-3 every process must make as many
    states = first_layer(model, [*rows, *(row.twin for row in rows)] or batch.rows[:1], batch)
    if not rows:
        return 0.0 * states.sum()
    anchors, others = normalize(states.float(), dim=-1).split(len(rows))
    questions = [row.id.rpartition("/")[0] for row in rows]
    same = torch.tensor([[i != j and a == b for j, b in enumerate(questions)] for i, a in enumerate(questions)], device=states.device)
    cosines = (anchors @ others.T / temperature).masked_fill(same, float("-inf"))
    nce = cross_entropy(cosines, torch.arange(len(rows), device=states.device), reduction="none")
    return (nce * torch.tensor([row.weight * row.targets for row in rows], device=states.device)).sum()


def first_layer(model: Any, rows: Sequence[Row], like: Batch) -> Tensor:
    """First layer's states [n, H] at the last token of each row's prompt; in a batch of the prompts alone, packed if `like` is."""
    import inspect

    import torch

    from xalign.data.choices import collate
    from xalign.training.losses import bare, forward

    prompts = [replace(row, ids=row.ids[:row.n_prompt], twin=None) for row in rows]
    batch = collate(prompts, like.layout is not None).to(like.input_ids.device)
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(bare(model).forward).parameters else {}
    states = forward(model, batch, output_hidden_states=True, **few).hidden_states[1]
    segments = batch.segment_ids.flatten()
    ends = (segments >= 0) & (segments != torch.cat([segments[1:], segments.new_tensor([-1])]))
    return states.flatten(0, 1)[ends]
