"""ML-IPD: E-IM, prompt distillation across languages, fine-tuning on a few labelled rows (METHODS.md section 3)."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, choice, within
from xalign.data.examples import Example, read_examples
from xalign.data.prompts import Frame, language_text, soft_tokens
from xalign.methods.base import Objective
from xalign.methods.prompted import Prompted, framed, questions
from xalign.methods.supervised import labelled, write_rows

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.training.losses import LossOut


@dataclass(frozen=True)
class MLIPD(Prompted):
    """Stage 1: E-IM. Stage 2: a student learns E-IM's outputs, from inputs in either language. Stage 3: CE on labelled rows.

    Attributes:
        language_prompt: LP as text, as trainable (`soft`) tokens, or none.
        soft_tokens: how many trainable tokens a language has.
        output: what the student imitates: logits, probabilities, or hidden states.
        train: distillation trains all weights, or the soft tokens alone.
        distil_lr, finetune_lr: learning rates of stages 2 and 3, relative to the first.
        distil_epochs: passes over the rows in stage 2.
    """

    name: ClassVar[str] = "ml_ipd"

    language_prompt: str = choice("text", "text", "soft", "none")
    soft_tokens: int = within(20, low=1, high=256)
    output: str = choice("logits", "logits", "probs", "hidden")
    train: str = choice("all", "all", "soft_prompt")
    distil_lr: float = within(1.0, high=1000, above=0)
    distil_epochs: int = within(1, low=1)
    finetune_lr: float = within(0.5, high=10, above=0)

    def check_run(self, run: Run) -> None:
        """Also refuse to train soft tokens that are not there."""
        super().check_run(run)
        if self.train == "soft_prompt" and self.language_prompt != "soft":
            raise ConfigError(f"method.train=soft_prompt: there are no soft tokens with method.language_prompt={self.language_prompt}; "
                              "set method.language_prompt=soft")

    def frame(self, run: Run) -> Frame:
        """TP, and LP as `language_prompt` says."""
        return Frame(self.language_prompt, run.source, self.soft_tokens)

    def distil_rows(self, run: Run) -> Stage:
        """x_L with x_S as its pivot; every row of the data in every language."""
        frame, inputs = self.frame(run), (questions(run, run.source), *(questions(run, lang) for lang in run.lang))
        choose = run.backbone.kind == "encoder"

        def work(folder: Path, artifacts: list[Artifact]) -> dict[str, Any]:
            source, *others = (read_examples(a.file("examples.jsonl")) for a in artifacts)
            rows = [row for other in others for row in pivoted(other, source, choose)]
            return write_rows(folder, framed(labelled(rows, "pair"), frame), required=("pair",))

        return Stage("rows", 1, {"method": "distil", "frame": frame.params(), "choose": choose}, work, inputs,
                     label=f"rows distillation {run.source} → {', '.join(run.lang)}")

    def rows(self, run: Run) -> Stage:
        """Stage 3's labelled target rows."""
        return self.target_rows(run, self.frame(run))

    def training_rows(self, run: Run) -> tuple[Stage, ...]:
        """The rows of the three stages."""
        return self.eim_rows(run), self.distil_rows(run), self.rows(run)

    def model_stage(self, run: Run) -> Stage:
        """ML-IAM: the distilled student, fine-tuned."""
        from xalign.training.stage import train_stage

        teacher = self.eim_stage(run)
        soft = self.soft_tokens if self.language_prompt == "soft" else 0
        distil = Distil(self.output, self.train, tuple(run.lang) if soft else (), soft)
        student = train_stage(run, distil, self.distil_rows(run), teacher, name="distil", teacher=teacher,
                              lr_factor=self.distil_lr, epochs=self.distil_epochs)
        return train_stage(run, self, self.rows(run), student, lr_factor=self.finetune_lr)


def pivoted(rows: list[Example], source: list[Example], choose: bool) -> list[Example]:
    """The rows, each with the source-language row of its id as pivot.

    Args:
        choose: for an encoder, whose options stand in the language of their prompt. Else both sides are teacher-forced with
            the source language's answer, the one that the teacher was taught [R].
    """
    by_id = {e.id: e for e in source}
    pairs = [(e, by_id[e.id]) for e in rows if e.id in by_id]
    return [e.with_(pivot=s.prompt, pivot_options=s.options, response=e.response if choose else s.response) for e, s in pairs]


@dataclass(frozen=True)
class Distil(Objective):
    """Stage 2: L = 1/2 mean[(z_T(x_S) - z(x_L))^2 + (z_T(x_S) - z(x_S))^2], z over options or, at each answer token, the vocabulary.

    Attributes:
        output, train: as in `MLIPD`.
        languages, soft: languages that get `soft` trainable tokens each.
    """

    name: ClassVar[str] = "distillation"
    effort: ClassVar[float] = 4.2

    output: str = "logits"
    train: str = "all"
    languages: tuple[str, ...] = ()
    soft: int = 0

    def loss_params(self) -> dict[str, Any]:
        """See `Objective.loss_params`."""
        return {"loss": "distil", "output": self.output, "train": self.train, "languages": list(self.languages), "soft": self.soft}

    def extend(self, backbone: Any) -> None:
        """Give the languages their soft tokens, starting from LP's text; with `train=soft_prompt` freeze all else."""
        if self.soft:
            from xalign.backbones.soft import add_soft_tokens

            tokens = {lang: soft_tokens(lang, self.soft) for lang in self.languages}
            vectors = add_soft_tokens(backbone, [(t, language_text(lang)) for lang, t in tokens.items()])
            if self.train == "soft_prompt":
                backbone.model.requires_grad_(False)
                vectors.requires_grad_(True)

    def loss(self, model: Any, batch: Any) -> LossOut:
        """See the class; logs the two squared errors, ``mse_target`` of x_L and ``mse_source`` of x_S."""
        import torch

        from xalign.training.losses import LossOut, aids, twins

        pivots = twins(batch)
        with torch.no_grad():
            teacher, known = self._outputs(aids(model).teacher.model, pivots)
        (other, found), (same, _) = self._outputs(model, batch), self._outputs(model, pivots)
        usable = torch.ones_like(teacher, dtype=torch.bool)
        if self.output != "hidden":  # but for options that a row lacks
            usable = known.logits > torch.finfo(known.logits.dtype).min
        errors = [((z - teacher).masked_fill(~usable, 0) ** 2).sum(-1) / usable.sum(-1) for z in (other, same)]
        logs = dict(zip(("mse_target", "mse_source"), (e.detach().sum() for e in errors), strict=True))
        return LossOut((0.5 * sum(errors) * found.weights).sum(), found.count, logs)

    def _outputs(self, model: Any, batch: Any) -> tuple[Any, Any]:
        """([n, O] what is compared, the `Targets`)."""
        from xalign.training.losses import targets

        found = targets(model, batch, states=self.output == "hidden")
        if self.output == "hidden":
            return found.states.float(), found
        logits = found.logits.float()
        return (logits.softmax(-1) if self.output == "probs" else logits), found
