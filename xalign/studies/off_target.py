"""The off-target rate while a model trains: rates, what is written instead, and the same prompts' answers (SDRRL figure 3, appendix E)."""
from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import ConfigError, XalignError, within
from xalign.studies.answers import Palette, Record, Tally, changed, cut, rate, read_answers, shown_language, tally
from xalign.studies.base import Findings, Study
from xalign.tables import MISSING, Grid, number, p_value

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.report.drawing import Plot
    from xalign.report.runs import FinishedRun

REMEDY = "trainer.probe_prompts=20"
IN_FULL = 6  # courses whose every validation is printed; of more the first and the last
ANSWERED = 4  # courses whose answers are shown
STEPS = 5  # of one prompt's answers
PANELS = 12


@dataclass
class Course:
    """The answers in one language while one system trains, those of its seeds together.

    Attributes:
        model: the system's name; target: the languages that it is trained for.
        lang: the language that the prompts ask for.
        at: optimiser steps since the training began → run → its answers.
        tokens: steps → tokens that each run had trained on.
        last: steps of the whole training; kept: those after which the kept weights were.
    """

    model: str
    target: tuple[str, ...]
    lang: str
    last: int = 0
    kept: set[int] = field(default_factory=set)
    at: dict[int, dict[str, list[Record]]] = field(default_factory=dict)
    tokens: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model} {' '.join(self.target) if len(self.target) <= 3 else f'{len(self.target)} languages'}"

    def tally(self, step: int) -> Tally:
        """The answers of all runs at a step."""
        return tally(self.lang, (r for records in self.at[step].values() for r in records))

    def pairs(self) -> list[tuple[list[Record], list[Record]]]:
        """(answers of the untrained model, answers at the last validation) of each run."""
        first, *_, last = sorted(self.at)
        return [(records, self.at[last].get(run, [])) for run, records in self.at[first].items()]


@dataclass(frozen=True)
class OffTargetStudy(Study):
    """The share of answers in another language than asked, at every validation of the training.

    The answers are made while the model trains (`xalign.training.probe`); nothing is computed here.

    Attributes:
        shown: prompts whose answers are printed over the steps.
    """

    name: ClassVar[str] = "off_target"

    shown: int = within(3, low=0, high=100)

    def check_run(self, run: Run) -> None:
        """Refuse a run in which no model answers while it trains."""
        if run.mode != "train":
            raise ConfigError(f"study=off_target: shows the answers of a model while it trains, and mode={run.mode} trains none; "
                              "leave mode out")
        if run.backbone.kind != "causal":
            raise ConfigError(f"study=off_target: backbone={run.choices.get('backbone')} is an encoder, which writes no answers; "
                              "choose a causal backbone (smollm2, hf)")
        if not run.trainer.probe_prompts:
            raise ConfigError(f"study=off_target: trainer.probe_prompts=0: the model answers nothing while it trains; set {REMEDY}")

    def findings(self, runs: Sequence[FinishedRun]) -> Findings:
        """Rates over training with a test of the last against the first validation, answers, pictures, off_target.csv."""
        from xalign.report.curves import off_target_curves
        from xalign.report.repeat import repeat_command

        there = [r for r in runs if (r.folder / "samples.jsonl").is_file()]
        if not there:
            trained = [r for r in runs if r.trained and "backbone.head" not in r.config]  # encoders have one
            how = f"add {REMEDY} study=off_target to the command of a training"
            how += f", e.g. {repeat_command(trained[0])} {REMEDY} study=off_target" if trained else ""
            raise XalignError(f"no run answered prompts while it trained; {how}")
        courses, notes = courses_of(there)
        if len(there) < len(runs):
            names = ", ".join(r.name for r in runs if r not in there)
            notes.append(f"left out, trained without {REMEDY}: {cut(names, 200)}")
        grids = [ends_grid(courses, notes), rates_grid(courses)]
        if self.shown:
            grids += [answers_grid(c, self.shown) for c in courses[:ANSWERED]]
            left = len(courses) - ANSWERED
            if left > 0:
                grids[-1].notes.append(f"Answers of {left} more languages and models: samples.jsonl of each run.")
        judged = any(c.tally(step).judged for c in courses for step in c.at)
        return Findings(grids, [*([off_target_curves(there)] if judged else []), languages_plot(courses)],
                        {"off_target.csv": as_csv(courses)})


