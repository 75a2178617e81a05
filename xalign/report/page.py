"""The HTML page of finished runs: one file without scripts and without the network. No torch."""
from __future__ import annotations

import base64
import html
import io
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from xalign.languages import LANGUAGES
from xalign.report.drawing import Plot, language, save_to, spread
from xalign.report.examples import example_groups
from xalign.report.plots import draw_all
from xalign.report.repeat import repeat_command
from xalign.report.run import before_after
from xalign.rows import arrow, as_roles, percent
from xalign.tables import Grid, is_number, number, split_number
from xalign.tracking import without_secrets

if TYPE_CHECKING:
    from xalign.report.pivot import Pivot
    from xalign.report.runs import FinishedRun
    from xalign.studies.base import Findings

OF_NO_RUN = ("choices.hydra/", "runs", "cache", "plan")  # where and how, not what
TABLES_OF_RUNS = 12  # up to so many runs, each has its before/after tables on the page
DARK = {"green": "good", "red": "bad", "dim": "faint"}  # rich colours of cells → classes


def write_page(path: Path, runs: Sequence[FinishedRun], pivots: Sequence[Pivot], grids: Sequence[Grid], cost_grids: Sequence[Grid],
               study: Findings | None = None) -> None:
    """One self-contained HTML file: what was run, tables, plots, costs, examples, configurations, how to repeat it.

    Args:
        study: what an analysis found; its tables and pictures come first.
    """
    plots, left = draw_all(runs, pivots, brief=True)
    if study:
        plots, grids = [*study.plots, *(p for p in plots if p.name not in {q.name for q in study.plots})], [*study.grids, *grids]
    groups, note = example_groups(runs)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"breaks": _breaks}
    text = environment.get_template("page.html.j2").render(
        title=_title(runs), facts=_facts(runs), tables=[_table(g) for g in grids], costs=[_table(g) for g in cost_grids],
        plots=[_image(p) for p in plots], left=left, groups=[_group(g) for g in groups], examples_note=note, scored=_scored(runs),
        absent=_absent(runs), runs=_runs(runs), common=_common(runs))
    # control characters that no page may have, and the overrides that make a text read as another one
    text = re.sub(r"[^\t\n -\x7e\x85\xa0-\U0010ffff]|[\u202d\u202e]", "�", text)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(text.encode("utf-8", "replace"))


def _breaks(text: str) -> Any:
    """Text that may be broken after an underscore, a dot or a slash."""
    from markupsafe import Markup

    return Markup(re.sub(r"([_./])", r"\1<wbr>", html.escape(text)))


def _listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def _title(runs: Sequence[FinishedRun]) -> str:
    methods = list(dict.fromkeys(r.method if r.trained else "untrained" for r in runs))
    langs = list(dict.fromkeys(lang for r in runs for lang in r.langs))
    what = ", ".join(methods) if len(methods) <= 4 else f"{len(methods)} methods"
    return f"{what}: {', '.join(map(language, langs)) if len(langs) <= 3 else f'{len(langs)} languages'}"


def _facts(runs: Sequence[FinishedRun]) -> list[tuple[str, str]]:
    """What was run, for the head of the page."""
    def each(values: Sequence[Any]) -> list[str]:
        return list(dict.fromkeys(map(str, values)))

    trained = [r for r in runs if r.trained]
    langs = each([language(lang) for r in runs for lang in r.langs])
    days = sorted(time.strftime("%Y-%m-%d", time.gmtime((r.folder / "rows.jsonl").stat().st_mtime)) for r in runs)
    versions = each([f"{k} {v}" for r in runs for k, v in sorted(dict(r.facts.get("versions") or {}).items())])
    return [(k, v) for k, v in (
        ("runs", f"{len(runs)}" + (f", of which {len(runs) - len(trained)} only evaluated" if len(runs) > len(trained) else "")),
        ("methods", ", ".join(each([r.method for r in trained]))),
        ("target languages", ", ".join(langs) if len(langs) < 30 else _listed(langs, 24)),
        ("source language", ", ".join(each([language(r.source) for r in runs]))),
        ("backbones", ", ".join(each([r.config.get("backbone.name") or r.backbone for r in runs]))),
        ("seeds", ", ".join(each(sorted(r.seed for r in trained)))),
        ("tasks", ", ".join(each([r.config.get("choices.task", "") for r in runs if r.config.get("choices.task")]))),
        ("finished", " to ".join(each([days[0], days[-1]])) + " (UTC)"),
        ("versions of the runs", ", ".join(versions)),
        ("page written by", "xalign " + version("xalign"))) if v]


