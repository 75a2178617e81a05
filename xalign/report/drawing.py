"""What all plots share: style, colours, size, notes, and how a figure becomes a file. Matplotlib without pyplot, no torch."""
from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xalign.config import XalignError
from xalign.languages import LANGUAGES

if TYPE_CHECKING:
    from xalign.report.pivot import Pivot

LONGEST = 100  # characters of a file's name without its ending
WIDTH = 7.2  # inches: the text width of most papers' pages, both columns
INTERVAL = 1.96  # standard errors on each side: 95 % of a normal distribution
GREY = "#5f5f5f"
# Paul Tol's "bright" scheme and colours of his "light" one: told apart by the colour-blind; hatches mark a second round
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#999933", "#99ddff", "#bbbbbb")
HATCHES = ("", "////", "....", "xxxx")
STYLE = {
    "font.family": ["DejaVu Sans"], "font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5, "legend.fontsize": 7.5, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "axes.grid": False, "grid.color": "#e2e2e2", "grid.linewidth": 0.6, "axes.linewidth": 0.7,
    "xtick.major.width": 0.7, "ytick.major.width": 0.7, "hatch.linewidth": 0.5, "text.usetex": False, "text.parse_math": False,
    "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "xalign",
}
styled = rc_context(STYLE)  # as a decorator


class NotDrawn(XalignError):
    """There is nothing to draw; the text says why."""


class Plot(Figure):
    """A figure with what a page needs beside it.

    Attributes:
        name: stem of its file's name.
        title: what is drawn.
        caption: metric, n, interval, in sentences.
        alt: the same for those who do not see it, with the numbers that matter.
    """

    name = ""
    title = ""
    caption = ""
    alt = ""


def new_plot(name: str, width: float, height: float) -> Plot:
    """An empty figure of this size in inches on its own canvas."""
    figure = Plot(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    name = re.sub(r"[^\w+-]+", "_", name)  # parts of it come from files
    figure.name = name if len(name) <= LONGEST else f"{name[:LONGEST - 9]}-{sha256(name.encode()).hexdigest()[:8]}"
    return figure


def save(figure: Figure, path: Path | str) -> None:
    """Write .png (200 dpi), .pdf (text stays text) or .svg, without a date, so that the same figure is the same file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_to(figure, path, path.suffix[1:])
    except ValueError as e:
        raise XalignError(f"{path}: {e}") from None


def save_to(figure: Figure, file: Path | IO[bytes], kind: str) -> None:
    """`save` to a path or an open file."""
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    quiet = logging.getLogger("fontTools")
    level = quiet.level
    quiet.setLevel(logging.WARNING)
    try:
        with rc_context(STYLE), warnings.catch_warnings():  # of signs that no font has, and of names too long for the layout
            warnings.simplefilter("ignore", UserWarning)
            figure.savefig(file, format=kind, dpi=200, metadata=undated.get(kind), facecolor="white")
    finally:
        quiet.setLevel(level)


def describe(figure: Plot, title: str, text: str, alt: str) -> None:
    """Title, caption and alternative text; the caption is the small print below the figure too."""
    import textwrap

    figure.title, figure.caption, figure.alt = title, text, alt
    lines = textwrap.wrap(f"{title} {text}", int(figure.get_figwidth() * 19.5))
    figure.supxlabel("\n".join(lines), fontsize=6.5, color=GREY, x=0.01, ha="left")


def colours(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Label → colour and hatch of its bars, in order; hatched from the twelfth on."""
    n = len(COLOURS)
    return {label: {"facecolor": COLOURS[i % n], "hatch": HATCHES[i // n % len(HATCHES)]} for i, label in enumerate(labels)}


def language(code: str) -> str:
    """``Finnish`` for ``fin``; anything that is no language as it is."""
    return LANGUAGES[code].name if code in LANGUAGES else code


def many(pivot: Pivot) -> str:
    """``14 languages``: how many columns there are of what."""
    return f"{len(pivot.columns)} {'language' if pivot.over == 'lang' else pivot.over}{'s' if len(pivot.columns) > 1 else ''}"


def spread(numbers: Sequence[int]) -> str:
    """``405``, ``120–405``."""
    return "–".join(f"{n:,}" for n in sorted({min(numbers), max(numbers)})) if numbers else "unknown"


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend above all axes, row by row, in as many columns as fit."""
    entry = 0.45 + 0.062 * max((len(label) for label in labels), default=1)  # inches
    fits = max(1, int((figure.get_figwidth() - 0.1) / entry))
    columns = math.ceil(len(labels) / math.ceil(len(labels) / fits)) if labels else 1
    order = [i for k in range(columns) for i in range(k, len(labels), columns)]  # matplotlib fills columns first
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside upper left", ncols=columns, handlelength=1.6,
                  columnspacing=1.2)
