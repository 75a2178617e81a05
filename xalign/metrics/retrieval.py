"""nDCG of ranked documents."""
from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from xalign.metrics.base import Metric


class NDCG(Metric):
    """nDCG over all documents of a query, gains as they stand, tied scores averaged; by scikit-learn.

    A query with one document is left out; one without any relevant document counts 0. Source: microsoft/XGLUE,
    evaluation/xglue_evaluate.py (WPR).
    """

    name = "ndcg"

    @property
    def signature(self) -> str:
        return f"ndcg|cut:none|gain:linear|ties:averaged|single:left-out|scikit-learn:{version('scikit-learn')}"

    def per_example(self, scores: Sequence[Sequence[float]], gains: Sequence[Sequence[float]]) -> list[float | None]:
        """One value in [0, 1] a query, from its documents' scores and their relevance (XGLUE: 0 to 4)."""
        from sklearn.metrics import ndcg_score

        return [float(ndcg_score([g], [s])) if len(g) > 1 else None for s, g in zip(scores, gains, strict=True)]
