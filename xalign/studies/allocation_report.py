"""Tables of a shared budget: rows trained on, scores, differences to the uniform split beside what the laws predicted. No torch."""
from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xalign.rows import STARS, arrow, as_roles
from xalign.studies.allocation_runs import MEAN, UNIFORM, Split, Way, unit
from xalign.studies.scaling_points import held_out
from xalign.tables import MISSING, Grid

if TYPE_CHECKING:
    from xalign.report.runs import FinishedRun


def columns_of(splits: Sequence[Split]) -> list[str]:
    """All languages, in the order of their first appearance."""
    return list(dict.fromkeys(lang for split in splits for lang in split.langs))


def rows_grid(splits: Sequence[Split], runs: Sequence[FinishedRun]) -> Grid:
    """Translation rows of each language that each way trained on, and their share."""
    langs = columns_of(splits)
    grid = Grid("Translation rows that the models were trained on", ["allocation", *langs, "all", "seeds"])
    for split in splits:
        grid.rows.append([split.title])
        for way in split.ways:
            cells = [f"{way.rows[lang]:,.0f} ({100 * way.counts[lang] / split.budget:.1f} %)" if lang in way.rows else MISSING
                     for lang in langs]
            grid.rows.append([way.name, *cells, f"{sum(way.rows.values()):,.0f}", ", ".join(str(r.seed) for r in way.runs)])
    grid.notes = [text for text in ["Counted by the stage that built the training rows (receipts.json, run.json), not taken from the "
                                    "configuration.", held_out(runs)] if text]
    return grid


def scores_grid(splits: Sequence[Split], task: str, metric: str, notes: Sequence[str]) -> Grid:
    """Scores, paired differences with their intervals, and what the laws say of both."""
    langs, scale = columns_of(splits), unit(metric)
    grid = Grid(f"{arrow(task)} {metric}, by how the budget was shared", ["", *langs, MEAN])
    for split in splits:
        grid.rows.append([split.title])
        for way in split.ways:
            grid.rows.append([way.name, *_scores(split, way, langs, scale)])
        for way in (way for way in split.ways if way.tests):
            grid.rows.append([f"{way.name} - {UNIFORM}", *(_difference(way, x, scale) for x in [*langs, MEAN])])
        base = split.predicted(split.ways[0]) if split.ways[0].name == UNIFORM else {}
        for way in split.ways:
            if said := split.predicted(way):
                grid.dim.add(len(grid.rows))
                grid.rows.append([f"{way.name}, predicted", *(f"{said[x]:.2f}" if x in said else MISSING for x in [*langs, MEAN])])
                if base and way is not split.ways[0]:
                    grid.dim.add(len(grid.rows))
                    grid.rows.append([f"{way.name} - {UNIFORM}, predicted",
                                      *(f"{said[x] - base[x]:+.2f}" if x in said else MISSING for x in [*langs, MEAN])])
    grid.notes = [*_notes(splits, metric), *notes]
    return grid


def _scores(split: Split, way: Way, langs: Sequence[str], scale: int) -> list[str]:
    """One way's scores and their mean over the languages."""
    cells = []
    for lang in langs:
        value, se, _ = way.value(lang) if lang in way.scored else (None, None, 0)
        cells.append(MISSING if value is None else f"{scale * value:.2f}" + (f" ±{scale * se:.2f}" if se is not None else ""))
    return [*cells, f"{scale * statistics.fmean(way.value(lang)[0] for lang in split.langs):.2f}"]


def _difference(way: Way, lang: str, scale: int) -> str:
    """``+0.48** [+0.10, +0.86]``."""
    got = way.tests[lang].result if lang in way.tests else None
    if got is None:
        return MISSING
    span = f" [{scale * got.ci_low:+.2f}, {scale * got.ci_high:+.2f}]" if got.ci_low == got.ci_low else ""
    return f"{scale * got.diff:+.2f}{way.marks.get(lang, '')}{span}"


def _notes(splits: Sequence[Split], metric: str) -> list[str]:
    """What the numbers are."""
    ways = [way for split in splits for way in split.ways]
    several = max(len(way.runs) for way in ways) > 1
    counts = sorted({way.value(lang)[2] for way in ways for lang in way.scored})
    out = [f"{metric}{' x 100' * (unit(metric) > 1)}, ± standard error over {'seeds, where there are several, else ' * several}items; n "
           + "–".join(f"{n:,}" for n in dict.fromkeys((counts[0], counts[-1]))) + " items a language."]
    tested = [o for way in ways for o in way.tests.values() if o.result]
    if tested:
        out.append(f"Differences on the items that both models answered{', seed by seed' * several}: {STARS.format(k=len(tested))} "
                   "(two-sided paired randomisation); in brackets 95 % bootstrap intervals. Of the mean, translations of one text are "
                   "exchanged together." + " One training each: the intervals are of test items, not of seeds." * (not several))
    lacking = [f"{split.title}: {way.name}" for split in splits for way in split.ways if way.name != UNIFORM and not way.tests]
    if lacking:
        out.append(f"Not compared, for want of a uniform split of the same budget or of per-example scores: {'; '.join(lacking)}.")
    if any(split.laws for split in splits):
        out.append("Predicted: by the scaling laws that the optimised allocation was made from, at the rows trained on; how sure the "
                   "laws are is not in them.")
    else:
        out.append("Nothing is predicted: no run was shared out by scaling laws (method.allocation=optimised).")
    out += dict.fromkeys(f"{o.note}." for way in ways for o in way.tests.values() if o.note)
    recipes = dict.fromkeys(as_roles(row.get("signature") or "no signature", row["source"], lang)
                            for way in ways for lang, by in way.scored.items() for row, _ in by.values())
    return out + [f"{metric}: {text}" for text in recipes]


def allocation_csv(splits: Sequence[Split], task: str, metric: str) -> str:
    """The unrounded numbers, one line a language and way; differences are to the uniform split of the same budget."""
    text, scale = io.StringIO(), unit(metric)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "budget", "allocation", "seeds", "lang", "rows", "trained_on", "score", "se", "n", "difference", "low",
                     "high", "p", "predicted", "task", "metric"])
    for split in splits:
        for way in split.ways:
            said = split.predicted(way)
            for lang in [*split.langs, *([MEAN] if len(split.langs) > 1 else [])]:
                value, se, n = way.value(lang) if lang in way.scored else (
                    statistics.fmean(way.value(k)[0] for k in split.langs), None, sum(way.value(k)[2] for k in split.langs))
                got = way.tests[lang].result if lang in way.tests else None
                test = [scale * got.diff, scale * got.ci_low, scale * got.ci_high, got.p_randomisation] if got else [""] * 4
                score = [scale * value, "" if se is None else scale * se, n]
                writer.writerow([split.system, split.budget, way.name, " ".join(str(r.seed) for r in way.runs), lang,
                                 way.counts.get(lang, ""), way.rows.get(lang, ""), *score, *test, said.get(lang, ""), task, metric])
    return text.getvalue()
