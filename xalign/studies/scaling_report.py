"""Tables and files of the scaling law. No torch."""
from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xalign.analysis.scaling import HIGHEST, LOWEST, further_rows, score
from xalign.rows import arrow, as_roles
from xalign.studies.scaling_points import Series, held_out
from xalign.tables import Grid, number, with_error

if TYPE_CHECKING:
    from xalign.studies.scaling import Scaling

ROWS = ",.0f"
BEYOND = (2, 10)  # times the largest X: where the law is read
Span = tuple[float, float] | None


def spanned(value: float, span: Span, shown: str) -> str:
    """``71.2 [69.8, 73.0]``."""
    low_high = f" [{', '.join(written(x, shown) for x in span)}]" if span else ""
    return written(value, shown) + low_high


def written(x: float, shown: str) -> str:
    """A number in a format, without -0; of rows, more than a billion are no longer told apart."""
    text = format(x, shown)
    return "over 1e9" if shown == ROWS and x >= 1e9 else text if text.strip("-0.") else text.replace("-", "")


def forecast(s: Series, times: float) -> tuple[float, Span]:
    """What the law says at `times` the largest X, and its interval."""
    assert s.fit is not None
    at = times * s.last
    return s.law.score(at), s.fit.interval(lambda alpha, beta: score(alpha, beta, s.gamma * at))


def about(series: Sequence[Series], task: str, metric: str) -> str:
    """``chrf, sentences eng→fin``; of several languages, ``sentences eng→target``."""
    langs, source = {s.lang for s in series}, series[0].points[0].row["source"]
    return f"{metric}, " + arrow(task.replace("src", source).replace("tgt", langs.pop())) if len(langs) == 1 else \
        f"{metric}, " + arrow(task).replace("src", source).replace("tgt", "target")


def laws_grid(series: Sequence[Series], task: str, metric: str, study: Scaling, notes: Sequence[str]) -> Grid:
    """One row a series: its law with intervals, how well it fits, and what it promises."""
    shared, named = study.mode == "shared", series[0].named
    grid = Grid(f"Scaling law S(X) = 100 - alpha (gamma X)^beta, {about(series, task, metric)} over X translation rows", [
        "language", *["system"] * named, "points", "alpha", "beta", *["gamma"] * shared, "RMSE", "R²",
        *(f"S at {k} times\nthe largest X" for k in BEYOND), "rows for\n1 point more"], left=(0, 1) if named else (0,))
    for s in series:
        fit, x = s.fit, s.gamma * s.last
        assert fit is not None
        more, span = (further_rows(fit.law.alpha, fit.law.beta, x) / s.gamma, fit.interval(lambda a, b, x=x: further_rows(a, b, x)))
        grid.rows.append([
            s.lang, *[s.system] * named, str(fit.points), spanned(fit.law.alpha, fit.interval(lambda a, b: a), ".4g"),
            spanned(fit.law.beta, fit.interval(lambda a, b: b), ".4f"), *[f"{s.gamma:.3f}"] * shared, f"{fit.rmse:.2f}",
            "–" if fit.r2 is None else f"{fit.r2:.2f}", *(spanned(*forecast(s, k), ".1f") for k in BEYOND),
            spanned(float(more), (span[0] / s.gamma, span[1] / s.gamma) if span else None, ROWS)])
    grid.notes += warnings(series)
    grid.notes += [
        f"[…]: 95 % bootstrap intervals, {study.resamples:,} resamples of test items and of the scatter around the law (its variance drawn "
        "with n - 2 degrees of freedom: few points give wide intervals).",
        "One law for all languages of a system: alpha and beta are fitted together, gamma is given." if shared else
        "gamma is 1: of one language it cannot be told from alpha.",
        " ".join(["X: translation rows of the training set."] + ["Of a system that reads texts: its texts."] * any(s.texts for s in series)
                 + [held_out({p.run.name: p.run for s in series for p in s.points}.values())]).strip(), *notes]
    return grid


