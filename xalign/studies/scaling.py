"""The scaling law of runs that differ in the number of their translation rows (x-LLM Figures 3 and 7). No torch."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import ConfigError, XalignError, choice, nearest, within
from xalign.studies.base import Findings, Study

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.report.runs import FinishedRun
    from xalign.studies.scaling_points import Series

METRICS = ("comet", "chrf", "bleu")
INTO = ":src-tgt"  # tasks that translate into the target language
SWEEP = "make them by a sweep over parallel.sentences or parallel.pairs, as experiment=xllm_figure3_lab does"


@dataclass(frozen=True)
class Scaling(Study):
    """Law, intervals, forecasts and picture of translation quality over the number of translation rows.

    Attributes:
        score: ``TASK/METRIC``, languages as roles (``flores:src-tgt/comet``), or ``METRIC``; ``auto``: into the target language, by the
            first of `METRICS` that there is.
        mode: ``per_language``: every language its own law with gamma 1; ``shared``: alpha and beta in common.
        gamma: of ``shared``: the languages' similarities, a mapping, its YAML or JSON file, or one number.
        resamples: of the bootstrap.
    """

    name: ClassVar[str] = "scaling"
    sweeps: ClassVar[bool] = True

    score: str = "auto"
    mode: str = choice("per_language", "per_language", "shared")
    gamma: Any = None
    resamples: int = within(2000, low=200)

    def check(self, path: str) -> None:
        """Also refuse a gamma that has no use, and a shared fit without one."""
        super().check(path)
        if (self.mode == "shared") != (self.gamma is not None):
            raise ConfigError(f"{path}.gamma={self.gamma}: " + (
                f"{path}.mode=shared tells the languages apart by it; name a YAML file {{language: similarity}} (study=similarity writes "
                "gamma.yaml), or one number in (0, 1]" if self.gamma is None else
                f"of a single language it cannot be told from alpha; set {path}.mode=shared, or leave it out"))

    def check_run(self, run: Run) -> None:
        """Refuse runs that train on no translation rows, and a gamma that lacks a language."""
        if run.mode != "train":
            raise ConfigError(f"study=scaling: compares trainings on more and more translation rows, and mode={run.mode} trains "
                              "nothing; leave one of them out")
        subsets = getattr(run.method, "subsets", ())
        if subsets and "mt" not in subsets or getattr(run.method, "parallel", True) is False:
            raise ConfigError(f"study=scaling: method={run.choices.get('method')} is set to train on no translation rows (subset mt); "
                              "add them, or leave the study out")
        self.gammas(run.lang)

    def gammas(self, langs: Iterable[str]) -> dict[str, float]:
        """Language → gamma; 1 in the mode per_language.

        Raises:
            ConfigError: the file is not there, lacks a language, or a value is out of range.
        """
        from xalign.analysis.allocation import read_mapping

        langs = list(langs)
        if self.mode == "per_language":
            return dict.fromkeys(langs, 1.0)
        single = isinstance(self.gamma, (int, float)) and not isinstance(self.gamma, bool)
        found = dict.fromkeys(langs, self.gamma) if single else read_mapping(self.gamma, "study.gamma", langs, "a similarity in (0, 1]")
        for lang, gamma in found.items():
            if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0 < gamma <= 1:
                raise ConfigError(f"study.gamma={self.gamma}: {lang} has {gamma}; a similarity is a number in (0, 1]")
        return {lang: float(gamma) for lang, gamma in found.items()}

    def findings(self, runs: Sequence[FinishedRun]) -> Findings:
        """Tables of points and laws, their picture, ``law.yaml`` for method.law, ``scaling.csv``."""
        from xalign.studies.scaling_plot import draw
        from xalign.studies.scaling_points import gather, name_systems
        from xalign.studies.scaling_report import files, laws_grid, points_grid

        for task, metric in self.candidates(runs):  # of several that would do, the first that a law goes through
            series, notes = gather(runs, task, metric)
            fitted, without = self.fitted(series, metric)
            if fitted:
                break
        else:
            first = next(iter(without.values()), f"no run was trained on translation rows; {SWEEP}")
            raise XalignError(f"study=scaling: {first}" + f" (and {len(without) - 1} more without a law)" * (len(without) > 1))
        notes += [f"Left out, no law goes through so few amounts of data: {', '.join(without)}."] * bool(without) + name_systems(fitted)
        grids = [laws_grid(fitted, task, metric, self, notes), points_grid(fitted, task, metric)]
        return Findings(grids, [draw(fitted, task, metric, self)], files(fitted, task, metric))

    def fitted(self, series: Sequence[Series], metric: str) -> tuple[list[Series], dict[str, str]]:
        """(the series with their fits, those without one → why)."""
        import numpy as np

        from xalign.analysis.scaling import fit

        gammas = self.gammas(dict.fromkeys(s.lang for s in series))
        groups: dict[tuple[str, str], list[Series]] = {}
        for s in series:
            s.gamma = gammas[s.lang]
            groups.setdefault((s.system, s.lang if self.mode == "per_language" else ""), []).append(s)
        kept, without = [], {}
        for group in groups.values():
            points = [(s.gamma * p.rows, p.score) for s in group for p in s.points]
            name = f"{group[0].points[0].run.method} {', '.join(s.lang for s in group)}"
            try:
                found = fit(points, np.hstack([s.errors(metric, self.resamples) for s in group]), self.resamples, name=name)
            except XalignError as e:
                without[f"{name} ({', '.join(f'{p.rows:,.0f}' for s in group for p in s.points)})"] = str(e)
                continue
            for s in group:
                s.fit = found
            kept += group
        return kept, without

    def scored(self, runs: Sequence[FinishedRun]) -> tuple[str, str]:
        """(task with languages as roles, metric) of the score; see `candidates`."""
        return self.candidates(runs)[0]

    def candidates(self, runs: Sequence[FinishedRun]) -> list[tuple[str, str]]:
        """(task with languages as roles, metric) of the score; of ``auto`` all that would do, the best first.

        Raises:
            XalignError: no run has it, or several tasks do.
        """
        from xalign.rows import LOWER_IS_BETTER, as_roles
        from xalign.tables import is_number

        rows = [r for run in runs for r in run.rows if r["when"] == "after" and r["lang"] in run.langs and is_number(r["value"])]
        roles = {(r["task"], r["metric"]): (as_roles(r["task"], r["source"], r["lang"]), r["metric"]) for r in rows}
        there = list(dict.fromkeys(roles.values()))
        task, _, metric = self.score.rpartition("/")
        task, metric = roles.get((task, metric), (task, metric))
        if self.score == "auto":
            fitting = [key for m in METRICS for key in there if key[1] == m and key[0].endswith(INTO)]
        else:
            fitting = [key for key in there if key[1] == metric and task in ("", key[0])]
            fitting = [key for key in fitting if key[0].endswith(INTO)] or fitting
        if fitting and (self.score == "auto" or len(fitting) == 1) and not fitting[0][1].startswith(LOWER_IS_BETTER):
            return fitting
        names = [f"{t}/{m}" for t, m in there if "." not in m and not m.startswith(LOWER_IS_BETTER)]
        if len(fitting) > 1:
            which = " or ".join(f"{t}/{m}" for t, m in fitting)
            raise XalignError(f"study.score={self.score}: is a metric of several tasks; choose {which}")
        if fitting:
            raise XalignError(f"study.score={self.score}: lower is better, and the law is of a score that rises to 100; choose another")
        lacks = "no trained run has a score of translation into its target language" if self.score == "auto" else \
            f"no trained run has this score{nearest(self.score, names)}"
        known = f"{', '.join(names[:12]) or 'none'}{', …' * (len(names) > 12)}"
        raise XalignError(f"study.score={self.score}: {lacks}; scores there are: {known}")
