"""How the case study shows its answers: rates, one under the other, side by side, and the picture of their languages. No torch."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xalign.languages import LANGUAGES
from xalign.studies.answers import Palette, Record, Tally, changed, cut, rate, read_answers, shown_language, tally
from xalign.studies.base import exported
from xalign.tables import MISSING, Grid, number, p_value

if TYPE_CHECKING:
    from xalign.report.drawing import Plot
    from xalign.report.runs import FinishedRun

FILE = "cases.jsonl"
ROWS = 60  # bars of the picture
SHORT, LONG = 160, 4000  # characters of an answer in the printed table, in cases.md


def unique(lang: str, code: str) -> str:
    """A prompt's id over all languages."""
    return f"{lang}/{code}"


@dataclass
class Model:
    """One column: a model's answers, those of its seeds one after another."""

    label: str
    before: bool
    runs: list[tuple[FinishedRun, list[Record]]] = field(default_factory=list)

    def records(self, lang: str) -> list[Record]:
        """Its answers in a language; of the untrained model, whose answers every run repeats, each once."""
        every = [r for _, records in self.runs for r in records if r["lang"] == lang]
        return list({(r["id"], r["prompt"]): r for r in reversed(every)}.values())[::-1] if self.before else every

    def answer(self, asked: tuple[str, str, str]) -> Record | None:
        """What the first of its runs answered."""
        return next((r for _, records in self.runs for r in records if (r["lang"], r["id"], r["prompt"]) == asked), None)


@dataclass
class Section:
    """The models of one set of target languages, the untrained ones first."""

    langs: tuple[str, ...]
    models: list[Model] = field(default_factory=list)

    @property
    def asked(self) -> list[tuple[str, str, str]]:
        """(language, id, prompt) of every prompt, target languages first."""
        every = dict.fromkeys((r["lang"], r["id"], r["prompt"]) for m in self.models for _, records in m.runs for r in records)
        return sorted(every, key=lambda a: a[0] not in self.langs)

    @property
    def name(self) -> str:
        names = [LANGUAGES[code].name for code in self.langs if code in LANGUAGES]
        return ", ".join(names) if len(names) <= 4 else f"{len(names)} languages"


def sections_of(runs: Sequence[FinishedRun]) -> list[Section]:
    """The runs' answers, by target languages and model."""
    from xalign.report.contenders import UNTRAINED, contenders, labelled

    systems = [c for c in contenders(runs, ["method"], "lang")[0] if c.kind in ("", UNTRAINED)]
    found: dict[tuple[str, ...], Section] = {}
    for label, system in zip(labelled(systems)[0], systems, strict=True):
        models: dict[tuple[str, ...], Model] = {}
        for member in {(m.run.folder, m.when): m for members in system.cells.values() for m in members}.values():
            path = exported(member.run, "cases").get(member.when)
            if path and (path / FILE).is_file():
                model = models.setdefault(member.run.langs, Model(label, member.when == "before"))
                model.runs.append((member.run, read_answers(path / FILE)))
        for langs, model in models.items():
            found.setdefault(langs, Section(langs)).models.append(model)
    for section in found.values():
        section.models.sort(key=lambda m: not m.before)
    return list(found.values())


def tallies(sections: Sequence[Section]) -> Iterator[tuple[Section, str, Model, Tally]]:
    """Section, asked language, model and the languages of its answers, in the order of tables and bars."""
    for section in sections:
        for lang in dict.fromkeys(lang for lang, _, _ in section.asked):
            for model in section.models:
                if records := model.records(lang):
                    yield section, lang, model, tally(lang, records)


def rates_grid(sections: Sequence[Section], notes: Sequence[str]) -> Grid:
    """The off-target rate of every model and language."""
    from xalign.metrics.offtarget import OffTarget
    from xalign.rows import STARS, stars

    found = list(tallies(sections))
    tests = []
    for _, lang, model, _ in found:
        pairs = [([r for r in read_answers(exported(run, "cases")["before"] / FILE) if r["lang"] == lang],
                  [r for r in records if r["lang"] == lang]) for run, records in model.runs if "before" in exported(run, "cases")]
        tests.append(None if model.before else changed(pairs))
    marks = stars([t.p_randomisation if t else None for t in tests])
    columns = ["trained for", "asked in", "model", "rate", "n", "written instead", "against untrained", "p"]
    grid = Grid("Off-target rate: answers in another language than asked", columns, left=(0, 1, 2, 5), wrap=(5,))
    for (section, lang, model, t), test, mark in zip(found, tests, marks, strict=True):
        grid.rows.append([section.name, lang, model.label, rate(t), f"{t.judged} of {t.asked}", t.instead or MISSING,
                          number(test.diff, sign=True) + mark if test else MISSING, p_value(test.p_randomisation) if test else MISSING])
    grid.notes = ["lower is better; in brackets the 95 % Wilson interval; n: answers whose language can be judged, of all. "
                  "Three-letter codes are ours, two-letter ones CLD3's.",
                  "against untrained: the prompts judged both times; p by the paired randomisation test (McNemar's exact one where few "
                  "answers change).", *([STARS.format(k=sum(t is not None for t in tests))] if any(marks) else []),
                  f"signature off_target|{OffTarget().signature}, greedy answers. Only the language is judged, not what is said.", *notes]
    return grid


