"""ML-DFT: direct fine-tuning on the labelled rows of all languages (ML-IPD's baseline, METHODS.md section 1)."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import choice, within
from xalign.data.examples import read_examples
from xalign.methods.prompted import Multilingual, framed, questions
from xalign.methods.supervised import labelled, write_rows
from xalign.training.node import check_rate

if TYPE_CHECKING:
    from xalign.config import Run

# by validation loss in the laboratory: e5_small collapses above 0.01, SmolLM2 hardly moves below
RATES = {"encoder": 0.002, "causal": 0.05}


@dataclass(frozen=True)
class MLDFT(Multilingual):
    """Cross-entropy on all labelled rows at once, without prompts.

    Attributes:
        optimizer: sgd as in the paper, or adamw, the control, with the trainer's learning rate.
        momentum, lr: SGD's momentum and learning rate; auto depends on the backbone (`RATES`).
    """

    name: ClassVar[str] = "ml_dft"

    optimizer: str = choice("sgd", "sgd", "adamw")
    momentum: float = within(0.9, low=0, high=0.999, note="the paper's value is 0.9")
    lr: Any = "auto"

    def check(self, path: str) -> None:
        """Also the learning rate's range."""
        super().check(path)
        check_rate(f"{path}.lr", self.lr)

    def rows(self, run: Run) -> Stage:
        """The source language's data and `labelled` rows of each target language."""
        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            source = framed(labelled(read_examples(inputs[0].file("examples.jsonl")), "source"), None)
            return write_rows(folder, source + read_examples(inputs[1].file("rows.jsonl")), required=("source", "target"))

        return Stage("rows", 1, {"method": "ml_dft"}, work, (questions(run, run.source), self.target_rows(run)),
                     label=f"rows ml_dft {run.source} + {', '.join(run.lang)}")

    def model_stage(self, run: Run) -> Stage:
        """The backbone after the pooled rows."""
        from xalign.training.stage import train_stage

        rate = RATES[run.backbone.kind] if self.lr == "auto" else float(self.lr)
        own = {"momentum": self.momentum, "lr": rate} if self.optimizer == "sgd" else {}
        return train_stage(run, self, self.rows(run), run.backbone.weights(run), optimizer=self.optimizer, **own)
