"""A method: which rows it trains on and which loss it takes. The trainer knows nothing else of it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Stage
from xalign.config import ConfigError, Node

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.data.packing import Batch, Row
    from xalign.training.losses import LossOut


@dataclass(frozen=True)
class Method(Node):
    """Base of every method.

    Class attributes:
        name: what the YAML is called.
        kinds: backbone kinds that it can train.
        translates: it needs the translator.
    """

    name: ClassVar[str] = ""
    kinds: ClassVar[tuple[str, ...]] = ("causal",)
    translates: ClassVar[bool] = False

    def check_run(self, run: Run) -> None:
        """Raise ConfigError for more than one target language, or data that the translator cannot read."""
        if len(run.lang) > 1:
            raise ConfigError(f"lang={list(run.lang)}: method {self.name} trains for one target language; "
                              f"run one after the other with --multirun lang={','.join(run.lang)}")
        if self.translates:
            run.translator.check_source(run)

    def rows(self, run: Run) -> Stage:
        """The training rows: ``rows.jsonl`` of Examples; the facts count them by subset."""
        raise NotImplementedError(type(self).__name__)

    def loss(self, model: Any, batch: Batch) -> LossOut:
        """Loss of one micro-batch, not divided: by default the weighted CE of the answer tokens."""
        from xalign.training.losses import token_ce

        return token_ce(model, batch)

    def loss_params(self) -> dict[str, Any]:
        """Everything in `loss` and `row_weights` that decides the trained model: part of its key."""
        return {"loss": "ce", "weighting": "pooled"}

    def row_weights(self, rows: Sequence[Row]) -> list[float]:
        """Weight of every supervised token of each tokenised row; the loss divides by their number."""
        return [row.weight for row in rows]

    def model_stage(self, run: Run) -> Stage:
        """The trained model, in the hub's format."""
        from xalign.training.stage import train_stage

        return train_stage(run, self, self.rows(run), run.backbone.weights(run))