def said(record: Record | None, longest: int) -> tuple[str, str]:
    """(language, answer) as tables show them: ✗ marks a wrong language, … an answer that may have been cut off."""
    if record is None:
        return MISSING, MISSING
    open_end = record.get("tokens", 0) >= record.get("limit", math.inf)
    return shown_language(record), cut(record["answer"], longest) + " …" * open_end


LEGEND = "✗: not in the asked language; ?: cannot be told; …: as long as study.max_new_tokens allows; ⏎: a new line."


def answers_grid(section: Section) -> Grid:
    """All answers one under the other, a heading a prompt."""
    grid = Grid(f"Answers, models trained for {section.name}", ["model", "language", "prompt and answers"], left=(0, 1, 2), wrap=(2,))
    for asked in section.asked:
        grid.rows += [[unique(*asked[:2])], ["prompt", asked[0], cut(asked[2])]]
        for model in section.models:
            record = model.answer(asked)
            if record and record["off_target"]:
                grid.colours[len(grid.rows), 1] = "red"
            grid.rows.append([model.label, *said(record, SHORT)])
    grid.notes = [LEGEND, *seeds(section)]
    return grid


def side_by_side(section: Section) -> list[Grid]:
    """One table a language: a row a prompt, a column a model."""
    grids = []
    for lang in dict.fromkeys(lang for lang, _, _ in section.asked):
        grid = Grid(f"{LANGUAGES[lang].name}, models trained for {section.name}", ["prompt", *(m.label for m in section.models)],
                    left=tuple(range(len(section.models) + 1)), notes=[LEGEND, *seeds(section)])
        for asked in (a for a in section.asked if a[0] == lang):
            grid.rows.append([cut(asked[2], LONG), *(": ".join(said(m.answer(asked), LONG)) for m in section.models)])
        grids.append(grid)
    return grids


def seeds(section: Section) -> list[str]:
    """A note where several runs stand behind a column."""
    several = [m.label for m in section.models if not m.before and len(m.runs) > 1]
    return [f"Answers of the first seed; several were trained: {', '.join(several)}."] if several else []


def languages_plot(sections: Sequence[Section]) -> Plot:
    """Which languages the answers are in, a bar a model, and the off-target rate with its interval beside it."""
    from matplotlib.ticker import MaxNLocator

    from xalign.report.drawing import COLOURS, GREY, WIDTH, describe, language, new_plot, styled

    @styled
    def draw() -> Plot:
        found = list(tallies(sections))
        drawn, places, y = found[:ROWS], [], 0.0
        heads: list[tuple[float, str]] = []
        for i, (section, lang, _, _) in enumerate(drawn):
            if not i or (section, lang) != drawn[i - 1][:2]:
                y += 0.5 if i else 0.0
                text = f"asked in {language(lang)}" + ("" if len(sections) == 1 else f", trained for {section.name}")
                heads.append((y, text))
                y += 0.85
            places.append(y)
            y += 1.0
        counts = [t for *_, t in drawn]
        figure = new_plot("cases", WIDTH, 1.25 + 0.2 * y)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        palette = Palette.of(counts)
        palette.draw(left, places, counts, 0.8, across=True)
        for place, t in zip(places, counts, strict=True):
            if t.share is not None and t.interval is not None:
                low, high = t.interval
                error = [[max(t.share - low, 0)], [max(high - t.share, 0)]]
                right.errorbar(t.share, place, xerr=error, fmt="o", ms=3.5, color=COLOURS[0], elinewidth=0.9, capsize=2)
            right.text(1.08, place, f"{t.wrong} of {t.judged}" if t.judged else "none judged", fontsize=6.5, va="center", clip_on=False)
        left.set_yticks(places, [m.label for _, _, m, _ in drawn])
        for at, text in heads:
            left.text(0, at, text, fontsize=7.5, fontweight="bold", va="center")
        left.set_ylim(y - 0.4, -0.7)
        left.tick_params(axis="y", length=0)
        right.tick_params(axis="y", length=0)
        left.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        left.set_xlabel("answers")
        right.set_xlim(-0.03, 1.35)
        right.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
        right.set_xlabel("off-target rate (lower is better)")
        right.grid(axis="x")
        right.spines["bottom"].set_bounds(0, 1)
        for axis in (left, right):
            axis.spines["left"].set_visible(False)
            axis.xaxis.label.set_color(GREY)
        palette.legend(figure, counts)
        text = ("Left: languages of the greedy answers by script and CLD3. Right: share of the judged answers in another language than "
                "asked, 95 % Wilson interval.")
        text += f" {len(found) - ROWS} more bars left out: see the table." * (len(found) > ROWS)
        alt = "; ".join(f"asked in {language(lang)}, {m.label}: {t.wrong} of {t.judged} judged answers in another language"
                        + (f" ({t.instead})" if t.instead else "") for _, lang, m, t in drawn)
        describe(figure, "The languages of the answers before and after training.", text, f"Languages of the answers. {alt}")
        return figure

    return draw()
