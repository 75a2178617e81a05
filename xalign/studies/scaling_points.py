"""What finished runs show of the scaling law: score against translation rows, gathered into series that lie on one curve. No torch."""
from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from xalign.analysis.allocation import Law
from xalign.analysis.scaling import Fit, item_errors
from xalign.analysis.systems import tell_apart
from xalign.config import XalignError
from xalign.report.course import series as course
from xalign.report.drawing import language
from xalign.rows import Row, as_roles, percent
from xalign.tables import is_number

if TYPE_CHECKING:
    from xalign.report.runs import FinishedRun

SIZES = ("parallel.sentences", "parallel.pairs", "method.lines", "method.budget")  # configuration keys that runs of one curve may differ in
TRANSLATION, TEXT = "mt", "text"  # subsets of training rows: translation instructions; texts of continued pre-training


@dataclass(frozen=True)
class Point:
    """One run's score.

    Attributes:
        rows: translation rows (or texts) that it was trained on.
        score: on the scale to 100; se: its standard error over test items.
        row: as rows.jsonl has it.
    """

    run: FinishedRun
    rows: float
    score: float
    se: float | None
    row: Row


@dataclass
class Series:
    """The runs of one system in one language, by rows.

    Attributes:
        system: the method, and what else tells systems apart; facts: all of that.
        texts: X counts texts of continued pre-training, not translation rows.
        references: what was not trained on X: the model before training (``untrained``), baselines such as ``copy``; name → score.
        fit: of gamma X; shared by all languages of a system in the mode ``shared``.
    """

    system: str
    facts: dict[str, Any] = field(repr=False)
    lang: str
    texts: bool
    points: list[Point]
    references: dict[str, float] = field(default_factory=dict)
    gamma: float = 1.0
    fit: Fit | None = field(default=None, repr=False)
    named: bool = False

    @property
    def label(self) -> str:
        """The language and, where there are several, the system."""
        return f"{language(self.lang)}, {self.system}" if self.named else language(self.lang)

    @property
    def unit(self) -> str:
        return "texts" if self.texts else "rows"

    @property
    def law(self) -> Law:
        """The fit's law with the language's gamma."""
        assert self.fit is not None
        return Law(self.fit.law.alpha, self.fit.law.beta, self.gamma)

    @property
    def last(self) -> float:
        """The largest X."""
        return max(p.rows for p in self.points)

    def errors(self, metric: str, resamples: int) -> np.ndarray:
        """[resamples, points]: what other test items would have changed, in points of the score.

        From the per-example scores, the same items for all points; without them, from each point's own standard error.
        """
        kept = [p.run.model("after").examples.get((p.row["lang"], p.row["task"], p.row["metric"])) for p in self.points]
        found = item_errors(metric, [e for e in kept if e], resamples) if all(kept) else None
        if found is None:
            rng = np.random.default_rng(zlib.crc32(f"{self.system} {self.lang}".encode()))
            return np.array([p.se or 0.0 for p in self.points]) * rng.standard_normal((resamples, len(self.points)))
        return found if percent(metric) else 100 * found

    def falls(self) -> list[str]:
        """Where more rows come with a lower score: ``15 to 60 rows: 19.1 to 18.2``; means over the seeds."""
        at: dict[float, list[float]] = {}
        for p in self.points:
            at.setdefault(p.rows, []).append(p.score)
        means = [(x, sum(s) / len(s)) for x, s in sorted(at.items())]
        return [f"{x:,.0f} to {y:,.0f} {self.unit}: {s:.1f} to {t:.1f}" for (x, s), (y, t) in zip(means, means[1:], strict=False) if t < s]