def validations(run: FinishedRun) -> dict[int, list[Record]]:
    """Optimiser steps since the training began → the answers; a stage's first are those of the model that the one before it left."""
    from xalign.report.curves import stages_of

    path, found = run.folder / "samples.jsonl", dict[int, list[Record]]()
    records = read_answers(path)
    stage, last = 0, -1
    ends = stages_of(run, ["loss"])[1]
    for (title, step), group in groupby(records, lambda r: (r.get("stage", ""), r.get("step", 0))):
        if last >= 0 and (step < last or title != ends[min(stage, len(ends) - 1)][1]):
            stage += 1
        while stage < len(ends) and ends[stage][1] != title:  # a stage in which nothing was asked
            stage += 1
        last = step
        if stage >= len(ends):
            raise XalignError(f"{path}: has answers of a stage '{title}' that log.jsonl does not have; repeat the run's command")
        found[step + (int(ends[stage - 1][0]) if stage else 0)] = list(group)
    return found


def courses_of(runs: Sequence[FinishedRun]) -> tuple[list[Course], list[str]]:
    """What each system answered in each language, target languages first, and notes on the systems' names."""
    from xalign.report.contenders import contenders, labelled

    systems = [c for c in contenders(runs, ["method"], "lang")[0] if not c.kind]
    labels, notes = labelled(systems)
    found: dict[tuple[str, tuple[str, ...], str], Course] = {}
    for label, system in zip(labels, systems, strict=True):
        for run in system.runs:
            steps, tokens, kept = validations(run), trained_tokens(run), kept_at(run)
            asked = dict.fromkeys(r["lang"] for records in steps.values() for r in records)
            for lang in asked:
                course = found.setdefault((label, run.langs, lang), Course(label, run.langs, lang))
                for step, records in steps.items():
                    if own := [r for r in records if r["lang"] == lang]:
                        course.at.setdefault(step, {})[run.folder.name] = own
                        course.tokens.setdefault(step, []).append(tokens.get(step, 0.0))
                course.last = max(course.last, *tokens)
                course.kept |= kept
    return sorted(found.values(), key=lambda c: c.lang not in c.target), notes


def trained_tokens(run: FinishedRun) -> dict[int, float]:
    """Optimiser steps since the training began → tokens trained on; 0 → 0."""
    from xalign.report.course import series

    out, start, before = {0: 0.0}, 0, 0.0
    for (_, losses), (_, tokens) in zip(series(run, "loss"), series(run, "tokens"), strict=True):
        out |= {start + step: before + n for step, n in tokens}
        start += losses[-1][0] if losses else 0
        before += tokens[-1][1] if tokens else 0
    return out


def kept_at(run: FinishedRun) -> set[int]:
    """The step whose weights the run kept, by its last stage's validation loss; empty if it does not say."""
    from xalign.report.curves import stages_of

    ends = stages_of(run, ["loss"])[1]
    stages = [list(group) for _, group in groupby(run.log, lambda r: r.get("stage", ""))]
    best = [r["step"] for r in stages[-1] if r.get("best")] if stages else []
    return {best[-1] + (int(ends[-2][0]) if len(ends) > 1 else 0)} if best else set()


def ends_grid(courses: Sequence[Course], notes: Sequence[str]) -> Grid:
    """The first against the last validation, one row a course."""
    from xalign.metrics.offtarget import OffTarget
    from xalign.rows import STARS, stars

    tested = [changed(c.pairs()) if len(c.at) > 1 else None for c in courses]
    marks = stars([t.p_randomisation if t else None for t in tested])
    rows = []
    for course, test, mark in zip(courses, tested, marks, strict=True):
        first, last = (course.tally(pick(course.at)) for pick in (min, max))
        rows.append([course.name, course.lang, rate(first), rate(last), number(test.diff, sign=True) + mark if test else MISSING,
                     p_value(test.p_randomisation) if test else MISSING, str(test.n if test else 0), first.instead or MISSING,
                     last.instead or MISSING])
    columns = ["model", "asked for", "untrained", "last validation", "difference", "p", "pairs", "untrained wrote", "last wrote"]
    count = sum(t is not None for t in tested)
    return Grid("Off-target rate: answers in another language than asked", columns, rows, [
        "lower is better; in brackets the 95 % Wilson interval. The difference is that of the prompts judged both times; p by the paired "
        "randomisation test (McNemar's exact one where few answers change).",
        *([STARS.format(k=count)] if any(marks) else []),
        f"signature off_target|{OffTarget().signature}, greedy answers. The last validation's weights need not be those that were kept.",
        *notes], left=(0, 1, 7, 8), wrap=(7, 8))


