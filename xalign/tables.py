"""A grid of finished text cells and its three forms: terminal (rich), Markdown, CSV; and how numbers are written.

Nothing is ever cut: on a pipe a table is as wide as it needs, on a terminal long cells wrap.
"""
from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

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
    """

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: tuple[int, ...] = (0,)
    wrap: tuple[int, ...] = ()
    dim: set[int] = field(default_factory=set)
    colours: dict[tuple[int, int], str] = field(default_factory=dict)


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


def rich_table(grid: Grid) -> Table:
    """The grid as a rich Table without its notes."""
    table = Table(title=Text(grid.title, style="bold"), title_justify="left", header_style="bold",
                  box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(grid.columns):
        justify = "left" if i in grid.left else "right"
        table.add_column(Text(name), justify=justify, no_wrap=i not in grid.wrap, overflow="fold", vertical="top")
    for i, row in enumerate(grid.rows):
        if len(row) == 1:
            if i:
                table.add_section()
            table.add_row(Text(row[0], style="bold cyan"), *[""] * (len(grid.columns) - 1))
        else:
            cells = (Text(cell, style=grid.colours.get((i, j), "")) for j, cell in enumerate(row))
            table.add_row(*cells, style="dim" if i in grid.dim else None)
    return table


def renderable(grids: Sequence[Grid]) -> Group:
    """Grids with their notes, one under the other, for any rich console."""
    parts: list[RenderableType] = []
    for grid in grids:
        notes = (Constrain(Text(note, style="dim", overflow="fold"), NOTES) for note in grid.notes)
        parts += [Text(""), rich_table(grid), *notes]
    return Group(*parts)


def show(grids: Sequence[Grid], file: TextIO | None = None) -> None:
    """Print grids to `file` (default: standard output), at the width they need when it is not a terminal."""
    file = file or sys.stdout
    console = Console(file=file, highlight=False, soft_wrap=False)
    if console.is_terminal:
        width = max(console.width, NARROWEST)
    else:
        free = Console(file=file, width=10_000)
        needs = [Measurement.get(free, free.options, rich_table(grid)).maximum for grid in grids]
        width = max([110, *needs])
    Console(file=file, highlight=False, width=width).print(renderable(grids))


def markdown(grids: Sequence[Grid]) -> str:
    """Grids as GitHub Markdown: title, table, notes as a list."""
    parts = []
    for grid in grids:
        rows = [["**" + _md(row[0]) + "**"] + [""] * (len(grid.columns) - 1) if len(row) == 1 else [_md(cell) for cell in row]
                for row in grid.rows]
        rule = [":---" if i in grid.left else "---:" for i in range(len(grid.columns))]
        body = "\n".join("| " + " | ".join(row) + " |" for row in [[_md(c) for c in grid.columns], rule, *rows])
        notes = "\n".join(f"- {_md(note)}" for note in grid.notes)
        parts.append(f"**{_md(grid.title)}**\n\n{body}\n" + (f"\n{notes}\n" if notes else ""))
    return "\n".join(parts)


def _md(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").replace("\n", " ").strip()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write raw values (no rounding; empty for nothing) as UTF-8 CSV."""
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(["" if v is None else v for v in row] for row in rows)