def warnings(series: Sequence[Series]) -> list[str]:
    """What speaks against a law, a sentence each."""
    found = []
    for s in series:
        fit, label = s.fit, s.label
        assert fit is not None
        span = fit.interval(lambda a, b: b)
        if fit.bound is not None:
            why = "the scores do not rise with X" if fit.bound == 0 else "the scores rise faster with X than any such law"
            found.append(f"WARNING {label}: beta ran into its bound {fit.bound} ({why}); do not trust this law, law.yaml leaves it out.")
        elif span and (span[0] < LOWEST + 1e-6 or span[1] > HIGHEST - 1e-6):
            ends = " and ".join(str(b) for b, there in ((-1, span[0] < LOWEST + 1e-6), (0, span[1] > HIGHEST - 1e-6)) if there)
            found.append(f"WARNING {label}: the interval of beta reaches its bound {ends}; these points hardly tell how steep the law is.")
        if falls := s.falls():
            found.append(f"WARNING {label}: the score does not rise everywhere: {'; '.join(falls)}.")
    return list(dict.fromkeys(found))


def points_grid(series: Sequence[Series], task: str, metric: str) -> Grid:
    """One row a run, and the untrained model first."""
    named, seeds = series[0].named, len({p.run.seed for s in series for p in s.points}) > 1
    columns = ["language", *["system"] * named, "X", *["seed"] * seeds, "score ± s.e.", "n", "fitted", "difference"]
    grid = Grid(f"Points: {about(series, task, metric)}", columns, left=(0, 1) if named else (0,))
    told = set()  # systems of one language begin from the same model
    for s in series:
        for name, value in s.references.items():
            if (s.lang, name, value) in told:
                continue
            told.add((s.lang, name, value))
            grid.dim.add(len(grid.rows))
            grid.rows.append([s.lang, *["–"] * named, name, *["–"] * seeds, number(value, True), "–", "–", "–"])
        for p in s.points:
            at = s.law.score(p.rows)
            grid.rows.append([s.lang, *[s.system] * named, f"{p.rows:,.0f}", *[str(p.run.seed)] * seeds, with_error(p.score, p.se, True),
                              str(p.row["n"]), number(at, True), number(p.score - at, True, sign=True)])
    recipes = dict.fromkeys(as_roles(p.row.get("signature") or "no signature", p.row["source"], s.lang) for s in series for p in s.points)
    grid.notes += [f"{metric}: {signature}" for signature in recipes]
    if len(recipes) > 1:
        grid.notes.append("WARNING: the points were scored by different recipes, see above.")
    if metric_scaled(series):
        grid.notes.append(f"{metric} times 100: the law's ceiling is 100.")
    return grid


def metric_scaled(series: Sequence[Series]) -> bool:
    """True if the scores are shares times 100."""
    p = series[0].points[0]
    return p.score != p.row["value"]


def files(series: Sequence[Series], task: str, metric: str) -> dict[str, str]:
    """``scaling.csv``, and ``law.yaml`` for method.law: one file a system that learns from translation rows."""
    out = {"scaling.csv": points_csv(series, metric)}
    systems: dict[str, list[Series]] = {}
    for s in series:
        if not s.texts:
            systems.setdefault(s.system, []).append(s)
    for system, own in systems.items():
        trusted = [s for s in own if s.fit and s.fit.bound is None]
        left = [s.lang for s in own if s not in trusted]
        lines = [f"# for method.law: {system}, {about(own, task, metric)}, S(X) = 100 - alpha (gamma X)^beta for X translation rows",
                 *([f"# left out, beta ran into its bound: {', '.join(left)}"] * bool(left)),
                 *(f"{s.lang}: {{alpha: {s.law.alpha:.8g}, beta: {s.law.beta:.8g}, gamma: {s.gamma:.8g}}}" for s in trusted)]
        name = "law.yaml" if len(systems) == 1 else re.sub(r"[^\w.=+-]+", "_", f"law_{system}") + ".yaml"
        if trusted:
            out[name] = "\n".join(lines) + "\n"
    return out


def points_csv(series: Sequence[Series], metric: str) -> str:
    """The unrounded points."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "lang", "run", "seed", "unit", "x", "score", "se", "n", "task", "metric", "signature",
                     "fitted", "alpha", "beta", "gamma"])
    for s in series:
        for p in s.points:
            measured = [p.score, "" if p.se is None else p.se, p.row["n"], p.row["task"], metric, p.row.get("signature") or ""]
            law = [s.law.score(p.rows), s.law.alpha, s.law.beta, s.gamma]
            writer.writerow([s.system, s.lang, p.run.name, p.run.seed, s.unit, p.rows, *measured, *law])
    return text.getvalue()