def trained_rows(run: FinishedRun, lang: str) -> tuple[float, bool]:
    """(translation rows of `lang` that a run was trained on, False), or (texts of continued pre-training, True).

    Counted by the stages that wrote the training rows, as run.json records them, before the trainer holds some out for validation: so
    method.budget counts them too. A training that ended within its first pass saw that share of them.

    Raises:
        XalignError: run.json does not say.
    """
    facts = [s["facts"] for s in stages(run) if s.get("label", "").startswith("rows ") and "subsets" in s.get("facts", {})]
    if not facts:
        raise XalignError(f"{run.folder}: run.json does not count the training rows; repeat the run's command to write it again")
    subsets = {k: n for f in facts for k, n in f["subsets"].items()}
    texts = bool(subsets.get(TEXT))
    by_lang: Mapping[str, int] = {k: n for f in facts for k, n in f.get("translation instructions", {}).items()}
    if not texts and len(run.langs) > 1 and lang not in by_lang and subsets.get(TRANSLATION):
        raise XalignError(f"{run.folder}: run.json counts translation rows of all languages together; take runs of one language each")
    count = subsets[TEXT] if texts else by_lang.get(lang, subsets.get(TRANSLATION, 0))
    passes = [points[-1][1] for title, points in course(run, "epoch") if points and title.startswith("pretrain" if texts else "train")]
    return count * min(1.0, *passes) if passes else count, texts


def stages(run: FinishedRun) -> list[dict[str, Any]]:
    """The stages in run.json; empty where it has none."""
    return list(run.facts.get("cost", {}).get("stages", []))


def held_out(runs: Iterable[FinishedRun]) -> str:
    """What there is to say of rows that were counted and not trained on; empty where nothing is."""
    shares, early = [], False
    for run in runs:
        early |= any(points[-1][1] < 1 for _, points in course(run, "epoch") if points)
        for facts in (s["facts"] for s in stages(run) if "train_rows" in s.get("facts", {})):
            given = facts["rows"] + sum(n for k, n in facts.items() if k.startswith("rows_dropped_"))
            shares.append(100 * (1 - facts["train_rows"] / given))
    text = []
    if shares and max(shares) > 0:
        low, high = f"{min(shares):.1f}", f"{max(shares):.1f}"
        text.append(f"Of all rows of a training, {low if low == high else f'{low} to {high}'} % were held out for validation or were too "
                    "long; X counts them, as method.budget does.")
    if early:
        text.append("A training that ended within its first pass counts with the share of its rows that it saw.")
    return " ".join(text)


def identity(run: FinishedRun, lang: str) -> dict[str, Any]:
    """What runs of one curve have in common; a file that is named by the language counts as the same."""
    own = run.model("after").identity.items()
    facts = {k: as_roles(v, run.source, lang) if isinstance(v, str) else v for k, v in own if k not in SIZES}
    return facts | ({"lang": ",".join(run.langs)} if len(run.langs) > 1 else {})


def gather(runs: Sequence[FinishedRun], task: str, metric: str) -> tuple[list[Series], list[str]]:
    """(the series of trained runs that have the score, notes on what is left out).

    Runs of one series differ in nothing but `SIZES`, seed and target language.
    """
    found: dict[tuple[str, str], Series] = {}
    unit, empty = 1 if percent(metric) else 100, []
    for run in {r.name: r for r in runs if r.trained}.values():
        for lang in run.langs:
            facts = identity(run, lang)
            system = json.dumps(facts, sort_keys=True, default=str)
            rows = {r["when"]: r for r in run.rows if r["lang"] == lang and is_number(r["value"])
                    and (as_roles(r["task"], r["source"], lang), as_roles(r["metric"], r["source"], lang)) == (task, metric)}
            if "after" not in rows:
                continue
            count, texts = trained_rows(run, lang)
            if not count:
                empty.append(run.name)
                continue
            row = rows["after"]
            series = found.setdefault((system, lang), Series(system, facts, lang, texts, []))
            series.points.append(Point(run, count, unit * row["value"], unit * row["se"] if is_number(row.get("se")) else None, row))
            names = {when: when.partition(":")[2] or "untrained" for when in rows if when != "after"}
            series.references |= {name: unit * rows[when]["value"] for when, name in names.items()}
    for series in found.values():
        series.points.sort(key=lambda p: (p.rows, p.run.seed))
    notes = [f"Left out, trained on no translation rows: {', '.join(empty)}."] * bool(empty)
    return list(found.values()), notes


def name_systems(series: Sequence[Series]) -> list[str]:
    """Give systems their names and return notes on what the names do not say."""
    first = {s.system: s for s in series}
    runs = [s.points[0].run for s in first.values()]
    labels, notes = tell_apart([run.method for run in runs], [s.facts for s in first.values()], [run.folder for run in runs])
    names = dict(zip(first, labels, strict=True))
    for s in series:
        s.system, s.named = names[s.system], len(names) > 1
    return notes if len(names) > 1 else []
