"""Ablation tables: runs that differ in a few settings, each beside the full method or beside a baseline. No torch.

SDRRL leaves out one part at a time (Table 6) and changes the source language (Table 12); x-LLM mixes the instruction data (Figure 6) and
trains one model for many languages in place of one each (Figure 4).
"""
from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from xalign.config import ConfigError, XalignError, nearest
from xalign.report.comparison import is_key
from xalign.report.contenders import Contender
from xalign.report.pivot import Cell
from xalign.report.runs import FinishedRun
from xalign.rows import as_roles, lower_note, percent
from xalign.studies.base import Findings, Study
from xalign.studies.effects import MEAN, Panel, Score, panel_of, untrained_of
from xalign.studies.variants import Variant, fullest, label_all, ordered, parts_of, variants_of
from xalign.tables import MISSING, Grid, is_number, number, with_error


@dataclass(frozen=True)
class Ablation(Study):
    """Variants of a method and what each part gives."""

    name: ClassVar[str] = "ablation"
    sweeps: ClassVar[bool] = True

    by: list[str] = field(default_factory=list)
    full: str = ""
    against: str = "full"
    scores: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def check(self, path: str) -> None:
        """Raise ConfigError for a text that says no score or no setting."""
        super().check(path)
        for text in self.scores:
            parts = text.split("/")
            if len(parts) not in (2, 3) or not all(parts) or len(parts) == 3 and parts[0] not in ("target", "source"):
                raise ConfigError(f"{path}.scores: '{text}' is no score; write task/metric, as in choice/accuracy_pmi, with target/ or "
                                  "source/ before it for one of the two")
        for key in self.by:
            if key == "seed":
                raise ConfigError(f"{path}.by=seed: runs of several seeds are averaged, they are no variants; leave it out")
        _settings(self.full, f"{path}.full")

    def findings(self, runs: Sequence[FinishedRun]) -> Findings:
        from xalign.report.drawing import NotDrawn
        from xalign.studies.ablation_plot import effects_plot

        variants, keys = variants_of(runs, self.by)
        full = fullest(variants, keys, _settings(self.full, "study.full"))
        idle = label_all(variants, keys, full, self.against != "full", self.names)
        references = self._references(variants, keys, full)
        variants = ordered(variants, list(references.values()), full, self.names)
        reference_rows = untrained_of([r for v in variants for r in v.runs])
        panels = [panel_of(score, variants, references, reference_rows) for score in self._scores(variants)]
        grid = _grid(panels, variants, references, parts_of(variants, keys), reference_rows)
        if idle:
            grid.notes.append(f"no run is called {', '.join(idle)} (study.names): not there yet, or called otherwise.")
        try:
            plots = [effects_plot(panels, variants, references)]
        except NotDrawn as e:
            plots = []
            grid.notes.append(f"no picture: {e}.")
        return Findings([grid], plots, {"ablation.csv": _csv(panels, variants, keys)})

    def _references(self, variants: Sequence[Variant], keys: Sequence[str], full: Variant) -> dict[str, Variant]:
        """Label → the variant that it is compared with; references themselves are not in it."""
        if self.against == "full":
            return {v.label: full for v in variants if v is not full}
        methods = list(dict.fromkeys(v.runs[0].method for v in variants))
        if self.against not in methods or len(methods) < 2:
            raise XalignError(f"study.against={self.against}: is not full and no method of these variants"
                              f"{nearest(self.against, methods) or '.'} There is {', '.join(methods)}")
        alike = [k for k in keys if k != "method" and not k.startswith("method.")]
        out = {}
        for v in variants:
            fit = [u for u in variants if u.runs[0].method == self.against and all(u.facts[k] == v.facts[k] for k in alike)]
            if v.runs[0].method == self.against or not fit:
                continue
            if len(fit) > 1:
                raise XalignError(f"study.against={self.against}: {v.label} could be compared with {' or '.join(u.label for u in fit)}; "
                                  "give the runs of one of them")
            out[v.label] = fit[0]
        return out

    def _scores(self, variants: Sequence[Variant]) -> list[Score]:
        """The scores asked for, target languages first; else of each task the first of its main metrics (PMI before raw)."""
        found: dict[Score, float] = {}
        for m in (m for v in variants for members in v.members.values() for m in members):
            for r in m.run.rows:
                if r["when"] == "after" and r["lang"] in (m.lang, m.run.source) and is_number(r["value"]):
                    score = Score(r["lang"] == m.run.source, *(as_roles(r[k], m.run.source, m.lang) for k in ("task", "metric")))
                    found[score] = max(found.get(score, 0.0), abs(r["value"]))
        if not self.scores:
            main: dict[tuple[bool, str], Score] = {}
            for s in (s for s, most in found.items() if is_key(s.metric) and not s.lower and most):
                if s.metric.endswith("_pmi") or (s.of_source, s.task) not in main:
                    main[s.of_source, s.task] = s
            chosen = list(main.values())
            if not chosen:
                raise XalignError(f"none of these runs has a main score; study.scores names others, such as {_listed(found)}")
        else:
            chosen = []
            for text in self.scores:
                *role, task, metric = text.split("/")
                fit = [s for s in found if s.metric == metric and task in (s.task, s.task.partition(":")[0])
                       and role in ([], ["source" if s.of_source else "target"])]
                if not fit:
                    near = nearest(text, [s.name for s in found]) or "."
                    raise XalignError(f"study.scores={text}: none of these runs has it{near} There is {_listed(found)}")
                chosen += fit
        return sorted(dict.fromkeys(chosen), key=lambda s: s.of_source)


