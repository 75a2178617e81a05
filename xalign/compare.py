"""Finished runs tested against each other: ``python -m xalign compare RUN [RUN ...]``.

Reads a run's rows.jsonl, config.yaml and per-example scores: no torch, no cache, no models.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from xalign.analysis.significance import OverLanguages, holm, t_over_languages
from xalign.analysis.systems import Outcome, Scored, System, compare_on, find_runs, load_systems
from xalign.config import XalignError
from xalign.languages import LANGUAGES
from xalign.rows import ALPHA, LOWER_IS_BETTER, arrow, as_roles, lower_note, percent
from xalign.tables import MISSING, Grid, markdown, number, p_value, show, write_csv
from xalign.terminal import LineParser, reading

TESTS = {"ar": "randomisation", "bs": "bootstrap"}


@dataclass
class Line:
    """Two systems, by their places, on one metric of one task in one language.

    Attributes:
        role: the task with its languages as ``src`` and ``tgt``: what is the same task over languages.
        adjusted: p after Holm's correction over all languages and pairs of this task and metric.
    """

    a: int
    b: int
    lang: str
    task: str
    metric: str
    role: str
    test: Outcome
    which: str
    adjusted: float = 1.0

    @property
    def p(self) -> float:
        got = self.test.result
        return 1.0 if got is None else got.p_randomisation if self.which == "ar" or got.clusters < 2 else got.p_bootstrap

    @property
    def sign(self) -> int:
        """1 where `b` is significantly better than `a`, -1 where it is worse, else 0."""
        got = self.test.result
        if got is None or self.adjusted >= ALPHA or not got.diff:
            return 0
        return 1 if (got.diff > 0) != self.metric.startswith(LOWER_IS_BETTER) else -1


def compare_systems(systems: Sequence[System], baseline: int | None = None, metrics: Sequence[str] = (), tasks: Sequence[str] = (),
                    which: str = "ar") -> list[Line]:
    """Test every pair of systems (with `baseline`: every pair that it is in) on everything that both were scored by.

    Args:
        metrics, tasks: only these; a task without its part, e.g. ``flores``, is all its parts. Without `metrics`, those of
            subsets (``accuracy_raw.capital``) are left out.
        which: the test that decides, ``ar`` (randomisation) or ``bs`` (bootstrap).
    Raises:
        XalignError: when nothing can be compared.
    """
    by_target = any(len({m.langs for m in s.models}) > 1 for s in systems)
    scored = [s.scored(by_target) for s in systems]
    pairs = list(combinations(range(len(systems)), 2))
    if baseline is not None:
        pairs = [(baseline, i) for i in range(len(systems)) if i != baseline]

    def wanted(key: tuple[str, str, str]) -> bool:
        named = not tasks or key[1] in tasks or key[1].partition(":")[0] in tasks
        return named and (key[2] in metrics if metrics else "." not in key[2])

    shared = [(a, b, key) for a, b in pairs for key in scored[a] if key in scored[b] and wanted(key)]
    lines = [Line(a, b, *key, as_roles(key[1], systems[a].source, key[0][:3]), compare_on(key[2], scored[a][key], scored[b][key]), which)
             for a, b, key in shared]
    if not any(line.test.result for line in lines):
        raise XalignError(_nothing([s.label for s in systems], scored, bool(shared), metrics, tasks))
    families: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line.test.result:
            families.setdefault((line.role, line.metric), []).append(line)
    for family in families.values():
        for line, adjusted in zip(family, holm([x.p for x in family]), strict=True):
            line.adjusted = adjusted
    return lines


def _nothing(labels: Sequence[str], scored: Sequence[dict[tuple[str, str, str], dict[int, Scored]]], shared: bool,
             metrics: Sequence[str], tasks: Sequence[str]) -> str:
    """The line that says why nothing can be compared."""
    who = ", ".join(labels)
    if shared:
        return f"{who}: no item in common under one recipe; evaluate both on the same files with the same settings"
    asked = " ".join([*(f"--metric {m}" for m in metrics), *(f"--task {t}" for t in tasks)])
    has = dict.fromkeys(f"{arrow(key[1])} {key[2]} ({key[0]})" for s in scored for key in s if "." not in key[2])
    remedy = f"there is {', '.join(list(has)[:8])}{' ...' if len(has) > 8 else ''}" if has else "they hold no per-example scores"
    return f"{who}: no language, task and metric in common{f' for {asked}' if asked else ''}; {remedy}"


def primary(lines: Sequence[Line], metrics: Sequence[str] = ()) -> dict[str, list[str]]:
    """Task (its role) → the metrics that the win grid counts: those asked for, else the first that the task records."""
    out: dict[str, list[str]] = {}
    for line in lines:
        found = out.setdefault(line.role, [])
        if line.metric not in found and (metrics or not found) and line.test.result:
            found.append(line.metric)
    return out


def details(systems: Sequence[System], lines: Sequence[Line]) -> Grid:
    """One pair of systems, line by line."""
    a, b = (systems[i].label for i in (lines[0].a, lines[0].b))
    grid = Grid(f"{b} against {a}", ["metric", "n", a, b, "difference", "95 % interval", "p rand.", "p boot.", "p Holm"])
    for lang, task in dict.fromkeys((x.lang, x.task) for x in lines):
        grid.rows.append([f"{LANGUAGES[lang].name if lang in LANGUAGES else lang} · {arrow(task)}"])
        for line in (x for x in lines if (x.lang, x.task) == (lang, task)):
            got, pc = line.test.result, percent(line.metric)
            if got is None:
                grid.rows.append([line.metric, "0", *[MISSING] * 7])
                continue
            n = str(got.n) if got.n == line.test.total else f"{got.n} of {line.test.total}"
            mark = "**" if line.adjusted < ALPHA else "*" if line.p < ALPHA else "n.s."
            grid.rows.append([line.metric, n + (f" × {got.seeds}" if got.seeds > 1 else ""), number(got.before, pc), number(got.after, pc),
                              number(got.diff, pc, sign=True), f"{number(got.ci_low, pc, sign=True)} {number(got.ci_high, pc, sign=True)}",
                              p_value(got.p_randomisation), p_value(got.p_bootstrap), f"{p_value(line.adjusted)} {mark:<4}"])
            if line.sign:
                grid.colours |= {(len(grid.rows) - 1, j): "green" if line.sign > 0 else "red" for j in (4, 8)}
    grid.notes.append(f"difference = {b} - {a} on the items that both were asked (n; × seeds); p two-sided; p Holm: of the "
                      f"{TESTS[lines[0].which]} test, over the languages and pairs of systems of one task and metric; * p<.05; "
                      "** also after Holm; n.s. = not significant.")
    if any(x.test.result and x.test.result.seeds > 1 for x in lines):
        grid.notes.append("p rand. takes the seeds as given, p boot. and the interval draw them too.")
    grid.notes += lower_note(x.metric for x in lines)
    notes: dict[str, list[str]] = {}
    for line in lines:
        if line.test.note:
            notes.setdefault(line.test.note, []).append(f"{arrow(line.task)} {line.metric} ({line.lang})")
    for note, where in notes.items():
        more = f" and {len(where) - 6} more" if len(where) > 6 else ""
        grid.notes.append(f"{', '.join(where[:6])}{more}: {note}")
    return grid


def win_grid(systems: Sequence[System], lines: Sequence[Line], metrics: Sequence[str] = ()) -> Grid:
    """System × system: how often the row's system is significantly better, not different, worse than the column's."""
    counted = primary(lines, metrics)
    chosen = [x for x in lines if x.metric in counted[x.role] and x.test.result]
    grid = Grid("wins / ties / losses", ["row against column", *(s.label for s in systems)])
    for i, system in enumerate(systems):
        cells = []
        for j in range(len(systems)):
            signs = [x.sign if x.b == i else -x.sign for x in chosen if {x.a, x.b} == {i, j}]
            cells.append("/".join(str(signs.count(k)) for k in (1, 0, -1)) if signs else MISSING)
        grid.rows.append([system.label, *cells])
    what = ", ".join(f"{arrow(task)} {', '.join(names)}" for task, names in counted.items() if names)
    grid.notes.append(f"In each language by {what}. A win: better with p<.05 after Holm over the languages and pairs of that task and "
                      "metric; every task is a family of its own.")
    for system in systems:
        runs = dict.fromkeys(str(m.folder) for m in system.models)
        seeds = sorted({m.seed for m in system.models})
        grid.notes.append(f"{system.label}: {', '.join(runs)} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})")
    return grid


def language_tests(systems: Sequence[System], lines: Sequence[Line]) -> list[tuple[Line, OverLanguages, float]]:
    """The t-test over target languages of every pair, task and metric (its first line), and p after Holm over the pairs;
    only where there are two languages or more."""
    targets = {lang for s in systems for m in s.models for lang in m.langs}
    groups: dict[tuple[str, str], dict[tuple[int, int], list[Line]]] = {}
    for line in lines:
        if line.test.result and line.lang in targets:
            groups.setdefault((line.role, line.metric), {}).setdefault((line.a, line.b), []).append(line)
    out: list[tuple[Line, OverLanguages, float]] = []
    for pairs in groups.values():
        tests = [(own[0], t_over_languages(*({x.lang: getattr(x.test.result, side) for x in own} for side in ("before", "after"))))
                 for own in pairs.values() if len(own) > 1]
        adjusted = iter(holm([t.p for _, t in tests if t.p is not None]))
        out += [(line, t, 1.0 if t.p is None else next(adjusted)) for line, t in tests]
    return sorted(out, key=lambda x: (x[0].a, x[0].b))


def language_grid(systems: Sequence[System], tests: Sequence[tuple[Line, OverLanguages, float]]) -> Grid:
    """The t-tests over languages; those that could not be done are notes."""
    grid = Grid("over languages: paired t-test", ["systems", "metric", "languages", "mean difference", "t", "p", "p Holm"], left=(0, 1))
    for line, t, adjusted in tests:
        if t.p is not None:
            grid.rows.append([f"{systems[line.b].label} - {systems[line.a].label}", f"{arrow(line.role)} {line.metric}", str(t.n),
                              number(t.diff, percent(line.metric), sign=True), f"{t.t:.2f}", p_value(t.p), p_value(adjusted)])
    for reason in dict.fromkeys(t.reason for _, t, _ in tests if t.reason):
        where = dict.fromkeys(f"{arrow(line.role)} {line.metric}" for line, t, _ in tests if t.reason == reason)
        grid.notes.append(f"no t-test over languages{' for ' + ', '.join(where) if grid.rows else ''}: {reason}.")
    if grid.rows:
        grid.notes.append("p Holm: over the pairs of systems. The test takes the target languages as a sample of languages.")
    return grid


def lines_csv(systems: Sequence[System], lines: Sequence[Line], path: Path) -> None:
    """One line a pair, language, task and metric, unrounded."""
    heads = ["a", "b", "lang", "task", "metric", "value_a", "value_b", "diff", "se", "ci_low", "ci_high", "p_randomisation", "p_bootstrap",
             "p_holm", "n", "items", "clusters", "seeds", "resamples", "note"]
    body = []
    for x in lines:
        got = x.test.result
        found = [None] * 9 + [0, x.test.total] + [None] * 3 if got is None else [
            got.before, got.after, got.diff, got.se, got.ci_low, got.ci_high, got.p_randomisation, got.p_bootstrap, x.adjusted,
            got.n, x.test.total, got.clusters, got.seeds, got.resamples]
        body.append([systems[x.a].label, systems[x.b].label, x.lang, x.task, x.metric, *found, x.test.note])
    write_csv(path, heads, body)


def grids(systems: Sequence[System], lines: Sequence[Line], metrics: Sequence[str] = ()) -> list[Grid]:
    """The tables of a comparison: the pairs that the first system (or the baseline) is in, languages, wins."""
    shown = [x for x in dict.fromkeys((x.a, x.b) for x in lines) if x[0] == lines[0].a]
    out = [details(systems, [x for x in lines if (x.a, x.b) == pair]) for pair in shown]
    over, wins = language_grid(systems, language_tests(systems, lines)), win_grid(systems, lines, metrics)
    if len({(x.a, x.b) for x in lines}) > len(shown):
        wins.notes.append(f"The tables above are those of {systems[lines[0].a].label}; --baseline chooses another, --csv has every pair.")
    if over.rows:
        return [*out, over, wins]
    wins.notes += over.notes
    return [*out, wins]


def find_baseline(systems: Sequence[System], name: str) -> int:
    """The place of the system with this label or run folder."""
    for i, system in enumerate(systems):
        if name == system.label or any(m.folder.resolve() == Path(name).resolve() for m in system.models):
            return i
    raise XalignError(f"--baseline {name}: is none of the systems: {', '.join(s.label for s in systems)}")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m xalign compare``; returns the exit code."""
    parser = LineParser(prog="python -m xalign compare", description="Paired tests between finished runs. Runs of one "
                                     "configuration that differ in seed or target language are one system; one system alone is compared "
                                     "with its untrained model.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, a folder that holds runs, or a quoted pattern")
    parser.add_argument("--metric", action="append", default=[], help="only this metric; may be repeated")
    parser.add_argument("--task", action="append", default=[], help="only this task; may be repeated")
    parser.add_argument("--baseline", metavar="RUN", help="compare every system with this one only (a run or a system's name)")
    parser.add_argument("--tests", choices=sorted(TESTS), default="ar", help="which p decides: ar = paired randomisation (default), "
                        "bs = paired bootstrap")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the unrounded numbers of every pair too")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables as Markdown too")

    def work() -> None:
        args = parser.parse_args(argv)
        systems = load_systems(find_runs(args.runs))
        baseline = find_baseline(systems, args.baseline) if args.baseline else None
        lines = compare_systems(systems, baseline, args.metric, args.task, args.tests)
        tables = grids(systems, lines, args.metric)
        if args.csv:
            lines_csv(systems, lines, args.csv)
        if args.markdown:
            args.markdown.write_text(markdown(tables), encoding="utf-8")
        show(tables)

    return reading(work)


if __name__ == "__main__":
    sys.exit(main())
