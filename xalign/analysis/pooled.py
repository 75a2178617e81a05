"""Two systems in several languages at once: one paired test of the mean over languages, on the items of all of them."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xalign.analysis.corpus import are_summed, rows_value
from xalign.analysis.significance import paired
from xalign.analysis.systems import Outcome, Scored, compare_on, pair_up

RESAMPLES = 2000  # where corpus scores of several languages are computed anew each time

Side = dict[int, Scored]  # seed → per-example scores


def compare_over(metric: str, sides: Sequence[tuple[Side, Side]]) -> tuple[Outcome, list[Outcome]]:
    """(the test of the mean over languages, those of each language) of the second system against the first, one pair a language.

    Every language weighs the same, however many items it has. Items of one cluster's name are exchanged and resampled together in all
    languages: translations of one text depend on each other, and in the source language the items are the same.
    """
    single = [compare_on(metric, a, b) for a, b in sides]
    if len(single) == 1:
        return single[0], single
    total, notes = sum(o.total for o in single), list(dict.fromkeys(o.note for o in single if o.note))
    if not single or any(o.result is None for o in single):
        return Outcome(None, total, "; ".join(notes)), single
    pairs = [pair_up(a, b)[0] for a, b in sides]
    runs = min(map(len, pairs))
    if any(len(own) > runs for own in pairs):
        notes.append(f"mean over languages: {runs} run{'s' * (runs > 1)} of each, some languages have more")
    before, after, clusters, value = _stacked(metric, [own[:runs] for own in pairs])
    return Outcome(paired(before, after, clusters, n=RESAMPLES if value else 10_000, value=value), total, "; ".join(notes)), single


def _stacked(metric: str, pairs: Sequence[Sequence[tuple[Scored, Scored]]]) -> tuple[np.ndarray, np.ndarray, list[Any], Any]:
    """(before, after, clusters, value) of all languages' items in a row, as `paired` takes them."""
    examples = [[[x.examples for x in side] for side in zip(*own, strict=True)] for own in pairs]
    summed = are_summed([e for sides in examples for side in sides for e in side])
    at = 2 if summed else 0
    shared = [sorted(i for i in sides[0][0] if all(i in e and (summed or e[i][0] is not None) for side in sides for e in side))
              for sides in examples]
    clusters = [sides[0][0][i][1] for sides, ids in zip(examples, shared, strict=True) for i in ids]
    parts = [[np.array([[e[i][at] for i in ids] for e in side], dtype=float) for side in sides]
             for sides, ids in zip(examples, shared, strict=True)]
    if not summed:  # a plain mean of these is the mean of the languages' means
        weighed = [[x * len(clusters) / (len(parts) * x.shape[1]) for x in sides] for sides in parts]
        before, after = (np.concatenate([sides[k] for sides in weighed], axis=1) for k in (0, 1))
        return before, after, clusters, None
    inner, width = rows_value(metric), parts[0][0].shape[2]

    def block(place: int, x: np.ndarray) -> np.ndarray:
        """Statistics [S, N, K] among zeros, in a place of the language's own: [S, N, languages * K]."""
        out = np.zeros((*x.shape[:2], len(parts) * width))
        out[..., place * width:(place + 1) * width] = x
        return out

    before, after = (np.concatenate([block(i, sides[k]) for i, sides in enumerate(parts)], axis=1) for k in (0, 1))
    return before, after, clusters, lambda sums: np.mean([inner(sums[..., i * width:(i + 1) * width]) for i in range(len(parts))], axis=0)