def _listed(scores: Mapping[Score, float]) -> str:
    names = [s.name for s in scores if "." not in s.metric]
    return ", ".join(names[:8]) + " ..." * (len(names) > 8)


def _settings(text: str, key: str) -> dict[str, Any]:
    """``a.b=1 c=[d,e]`` as a mapping, values as Hydra reads them."""
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(shlex.split(text))}
    except (HydraException, ValueError):
        raise ConfigError(f"{key}={text}: cannot be read; write settings as on a command line, as in method.subsets=[D,T]") from None


def _grid(panels: Sequence[Panel], variants: Sequence[Variant], references: Mapping[str, Variant], parts: Mapping[str, Sequence[str]],
          untrained: Sequence[Contender]) -> Grid:
    """Variants with their parts, scores, differences and marks."""
    whom = list(dict.fromkeys(v.label for v in references.values()))
    minus = f"- {whom[0] if len(whom) == 1 else references[next(iter(references))].runs[0].method}" if whom else "difference"
    grid = Grid(f"Ablation: {', '.join(dict.fromkeys(v.runs[0].method for v in variants))}", ["", *parts])
    for panel in panels:
        grid.columns += ["\n".join([*panel.title.split(), panel.of]), minus]
    for c in untrained:
        cells = [panel.untrained.get(c.label) for panel in panels]
        if any(cells):
            grid.dim.add(len(grid.rows))
            grid.rows.append([c.label, *[""] * len(parts), *(x for panel, cell in zip(panels, cells, strict=True)
                                                             for x in (_text(cell, panel.score.metric), MISSING))])
    for i, v in enumerate(variants):
        row = [v.label, *(ticks[i] for ticks in parts.values())]
        for panel in panels:
            effect, pc = panel.effects.get(v.label), percent(panel.score.metric)
            row.append(_text(effect.cell[MEAN] if effect else None, panel.score.metric))
            got = effect.outcome.result if effect and effect.outcome else None
            row.append(number(got.diff, pc, sign=True) + effect.mark if got and effect else MISSING)
            if effect and effect.mark and got:
                good = (got.diff > 0) != panel.score.lower
                grid.colours[len(grid.rows), len(row) - 1] = "green" if good else "red"
        if len(whom) > 1 and v.label in whom:
            grid.dim.add(len(grid.rows))
        grid.rows.append(row)
    grid.dim.add(len(grid.rows))
    grid.rows.append(["n", *[""] * len(parts), *(x for panel in panels for x in (_counts(panel), ""))])
    grid.notes = _notes(panels, variants, references, bool(parts))
    return grid


def _text(cell: Cell | None, metric: str) -> str:
    return with_error(cell.value, cell.se, percent(metric)) if cell else MISSING