def _table(grid: Grid) -> dict[str, Any]:
    """A grid as the template draws it: head rows and body rows of cells."""
    groups, at = [], 0
    for first, last, text in sorted(grid.groups):
        groups += [("", first - at)] * (first > at) + [(text, last - first + 1)]
        at = last + 1
    groups += [("", len(grid.columns) - at)] * (bool(groups) and at < len(grid.columns))
    body = [{"section": row[0]} if len(row) == 1 else {"faint": i in grid.dim, "cells": [_cell(grid, i, j, c) for j, c in enumerate(row)]}
            for i, row in enumerate(grid.rows)]
    return {"title": grid.title, "groups": groups, "body": body, "notes": grid.notes, "width": len(grid.columns),
            "columns": [{"text": c, "left": j in grid.left} for j, c in enumerate(grid.columns)]}


def _cell(grid: Grid, i: int, j: int, text: str) -> dict[str, Any]:
    """One cell: its number, what stands after it, and its classes."""
    mark, left = grid.marks.get((i, j), ""), j in grid.left
    first, rest = split_number(text) if not left and ("±" in text or "*" in text) else (text, "")
    return {"mark": mark, "first": first, "rest": rest.replace("\n", " ").strip() if rest else "",
            "class": " ".join(filter(None, ["left" if left else "", "wide" if left and len(text) > 24 else "",
                                            DARK.get(grid.colours.get((i, j), ""), "")]))}


def _image(plot: Plot) -> dict[str, Any]:
    """A plot as a PNG of 256 colours in the page itself: a tenth of the vector file's size."""
    from PIL import Image

    raw, small = io.BytesIO(), io.BytesIO()
    plot.supxlabel("")  # the small print stands below the plot, as text
    save_to(plot, raw, "png")
    image = Image.open(raw).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return {"name": plot.name, "title": plot.title, "caption": plot.caption, "alt": plot.alt, "width": round(plot.get_figwidth() * 100),
            "height": round(plot.get_figheight() * 100), "data": base64.b64encode(small.getvalue()).decode()}


def _group(group: Any) -> dict[str, Any]:
    """Examples of one language and task; the scores as texts."""
    scored = [{"e": e, "scores": [(m, number(a, percent(m)), number(b, percent(m)), is_number(a) and is_number(b) and a != b)
                                 for m, a, b in e.scores]}
              for e in group.examples]
    iso = LANGUAGES[group.lang].iso1 if group.lang in LANGUAGES else ""
    return {"g": group, "examples": scored, "iso": iso, "lang": language(group.lang)}


def _roles(row: Mapping[str, Any], runs_langs: Sequence[str]) -> str:
    lang = row["lang"] if row["lang"] != row["source"] or len(runs_langs) != 1 else runs_langs[0]
    return f"{arrow(as_roles(row['task'], row['source'], lang))} {as_roles(row['metric'], row['source'], lang)}"


def _scored(runs: Sequence[FinishedRun]) -> list[tuple[str, str, str]]:
    """(signature, the metrics that carry it, n)."""
    found: dict[str, dict[str, list[int]]] = {}
    for run in runs:
        for row in run.rows:
            if row.get("signature") and "." not in row["metric"] and not row["when"].startswith("baseline") and is_number(row["value"]):
                found.setdefault(row["signature"], {}).setdefault(_roles(row, run.langs), []).append(row["n"])
    return [(signature, ", ".join(metrics), spread([n for ns in metrics.values() for n in ns])) for signature, metrics in found.items()]


def _absent(runs: Sequence[FinishedRun]) -> list[tuple[str, str, str]]:
    """(reason, metrics, languages and how many runs)."""
    found: dict[str, tuple[dict[str, None], dict[str, None], dict[str, None]]] = {}
    for run in runs:
        for row in run.rows:
            if not is_number(row["value"]):
                metrics, langs, names = found.setdefault(row.get("reason") or "no reason given", ({}, {}, {}))
                metrics[_roles(row, run.langs)] = langs[language(row["lang"])] = names[run.name] = None
    return [(reason, ", ".join(metrics), f"{_listed(list(langs))}; {len(names)} run{'s' * (len(names) > 1)}")
            for reason, (metrics, langs, names) in found.items()]


def _config(run: FinishedRun) -> dict[str, str]:
    """What decides the run, without secrets and without where it was written."""
    safe = without_secrets({k: v for k, v in run.config.items() if not k.startswith(OF_NO_RUN)})
    return {k: "null" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for k, v in safe.items()}


def _common(runs: Sequence[FinishedRun]) -> list[tuple[str, str]]:
    """The configuration that all runs share."""
    configs = [_config(r) for r in runs]
    return sorted((k, v) for k, v in configs[0].items() if all(c.get(k) == v for c in configs)) if configs else []


def _runs(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Each run's own part of the configuration, its command and, where there are few runs, its tables."""
    common = {k for k, _ in _common(runs)}
    return [{"name": r.name, "folder": str(r.folder), "method": r.method if r.trained else "evaluated only", "seed": r.seed,
             "langs": _listed([language(lang) for lang in r.langs]), "command": repeat_command(r),
             "own": sorted((k, v) for k, v in _config(r).items() if k not in common),
             "tables": [_table(g) for g in before_after(r.rows)] if len(runs) <= TABLES_OF_RUNS else []} for r in runs]
