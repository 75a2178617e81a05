"""PL-BL: prompts and labelled target rows, without distillation: the decisive ablation of ML-IPD (METHODS.md section 3)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xalign.cache import Stage
from xalign.config import within
from xalign.methods.prompted import Prompted

if TYPE_CHECKING:
    from xalign.config import Run


@dataclass(frozen=True)
class PLBL(Prompted):
    """Hand-written TP and LP; CE on the source language (E-IM), then on labelled rows of the target languages.

    Attributes:
        finetune_lr: learning rate of the second stage, relative to the first; ML-IPD's.
    """

    name: ClassVar[str] = "pl_bl"

    finetune_lr: float = within(0.5, high=10, above=0)

    def rows(self, run: Run) -> Stage:
        """The labelled target rows in their frames."""
        return self.target_rows(run, self.frame(run))

    def training_rows(self, run: Run) -> tuple[Stage, ...]:
        """E-IM's rows and the target rows."""
        return self.eim_rows(run), self.rows(run)

    def model_stage(self, run: Run) -> Stage:
        """E-IM, fine-tuned."""
        from xalign.training.stage import train_stage

        return train_stage(run, self, self.rows(run), self.eim_stage(run), lr_factor=self.finetune_lr)