def _counts(panel: Panel) -> str:
    counts = sorted({e.cell[MEAN].n for e in panel.effects.values()})
    return "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _notes(panels: Sequence[Panel], variants: Sequence[Variant], references: Mapping[str, Variant], ticks: bool) -> list[str]:
    """What the numbers and marks mean, and what is missing."""
    seeds = {v.seeds for v in variants}
    many = max(map(len, seeds)) > 1
    out = ["± standard error " + ("over seeds where there are two or more, else over items" if many else "over items")
           + (f"; seed{'s' * many} {', '.join(map(str, next(iter(seeds))))}." if len(seeds) == 1 else
              "; seeds: " + "; ".join(f"{v.label} {', '.join(map(str, v.seeds))}" for v in variants) + ".")]
    tests = sorted({sum(e.p is not None for e in panel.effects.values()) for panel in panels} - {0})
    whom = list(dict.fromkeys(v.label for v in references.values()))
    if tests:
        k = str(tests[0]) if len(tests) == 1 else f"{tests[0]} to {tests[-1]}"
        to = whom[0] if len(whom) == 1 else f"the same settings with {next(iter(references.values())).runs[0].method}"
        out.append(f"Differences to {to} on the same items: * p<.05, ** also after Holm's correction over the {k} variant"
                   f"{'s' * (k != '1')} of a score; two-sided paired randomisation test" + (", the seeds as given." if many else "."))
    if ticks:
        out.append("✓: the part is in the configuration.")
    several = list(dict.fromkeys(" ".join(panel.langs) for panel in panels if len(panel.langs) > 1))
    out += [f"Means over the languages {langs}, each counting the same." for langs in several]
    uneven = [panel.title for panel in panels for e in panel.effects.values() if e.uneven]
    if uneven:
        out.append(f"{', '.join(dict.fromkeys(uneven))}: the variants have no score for some items; a difference is that on those which "
                   "both have.")
    out += lower_note(panel.score.metric for panel in panels)
    reasons: dict[str, dict[str, None]] = {}
    for panel in panels:
        for label, effect in panel.effects.items():
            note = effect.reason or (effect.outcome.note if effect.outcome else "")
            if note:
                start = "not compared: " if effect.reason else ""
                reasons.setdefault(start + note, {})[f"{panel.score.name} ({label})"] = None
    out += [f"{', '.join(list(where)[:4])}{f' and {len(where) - 4} more' * (len(where) > 4)}: {note}." for note, where in reasons.items()]
    out += dict.fromkeys(f"{note}." for panel in panels for note in panel.notes)
    found: dict[str, dict[str, None]] = {}
    for panel in panels:
        for m, r in (x for e in panel.effects.values() for own in e.runs.values() for x in own):
            if r.get("signature"):
                found.setdefault(as_roles(r["signature"], m.run.source, m.lang), {})[panel.title] = None
    return out + [f"{', '.join(which)}: {signature}" for signature, which in found.items()]


def _csv(panels: Sequence[Panel], variants: Sequence[Variant], keys: Sequence[str]) -> str:
    """Unrounded, one line a variant, score and language, and one for the mean over them."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["variant", *keys, "score", "lang", "value", "se", "n", "seeds", "against", "difference", "se_difference", "ci_low",
                  "ci_high", "p", "p_holm", "reason", "runs"])
    for panel in panels:
        for v in (v for v in variants if v.label in panel.effects):
            effect = panel.effects[v.label]
            for lang, cell in effect.cell.items():
                if lang == MEAN and len(effect.cell) == 2:
                    continue
                got = effect.tests[lang].result if lang in effect.tests else None
                tested = [got.diff, got.se, got.ci_low, got.ci_high, got.p_randomisation] if got else [""] * 5
                adjusted = effect.adjusted if lang == MEAN or len(effect.cell) == 2 else ""
                runs = dict.fromkeys(m.run.name for x in ([lang] if lang != MEAN else effect.runs) for m, _ in effect.runs[x])
                out.writerow([v.label, *v.facts.values(), panel.score.name, lang, cell.value, cell.se, cell.n,
                              " ".join(map(str, cell.seeds)), effect.against, *tested, adjusted, effect.reason, " ".join(runs)])
    return text.getvalue()
