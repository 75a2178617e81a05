"""One finished run before and after: one table a language. No torch."""
from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from xalign.languages import LANGUAGES
from xalign.rows import STARS, Line, Row, absences, arrow, lines, lower_note, percent, read_rows, score, signatures, stars, uneven
from xalign.tables import MISSING, Grid, is_number, number, p_value, show, with_error, write_csv

BASELINES_WIDTH = 27  # characters; more go on a second line


def before_after(rows: Iterable[Row]) -> list[Grid]:
    """One table a language: baselines, before, after, paired difference, p, and what n could have shown.

    Where nothing was trained: one table of all languages instead.
    """
    grids = []
    rows = [r for r in rows if "." not in r["metric"]]  # one relation alone: in rows.jsonl, too many for a table
    gathered = lines(rows)
    if not any(line.after for line in gathered):
        return [_score_grid(gathered)]
    for lang in dict.fromkeys(line.lang for line in gathered):
        source = next(r["source"] for r in rows if r["lang"] == lang)
        grids.append(_language_grid(lang, lang == source, [line for line in gathered if line.lang == lang]))
    return grids


def _language_grid(lang: str, is_source: bool, gathered: list[Line]) -> Grid:
    name = LANGUAGES[lang].name if lang in LANGUAGES else lang
    grid = Grid(f"{name} ({lang}), {'source' if is_source else 'target'} language",
                ["metric", "n", "baselines", "before", "after", "difference", "p", "detects"], left=(0, 2), wrap=(2,))
    shown = [line for line in gathered if any(r and is_number(r["value"]) for r in (line.before, line.after))]
    marks = dict(zip(map(id, shown), stars([line.p for line in shown]), strict=True))
    beaten = False
    for task in dict.fromkeys(line.task for line in shown):
        grid.rows.append([arrow(task)])
        for line in (x for x in shown if x.task == task):
            pc, mark, diff = percent(line.metric), marks[id(line)], line.diff
            cell, flagged = _baselines(line)
            beaten |= flagged
            after = line.after or {}
            grid.rows.append([line.metric, _count(line), cell, score(line.before, pc), score(line.after, pc),
                              with_error(diff, after.get("diff_se"), pc, sign=True), _marked(line, mark),
                              number(after.get("detectable"), pc)])
            if mark and diff:
                colour = "green" if (diff < 0) == line.lower else "red"
                grid.colours |= {(len(grid.rows) - 1, 5): colour, (len(grid.rows) - 1, 6): colour}
    tested = sum(line.p is not None for line in shown)
    if tested:
        grid.notes.append("± standard error; difference = after - before, item by item; p: two-sided paired randomisation "
                          f"test; {STARS.format(k=tested)}; n.s. = not significant.")
        grid.notes.append("detects = smallest true difference that this n finds with power .8: n.s. does not rule out less.")
    elif any(line.after for line in shown):
        grid.notes.append("± standard error; nothing in this table was tested for significance.")
    grid.notes += uneven(shown)
    if beaten:
        grid.notes.append("! = a baseline that is at least as good as the trained model.")
    grid.notes += lower_note(line.metric for line in shown)
    grid.notes += absences(gathered) + signatures(shown)
    return grid


def _score_grid(gathered: list[Line]) -> Grid:
    """Scores of one model as it is: a row a metric, a column a language."""
    langs = list(dict.fromkeys(line.lang for line in gathered))
    grid = Grid(f"scores of the model as it is: {', '.join(langs)}", ["metric", *langs])
    place = {(line.task_name, line.metric, line.lang): line for line in gathered}
    for task in dict.fromkeys(line.task_name for line in gathered):
        grid.rows.append([task])
        for metric in dict.fromkeys(line.metric for line in gathered if line.task_name == task):
            cells = []
            for lang in langs:
                line = place.get((task, metric, lang))
                base = f"\n{_baselines(line)[0]}" if line and line.baselines else ""
                n = f"\nn {line.before['n']}" if line and line.before and is_number(line.before["value"]) else ""
                cells.append(score(line.before if line else None, percent(metric)) + n + base)
            if any(cell not in (MISSING, "absent") for cell in cells):
                grid.rows.append([metric, *cells])
        if len(grid.rows[-1]) == 1:
            grid.rows.pop()
    grid.notes.append("± standard error; below it n, and what needs no model or no training.")
    grid.notes += lower_note(line.metric for line in gathered)
    grid.notes += absences(gathered) + signatures(gathered)
    return grid


def _count(line: Line) -> str:
    """``485``, or ``60/58`` where before and after differ."""
    counts = dict.fromkeys(str(r["n"]) for r in (line.before, line.after) if r and is_number(r["n"]))
    return "/".join(counts) or MISSING


def _marked(line: Line, mark: str) -> str:
    """The p-value with its mark, which always takes the same room."""
    if line.p is None:
        return "not tested" if line.before and line.after else MISSING
    return f"{p_value(line.p)} {mark or 'n.s.':<4}"


def _baselines(line: Line) -> tuple[str, bool]:
    """``majority .177, copy .478 !`` and whether one is at least as good as the trained model."""
    parts, flagged = [], False
    after = line.after["value"] if line.after else None
    for name, row in line.baselines.items():
        value = row["value"]
        if not is_number(value):
            continue
        # what the references themselves get is a bound, not a rival
        good = is_number(after) and name != "reference" and (value <= after if line.lower else value >= after)
        flagged |= good
        # no-break spaces keep a name and its value on one line
        parts.append(f"{name} {number(value, percent(line.metric))}{'!' if good else ''}".replace(" ", "\u00a0"))
    return "\n".join(textwrap.wrap(", ".join(parts), BASELINES_WIDTH, break_long_words=False)), flagged


def rows_csv(rows: Sequence[Row], path: Path) -> None:
    """A run's rows in long format."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(path, heads, ([row.get(k) for k in heads] for row in rows))


def print_run(folder: Path) -> None:
    """The before/after tables of one finished run."""
    show(before_after(read_rows(Path(folder))))