def rates_grid(courses: Sequence[Course]) -> Grid:
    """Every validation of every course; of many courses the first and the last."""
    rows, full = [], len(courses) <= IN_FULL
    for course in courses:
        steps = sorted(course.at)
        for step in steps if full else dict.fromkeys((steps[0], steps[-1])):
            t = course.tally(step)
            rows.append([course.name, course.lang, f"{step}{'*' * (step in course.kept)}", f"{step / max(course.last, 1):.0%}",
                         f"{fmean(course.tokens[step]):,.0f}", rate(t), f"{t.judged} of {t.asked}", t.instead or MISSING])
    notes = ["* the weights of this step were kept: the lowest validation loss."] if any(c.kept & set(c.at) for c in courses) else []
    notes.append("n: answers whose language can be judged, of all; three-letter codes are ours, two-letter ones CLD3's.")
    if not full:
        notes.append("Only the first and the last validation; all of them: off_target.csv.")
    columns = ["model", "asked for", "step", "of training", "tokens", "off-target rate", "n", "written instead"]
    return Grid("Off-target rate over training", columns, rows, notes, left=(0, 1, 7), wrap=(7,))


def answers_grid(course: Course, shown: int) -> Grid:
    """The first prompts' answers of the first run over the steps."""
    run = next(iter(course.at[min(course.at)]))
    steps = sorted(s for s in course.at if run in course.at[s])
    picked = sorted({steps[round(k * (len(steps) - 1) / (STEPS - 1))] for k in range(STEPS)})
    grid = Grid(f"Answers to the same prompts, {course.name}, asked for {course.lang}", ["step", "language", "prompt and answers"],
                left=(0, 1, 2), wrap=(2,), notes=[f"The first {shown} prompts asked; at most {STEPS} validations; {run}."])
    for asked in course.at[steps[0]][run][:shown]:
        grid.rows += [[asked["id"]], ["prompt", "", cut(asked["prompt"])]]
        for step in picked:
            for r in (r for r in course.at[step][run] if r["id"] == asked["id"]):
                if r["off_target"]:
                    grid.colours[len(grid.rows), 1] = "red"
                grid.rows.append([str(step), shown_language(r), cut(r["answer"])])
    return grid


def languages_plot(courses: Sequence[Course]) -> Plot:
    """The languages of the answers at every validation, one panel a course."""
    from matplotlib.ticker import MaxNLocator

    from xalign.report.drawing import WIDTH, describe, language, new_plot, styled

    @styled
    def draw() -> Plot:
        drawn = list(courses)[:PANELS]
        columns = min(len(drawn), 3)
        rows = math.ceil(len(drawn) / columns)
        figure = new_plot("off_target_languages", WIDTH if columns > 1 else 4.6, 1.3 + 1.7 * rows + 0.4 * (rows == 1))
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        tallies = [[c.tally(step) for step in sorted(c.at)] for c in drawn]
        every = [t for own in tallies for t in own]
        palette, alone = Palette.of(every), len({c.name for c in drawn}) == 1
        for axis, course, own in zip(axes, drawn, tallies, strict=False):
            palette.draw(axis, range(len(own)), own, 0.8)
            axis.set_title(f"asked for {language(course.lang)}" + ("" if alone else f", {course.name}"), loc="left")
            axis.set_xticks(range(len(own)), [str(step) for step in sorted(course.at)],
                            **({"rotation": 60, "fontsize": 6} if len(own) > 8 else {}))
            axis.tick_params(axis="x", length=0)
            axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.set_ylim(0, max(t.asked for t in own) * 1.02)
        for axis in axes[len(drawn):]:
            axis.remove()
        figure.supylabel("answers", fontsize=8)
        palette.legend(figure, every)
        text = f"x: optimiser steps. {drawn[0].name}. " if alone else "x: optimiser steps. "
        text += "The same prompts at every step, one greedy answer each; language by script and CLD3, seeds together. "
        text += f"{len(courses) - len(drawn)} more panels left out: off_target.csv." * (len(courses) > len(drawn))
        alt = "; ".join(f"{c.name}, asked for {language(c.lang)}: {own[0].wrong} of {own[0].judged} judged answers in another language at "
                        f"first, {own[-1].wrong} of {own[-1].judged} at last" for c, own in zip(drawn, tallies, strict=True))
        describe(figure, "Languages of the answers over training.", text.strip(), f"Languages of the answers. {alt}")
        return figure

    return draw()


def as_csv(courses: Sequence[Course]) -> str:
    """All numbers, one line a course and validation."""
    out = io.StringIO()
    writer: Any = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "targets", "lang", "runs", "step", "steps", "tokens", "off_target", "low", "high", "judged", "asked", "kept",
                     "written_instead"])
    for c in courses:
        for step in sorted(c.at):
            t = c.tally(step)
            low, high = t.interval or ("", "")
            writer.writerow([c.model, " ".join(c.target), c.lang, len(c.at[step]), step, c.last, round(fmean(c.tokens[step])),
                             "" if t.share is None else t.share, low, high, t.judged, t.asked, int(step in c.kept), t.instead])
    return out.getvalue()
