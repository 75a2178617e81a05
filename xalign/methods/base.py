"""A method: which rows it trains on and which loss it takes. The trainer knows nothing else of it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Stage
from xalign.config import ConfigError, Node
from xalign.values import shown

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.data.packing import Row
    from xalign.data.prompts import Frame
    from xalign.training.losses import LossOut


class Objective:
    """What one training stage minimises. A method is one; a method of several stages has one for each.

    Class attributes:
        name: in the plan and the log.
        effort: of one epoch in the laboratory, in minutes on two cores, for the plan's estimate.
    """

    name: ClassVar[str] = ""
    effort: ClassVar[float] = 1.0

    def loss(self, model: Any, batch: Any) -> LossOut:
        """Loss of one micro-batch, not divided: by default the weighted CE of the answer tokens (or the choice).

        Args:
            model: the trainer's engine around the model; `xalign.training.losses` has what a loss needs of it.
            batch: `xalign.data.packing.Batch` or, for an encoder, `xalign.data.choices.ChoiceBatch`.
        """
        from xalign.training.losses import supervised

        return supervised(model, batch)

    def loss_params(self) -> dict[str, Any]:
        """Everything in `loss`, `row_weights` and `extend` that decides the trained model: part of its key."""
        return {"loss": "ce", "weighting": "pooled"}

    def row_weights(self, rows: Sequence[Row]) -> list[float]:
        """Weight of every target (supervised token, choice) of each tokenised row; the loss divides by their number."""
        return [row.weight for row in rows]

    def extend(self, backbone: Any) -> None:
        """Add modules of the method's own to ``backbone.model`` or freeze parts of it, before training.

        Modules are added with ``backbone.attach(name, module)``: they are trained and left out of the saved model.
        """


@dataclass(frozen=True)
class Method(Objective, Node):
    """Base of every method.

    Class attributes:
        name: what the YAML is called.
        kinds: backbone kinds that it can train.
        translates: it needs the translator.
        many: it trains one model for several target languages.
    """

    name: ClassVar[str] = ""
    kinds: ClassVar[tuple[str, ...]] = ("causal",)
    translates: ClassVar[bool] = False
    many: ClassVar[bool] = False

    def check_run(self, run: Run) -> None:
        """Raise ConfigError for a backbone it cannot train, too many target languages, or data it cannot use."""
        if run.backbone.kind not in self.kinds:
            raise ConfigError(f"method={self.name}: trains {' and '.join(self.kinds)} backbones, backbone="
                              f"{run.choices.get('backbone')} is {run.backbone.kind}; choose "
                              f"{REMEDY[self.kinds[0]]}, or another method")
        if len(run.lang) > 1 and not self.many:
            raise ConfigError(f"lang={shown(run.lang)}: method {self.name} trains for one target language; "
                              f"run one after the other with --multirun lang={','.join(run.lang)}")
        if run.backbone.kind == "encoder" and not run.data.has_options:
            raise ConfigError(f"data={run.choices.get('data')}: has no options to choose from, and an encoder cannot write "
                              "free text; choose data=lab, or a causal backbone")
        if self.translates:
            run.translator.check_source(run)

    def rows(self, run: Run) -> Stage:
        """The training rows: ``rows.jsonl`` of Examples; the facts count them by subset."""
        raise NotImplementedError(type(self).__name__)

    def training_rows(self, run: Run) -> tuple[Stage, ...]:
        """The rows of every training stage, for the check against the tests."""
        return (self.rows(run),)

    def frame(self, run: Run) -> Frame | None:
        """The prompts that the trained model expects around its input; None: the input alone."""
        return None

    def model_stage(self, run: Run) -> Stage:
        """The trained model, in the hub's format."""
        from xalign.training.stage import train_stage

        return train_stage(run, self, self.rows(run), run.backbone.weights(run))


REMEDY = {"causal": "one that writes text (smollm2, hf)", "encoder": "one that ranks options (e5_small, xlmr)"}
