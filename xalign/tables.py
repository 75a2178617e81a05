"""A grid of finished text cells and its three forms: terminal (rich), Markdown, CSV; and how numbers are written.

Nothing is ever cut: on a pipe a table is as wide as it needs, on a terminal long cells wrap.
"""
from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from xalign.safe import printable

NARROWEST = 96  # columns; below this the terminal itself wraps the lines
NOTES = 118  # columns; notes wrap here even where a table is wider
MISSING = "–"


@dataclass
class Grid:
    """A table whose cells are text.

    Attributes:
        title: one line above it.
        columns: headings; ``\\n`` starts a second line.
        rows: one list of cells a row; a row of one cell is a section heading.
        notes: lines below it.
        left: indices of the left-aligned columns.
        wrap: indices of the columns that may wrap on a narrow terminal.
        dim: indices of rows shown faintly (reference rows).
        colours: (row, column) → rich style of one cell.
        marks: (row, column) → ``best`` or ``second``: the number of that cell is bold or underlined.
        groups: (first column, last column, heading) of neighbouring columns.
    """

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: tuple[int, ...] = (0,)
    wrap: tuple[int, ...] = ()
    dim: set[int] = field(default_factory=set)
    colours: dict[tuple[int, int], str] = field(default_factory=dict)
    marks: dict[tuple[int, int], str] = field(default_factory=dict)
    groups: list[tuple[int, int, str]] = field(default_factory=list)


class Terminal(Console):
    """A console that prints what data, models and folders are called as plain characters: nothing in it that a terminal obeys."""

    def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
        """See rich; its own styles and movements are no text of ours."""
        for part in super().render(*args, **kwargs):
            yield part if part.control else part._replace(text=printable(part.text))


def is_number(value: Any) -> bool:
    """True for a finite int or float (not a bool)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, percent: bool = False, sign: bool = False) -> str:
    """``.372`` for a share, ``12.4`` for a score of 0 to 100 (`percent`), ``–`` for nothing."""
    if not is_number(value):
        return MISSING
    text = f"{value:{'+' if sign else ''}.{1 if percent else 3}f}"
    if float(text) == 0:
        text = text.replace("-", "").replace("+", "")
    return text.replace("0.", ".", 1) if not percent and abs(float(text)) < 1 else text


def with_error(value: Any, se: Any, percent: bool = False, sign: bool = False, between: str = " ") -> str:
    """A value and its standard error: ``.372 ±.024``; without the error where there is none."""
    text = number(value, percent, sign)
    return f"{text}{between}±{number(se, percent)}" if text != MISSING and is_number(se) else text


def p_value(p: Any) -> str:
    """``<.001``, ``.003``, ``.41``; ``–`` for nothing."""
    if not is_number(p):
        return MISSING
    return "<.001" if p < 0.001 else f"{p:.{3 if p < 0.0995 else 2}f}".replace("0.", ".", 1)


def headings(grid: Grid) -> list[str]:
    """The columns' headings, each with its group's above it."""
    above = {i: text for first, last, text in grid.groups for i in range(first, last + 1)}
    return [f"{above[i]}\n{name}" if i in above else name for i, name in enumerate(grid.columns)]


def split_number(cell: str) -> tuple[str, str]:
    """A cell's number and the rest: ``(".427", "** ±.022")``."""
    end = next((i for i, c in enumerate(cell) if c in "* \n±"), len(cell))
    return cell[:end], cell[end:]


