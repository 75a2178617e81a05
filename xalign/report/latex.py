"""Grids as LaTeX tables (booktabs): best bold, second underlined, blocks and groups ruled, every text escaped."""
from __future__ import annotations

import re
from collections.abc import Sequence

from xalign.safe import printable
from xalign.tables import Grid, split_number

NARROW = 9  # columns; wider tables span the page and are scaled to it
# a row that begins with [ or * would be an argument of the line break before it
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''",
           "±": r"$\pm$", "→": r"$\rightarrow$", "–": "--", "×": r"$\times$", "·": r"$\cdot$", "−": "$-$", "≤": r"$\leq$", "≥": r"$\geq$",
           "≈": r"$\approx$", "†": r"$\dagger$", "‡": r"$\ddagger$", "…": r"\ldots{}", "✓": r"$\surd$", "\u00a0": "~", "\n": " ",
           "\ufffd": "?", "[": "{[}", "*": "{*}", **{c: "\\" + c for c in "&%$#_{}"}}


def escape(text: str) -> str:
    """Text that LaTeX sets as it is, with any text font encoding."""
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda hit: SPECIAL[hit[0]], printable(text).replace("\t", " "))


def latex(grids: Sequence[Grid]) -> str:
    """Every grid as a table with caption, label and notes; what the preamble needs is named in the first line."""
    labels: list[str] = []
    tables = []
    for grid in grids:
        name = re.sub(r"[^a-z0-9]+", "-", grid.title.lower()).strip("-") or "table"
        labels.append(name)
        tables.append(_table(grid, name + (f"-{labels.count(name)}" if labels.count(name) > 1 else "")))
    wide = any(len(g.columns) > NARROW for g in grids)
    return f"% \\usepackage{{booktabs}}{' and graphicx' if wide else ''} in the preamble\n" + "\n".join(tables)


def _table(grid: Grid, label: str) -> str:
    wide = len(grid.columns) > NARROW
    star = "*" if wide else ""
    lines = [rf"\begin{{table{star}}}[tb]", r"\centering", rf"\caption{{{escape(grid.title)}}}", rf"\label{{tab:{label}}}", r"\small"]
    lines += [r"\resizebox{\textwidth}{!}{%"] if wide else []
    lines += [*_tabular(grid), *(["}"] if wide else [])]
    if grid.notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize", *(escape(note) + r"\par" for note in grid.notes),
                  r"\end{minipage}"]
    return "\n".join([*lines, rf"\end{{table{star}}}", ""])


def _tabular(grid: Grid) -> list[str]:
    width = len(grid.columns)
    out = [rf"\begin{{tabular}}{{@{{}}{''.join('l' if i in grid.left else 'r' for i in range(width))}@{{}}}}", r"\toprule"]
    if grid.groups:
        cells, at = [], 0
        for first, last, text in grid.groups:
            cells += [""] * (first - at) + [rf"\multicolumn{{{last - first + 1}}}{{c}}{{{escape(text)}}}"]
            at = last + 1
        out.append(" & ".join(cells + [""] * (width - at)) + r" \\")
        out.append(" ".join(rf"\cmidrule(lr){{{first + 1}-{last + 1}}}" for first, last, _ in grid.groups))
    out += [" & ".join(map(escape, grid.columns)) + r" \\", r"\midrule"]
    for i, row in enumerate(grid.rows):
        if len(row) == 1:
            out += [r"\midrule"] * (i > 0) + [rf"\multicolumn{{{width}}}{{@{{}}l}}{{\textit{{{escape(row[0])}}}}} \\"]
            continue
        if i and len(grid.rows[i - 1]) > 1 and (i in grid.dim) != (i - 1 in grid.dim):  # between references and systems
            out.append(rf"\cmidrule{{1-{width}}}")
        out.append(" & ".join(_cell(cell, grid.marks.get((i, j), "")) for j, cell in enumerate(row)) + r" \\")
    return [*out, r"\bottomrule", r"\end{tabular}"]


def _cell(cell: str, mark: str) -> str:
    """``\\textbf{.427}$^{**}$ {\\scriptsize$\\pm$.022}``; any other text escaped."""
    number, rest = split_number(cell)
    found = re.fullmatch(r"(\*{0,2})(?:\s±([\d.]+))?", rest)
    if not found or not re.search(r"\d", number):
        return escape(cell)
    number = "$-$" + escape(number[1:]) if number.startswith("-") else escape(number)
    text = {"best": rf"\textbf{{{number}}}", "second": rf"\underline{{{number}}}"}.get(mark, number)
    return text + (f"$^{{{found[1]}}}$" if found[1] else "") + (rf" {{\scriptsize$\pm${found[2]}}}" if found[2] else "")