def rich_table(grid: Grid) -> Table:
    """The grid as a rich Table without its title and notes."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(headings(grid)):
        justify = "left" if i in grid.left else "right"
        if grid.groups and i not in grid.left:  # many narrow columns: long words end at their underscores
            name = "\n".join(w.replace("_", "_\n") if len(w) > 8 else w for w in name.split())
        table.add_column(Text(name), justify=justify, no_wrap=i not in grid.wrap, overflow="fold", vertical="top")
    for i, row in enumerate(grid.rows):
        if len(row) == 1:
            if i:
                table.add_section()
            table.add_row(Text(row[0], style="bold cyan"), *[""] * (len(grid.columns) - 1))
        else:
            cells = [Text(cell, style=grid.colours.get((i, j), "")) for j, cell in enumerate(row)]
            for j, cell in enumerate(cells):
                if mark := grid.marks.get((i, j)):
                    cell.stylize("bold" if mark == "best" else "underline", 0, len(split_number(row[j])[0]))
            table.add_row(*cells, style="dim" if i in grid.dim else None)
    return table


def folded(grid: Grid, width: int) -> list[Grid]:
    """The grid, or where it is wider than `width` characters, its columns in parts, each with the left-aligned ones at the front."""
    free = Console(width=10_000)

    def fits(columns: Sequence[int]) -> bool:
        return Measurement.get(free, free.options, rich_table(_part(grid, columns))).maximum <= width

    if grid.wrap or fits(range(len(grid.columns))):
        return [grid]
    fixed = [i for i in range(len(grid.columns)) if i in grid.left]
    others = [i for i in range(len(grid.columns)) if i not in grid.left]
    for k in range(2, len(others) + 1):  # into as few parts as fit, of one size
        size = -(-len(others) // k)
        parts = [[*fixed, *others[i:i + size]] for i in range(0, len(others), size)]
        if all(map(fits, parts)):
            break
    else:
        return [grid]
    out = [_part(grid, columns) for columns in parts]
    for k, part in enumerate(out, 1):
        part.title += f" ({k} of {len(out)})"
        part.notes = grid.notes if part is out[-1] else []
    return out


def _part(grid: Grid, columns: Sequence[int]) -> Grid:
    """Some columns of a grid."""
    place = {old: new for new, old in enumerate(columns)}
    above = {i: text for first, last, text in grid.groups for i in range(first, last + 1)}
    return replace(grid, columns=[grid.columns[i] for i in columns], left=tuple(place[i] for i in grid.left if i in place),
                   rows=[row if len(row) == 1 else [row[i] for i in columns] for row in grid.rows],
                   colours={(i, place[j]): v for (i, j), v in grid.colours.items() if j in place},
                   marks={(i, place[j]): v for (i, j), v in grid.marks.items() if j in place},
                   groups=[(place[i], place[i], above[i]) for i in columns if i in above])


def renderable(grids: Sequence[Grid]) -> Group:
    """Grids with their notes, one under the other, for any rich console."""
    parts: list[RenderableType] = []
    for grid in grids:
        notes = (Constrain(Text(note, style="dim", overflow="fold"), NOTES) for note in grid.notes)
        parts += [Text(""), Constrain(Text(grid.title, style="bold"), NOTES), rich_table(grid), *notes]
    return Group(*parts)


def show(grids: Sequence[Grid], file: TextIO | None = None) -> None:
    """Print grids to `file` (default: standard output), at the width they need when it is not a terminal."""
    file = file or sys.stdout
    console = Terminal(file=file, highlight=False, soft_wrap=False)
    if console.is_terminal:
        width = max(console.width, NARROWEST)
        grids = [part for grid in grids for part in folded(grid, width)]
    else:
        free = Console(file=file, width=10_000)
        needs = [Measurement.get(free, free.options, rich_table(grid)).maximum for grid in grids]
        width = max([110, *needs])
    Terminal(file=file, highlight=False, width=width).print(renderable(grids))


def markdown(grids: Sequence[Grid]) -> str:
    """Grids as GitHub Markdown: title, table, notes as a list."""
    parts = []
    for grid in grids:
        rows = [["**" + _md(row[0]) + "**"] + [""] * (len(grid.columns) - 1) if len(row) == 1 else
                [_marked(cell, grid.marks.get((i, j), "")) for j, cell in enumerate(row)] for i, row in enumerate(grid.rows)]
        rule = [":---" if i in grid.left else "---:" for i in range(len(grid.columns))]
        body = "\n".join("| " + " | ".join(row) + " |" for row in [[_md(c) for c in headings(grid)], rule, *rows])
        notes = "\n".join(f"- {_md(note)}" for note in grid.notes)
        parts.append(f"**{_md(grid.title)}**\n\n{body}\n" + (f"\n{notes}\n" if notes else ""))
    return "\n".join(parts)


def _marked(cell: str, mark: str) -> str:
    number_, rest = (_md(part, strip=False) for part in split_number(cell))
    return {"best": f"**{number_}**{rest}", "second": f"<u>{number_}</u>{rest}"}.get(mark, _md(cell))


def _md(text: str, strip: bool = True) -> str:
    """Text on one line that Markdown shows as it is."""
    text = re.sub(r"([\\`*_~\[\]|])", r"\\\1", printable(text)).replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    return text.strip() if strip else text


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write raw values (no rounding; empty for nothing) as UTF-8 CSV; a text that a spreadsheet would compute begins with ``'``."""
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerows(["" if v is None else _uncomputed(v) for v in row] for row in (columns, *rows))


def _uncomputed(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; numbers, also those written as text, stay numbers."""
    value = printable(value) if isinstance(value, str) else value  # a bare carriage return would begin a row
    if not isinstance(value, str) or not value.lstrip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")):
        return value
    try:
        float(value)
        return value
    except ValueError:
        return f"'{value}"
