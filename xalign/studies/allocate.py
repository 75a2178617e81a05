"""``python -m xalign allocate``: a budget of translation rows, shared by the languages' scaling laws (x-LLM section 3.3). No torch."""
from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xalign.analysis.allocation import Law, closed_form, level, read_laws, read_mapping, slsqp, whole
from xalign.analysis.recover import SHAPE, Optimum, Recovered, read_published, recover
from xalign.config import XalignError, nearest
from xalign.studies.base import Findings, present
from xalign.tables import MISSING, Grid
from xalign.terminal import LineParser, reading

AGREE = 1e-4  # largest relative difference of the two solvers' rows; SLSQP stops 2e-5 away where the shares hardly matter
EXAMPLES = """examples:
  python -m xalign allocate law.yaml --budget 300000                      law.yaml: {fin: {alpha: 300, beta: -0.3, gamma: 0.5}, ...}
  python -m xalign allocate law.yaml --budget 300000,1200000 --most hin=234300
  python -m xalign allocate --published xllm_table4                       the laws behind x-LLM's Table 4
"""


@dataclass(frozen=True)
class Shares:
    """One budget, shared evenly and optimally.

    Attributes:
        most: language → rows that there are; infinite where that is not known.
        even, best: language → rows, not rounded.
        differs: largest relative difference between the two solvers' rows.
    """

    budget: int
    laws: Mapping[str, Law]
    most: Mapping[str, float]
    even: Mapping[str, float]
    best: Mapping[str, float]
    differs: float

    def mean(self, rows: Mapping[str, float]) -> float:
        """Mean predicted score, what the optimum has most of."""
        return sum(law.score(rows[lang]) for lang, law in self.laws.items()) / len(self.laws)

    def bound(self, lang: str) -> bool:
        """True if a language has all its rows."""
        return self.best[lang] >= self.most[lang] * (1 - 1e-9)

    @property
    def per(self) -> int:
        """Rows that marginal gains are counted for."""
        return 1000 if self.budget >= 10_000 else 10

    def marginal(self, lang: str) -> float:
        """Points that `per` more rows would give, at the gain of the first of them."""
        return self.per * self.laws[lang].gain(self.best[lang])

    def counts(self) -> dict[str, int]:
        """The optimum in whole rows, as method.allocation=optimised has it."""
        return whole({lang: min(x, self.most[lang]) for lang, x in self.best.items()}, self.budget)


def share_out(budget: int, laws: Mapping[str, Law], most: Mapping[str, float]) -> Shares:
    """The optimum by the closed form, checked by SLSQP.

    Raises:
        XalignError: the budget is less than a row a language or more than there is, or the solvers differ.
    """
    total = sum(most.get(lang, math.inf) for lang in laws)
    if budget < len(laws):
        raise XalignError(f"--budget {budget}: is less than one row for each of {len(laws)} languages; raise it")
    if budget > total:
        there = ", ".join(f"{lang} {most[lang]:,.0f}" for lang in laws)
        raise XalignError(f"--budget {budget}: there are {total:,.0f} rows ({there}); lower it, or give more with --most")
    available: Any = {lang: min(most.get(lang, budget), budget) for lang in laws}
    best, check = closed_form(budget, available, laws), slsqp(budget, available, laws)
    apart = {lang: abs(check[lang] / best[lang] - 1) for lang in laws}
    lang = max(apart, key=lambda k: apart[k])
    if apart[lang] > AGREE:
        raise XalignError(f"--budget {budget}: the closed form gives {lang} {best[lang]:.1f} rows, SLSQP {check[lang]:.1f}; look at the "
                          "laws, scores that hardly depend on the shares have no clear optimum")
    return Shares(budget, laws, {k: most.get(k, math.inf) for k in laws}, level(budget, available), best, apart[lang])


def shares_grid(shares: Shares, published: Optimum | None = None) -> Grid:
    """One budget as a table; with the published rows and how far the optimum is from them."""
    laws = shares.laws
    grid = Grid(f"{shares.budget:,} rows among {len(laws)} languages", ["language", "law S(X)", "there are", "even\nrows", "optimal\nrows",
                "share", *(["published", "differs by"] if published else []), "at its\nbound", "even\nscore", "optimal\nscore", "gain",
                f"points per\n{shares.per:,} more rows"], left=(0, 1))
    even, best = whole(shares.even, shares.budget), shares.counts()
    for lang, law in laws.items():
        s, t = law.score(shares.even[lang]), law.score(shares.best[lang])
        known = math.isfinite(shares.most[lang])
        was = [f"{published.rows[lang]:,.0f}", f"{100 * (best[lang] / published.rows[lang] - 1):+.4f} %"] if published else []
        grid.rows.append([lang, formula(law), f"{shares.most[lang]:,.0f}" if known else MISSING, f"{even[lang]:,}", f"{best[lang]:,}",
                          f"{100 * shares.best[lang] / shares.budget:.1f} %", *was, "yes" if shares.bound(lang) else "no", f"{s:.2f}",
                          f"{t:.2f}", f"{t - s:+.2f}", f"{shares.marginal(lang):.4g}"])
    s, t = shares.mean(shares.even), shares.mean(shares.best)
    was = [f"{sum(published.rows.values()):,.0f}", ""] if published else []
    grid.rows.append(["all, mean", "", f"{sum(shares.most.values()):,.0f}" if math.isfinite(sum(shares.most.values())) else MISSING,
                      f"{shares.budget:,}", f"{shares.budget:,}", "100 %", *was, "", f"{s:.3f}", f"{t:.3f}", f"{t - s:+.3f}", ""])
    grid.notes = notes(shares)
    if published and published.score is not None and published.even is not None:
        grid.notes.append(f"Published mean scores: even {published.even:g}, optimal {published.score:g}, a gain of "
                          f"{published.score - published.even:+.2f}. No law is made from the even split's score: it tests what they "
                          "predict.")
    return grid


def notes(shares: Shares) -> list[str]:
    """What the numbers mean."""
    inside = [lang for lang in shares.laws if not shares.bound(lang)]
    out = ["Scores are what the laws predict, S(X) = 100 - alpha (gamma X)^beta; how sure the laws are is not in them."]
    if inside:
        common = shares.marginal(inside[0])
        more = [f"{shares.marginal(lang) / common:.2f} times as much in {lang}" for lang in shares.laws if lang not in inside]
        out.append("At the optimum one more row gains the same in every language with rows to spare "
                   f"({common:.4g} points per {shares.per:,})" + (f", and {', '.join(more)}: the bound binds." if more else "."))
    else:
        out.append("Every language has all its rows: there is nothing to choose.")
    out.append(f"The closed form and SLSQP agree: the largest relative difference of their rows is {shares.differs:.0e}.")
    if negative := [lang for lang, law in shares.laws.items() if min(law.score(shares.even[lang]), law.score(shares.best[lang])) < 0]:
        out.append(f"A law has no floor: of {', '.join(negative)} it says nothing at so few rows, where it predicts a score below 0.")
    if open_ended := [lang for lang in shares.laws if math.isinf(shares.most[lang])]:
        out.append(f"Taken to have as many rows as wanted (--most says otherwise): {', '.join(open_ended)}.")
    return out


def formula(law: Law) -> str:
    """``100 - 300 (0.5 X)^-0.300``."""
    return f"100 - {law.alpha:.4g} {'X' if law.gamma == 1 else f'({law.gamma:.3g} X)'}^{law.beta:.3f}"


def allocated(laws: Mapping[str, Law], budgets: Sequence[int], most: Mapping[str, float], out: Path) -> Findings:
    """Table, picture and allocation.yaml of each budget."""
    from xalign.studies.allocate_plot import draw

    found = [share_out(budget, laws, most) for budget in budgets]
    stems = ["allocation" if len(found) == 1 else f"allocation_{s.budget}" for s in found]
    grids = [shares_grid(s) for s in found]
    files = {}
    for s, grid, stem in zip(found, grids, stems, strict=True):
        rows = "".join(f"{lang}: {n}\n" for lang, n in s.counts().items())
        files[f"{stem}.yaml"] = f"# {s.budget} translation rows by scaling laws, for method.allocation_file (budget: their sum)\n{rows}"
        grid.notes.append(f"To train with it: python -m xalign method=muit 'lang=[{','.join(laws)}]' "
                          f"method.allocation_file={out / f'{stem}.yaml'}")
    return Findings(grids, [draw(s, stem) for s, stem in zip(found, stems, strict=True)], files)


def from_paper(name: str) -> tuple[dict[int, Optimum], dict[str, float]]:
    """The optimal allocations that a paper published, as papers.yaml has them; see `read_published`.

    Raises:
        XalignError: it has none.
    """
    from xalign.report.facts import blocks, facts, names

    having = [n for n in names() if "allocation" in facts(n) and not n.endswith("_lab")]
    if name not in having:
        raise XalignError(f"--published {name}: is neither a file nor one of {', '.join(having)}{nearest(name, having)} A file has {SHAPE}")
    known, scores = facts(name), blocks(name)[0]
    most = {lang: 1000 * n for lang, n in known["parallel_thousands"]["total"].items()}
    mean = {row: next(iter(values.values())) for row, values in scores.rows.items()}
    rows = {(s["method.allocation"], s["method.budget"]): row for row, s in known["systems"].items()}
    return {budget: Optimum(dict(zip(most, known["allocation"][row], strict=True)), mean[row], mean[rows["uniform", budget]])
            for (kind, budget), row in rows.items() if kind == "optimised"}, most


def recovered(name: str) -> Findings:
    """The laws behind published allocations, what these are by the laws again, laws.yaml."""
    from xalign.studies.allocate_plot import draw

    published, most = read_published(name) if Path(name).expanduser().is_file() else from_paper(name)
    found = recover(published, most)
    shares = [share_out(k, found.laws, {**most, **found.most}) for k in sorted(published)]
    grids = [laws_grid(name, found, published), *(shares_grid(s, published[s.budget]) for s in shares)]
    lines = "".join(f"{lang}: {{alpha: {law.alpha:.9g}, beta: {law.beta:.9g}}}\n" for lang, law in found.laws.items())
    head = [f"for method.law; their optima are the published allocations (python -m xalign allocate --published {name})", *found.assumed]
    return Findings(grids, [draw(s, f"allocation_{s.budget}") for s in shares],
                    {"laws.yaml": "".join(f"# {text}\n" for text in head) + lines})


def laws_grid(name: str, found: Recovered, published: Mapping[int, Optimum]) -> Grid:
    """The recovered laws, and what was assumed."""
    columns = ["language", "alpha", "beta", "beta by the\nrows alone", "has all its rows at"]
    grid = Grid(f"Scaling laws recovered from the allocations of {Path(name).stem}", columns)
    for lang, law in found.laws.items():
        low, high = found.betas[lang]
        grid.rows.append([lang, f"{law.alpha:.4f}", f"{law.beta:.6f}", f"{low:.3f} to {min(high, -0.0):.3f}",
                          ", ".join(f"{k:,}" for k in found.bound.get(lang, [])) or MISSING])
    scores = sum(o.score is not None for o in published.values())
    grid.notes = [
        "S(X) = 100 - alpha X^beta; gamma cannot be told from alpha. At an optimum alpha |beta| X^(beta - 1) is the same in every "
        "language with rows to spare: two budgets give every 1 - beta up to one common factor, and every alpha up to another.",
        f"These two factors come from {f'the mean scores of {scores} budgets' if scores > 1 else 'what is assumed below'}; no allocation "
        "depends on them, at no budget." + " A mean score is one measurement: what the laws predict is as sure as that." * (scores > 1),
        *(f"Assumed: {text}" for text in found.assumed)]
    if len(published) == 2:
        grid.notes.append("Two budgets are just enough: but for the bounds, the published allocations come out again by construction. A "
                          "third would be a test.")
    return grid


def bounds(text: str | None, laws: Mapping[str, Law]) -> dict[str, float]:
    """``hin=234300,ara=1097200``, or a YAML or JSON file of the same, as language → rows that there are.

    Raises:
        XalignError: it cannot be read, names no language of the laws, or a number is no number of rows.
    """
    if text is None:
        return {}
    found: dict[str, Any]
    if "=" in text and not Path(text).exists():
        found = dict(part.strip().split("=", 1) if "=" in part else (part, "") for part in text.split(",") if part.strip())
        stray = [lang for lang in found if lang not in laws]
    else:
        found = read_mapping(text, "--most", None, "a number of rows")
        stray = [] if set(found) & set(laws) else list(found)
    if stray:
        raise XalignError(f"--most {text}: {stray[0]} has no law{nearest(stray[0], laws)} There are laws of {', '.join(laws)}; write "
                          "--most hin=234300,ara=1097200")
    return {lang: _rows(n, f"--most {text}: {lang}: ") for lang, n in found.items() if lang in laws}


def _rows(value: Any, where: str) -> int:
    """A whole number of rows, 1 or more."""
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise XalignError(f"{where}{value}: must be a whole number of rows, 1 or more")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m xalign allocate``; returns the exit code."""
    parser = LineParser(prog="python -m xalign allocate", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
                        description="Share a budget of translation rows among languages so that the mean of their scaling laws\n"
                        "S(X) = 100 - alpha (gamma X)^beta is highest (x-LLM section 3.3). study=scaling fits such laws to runs.")
    parser.add_argument("laws", metavar="LAWS", nargs="?", help="YAML or JSON {language: {alpha, beta, gamma}}, as for method.law")
    parser.add_argument("--budget", metavar="N[,N]", help="rows of all languages together")
    parser.add_argument("--most", metavar="LANG=N,...|FILE", help="rows that there are of a language (default: as many as wanted)")
    parser.add_argument("--published", metavar="NAME|FILE", help="find the laws behind published allocations: an experiment's "
                        "(xllm_table4), or a YAML file of them, " + SHAPE)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("allocation"), help="where files go (default: allocation)")

    def work() -> None:
        args = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
        if args.published:
            if args.laws or args.budget or args.most:
                raise XalignError(f"--published {args.published}: finds the laws; leave LAWS, --budget and --most out, and give the "
                                  "laws.yaml that it writes to a second command")
            present(recovered(args.published), args.out)
            return
        if not args.laws or not args.budget:
            raise XalignError(f"{parser.prog}: needs LAWS and --budget N, or --published; --help shows how to write it")
        laws = read_laws(args.laws, "LAWS")
        budgets = [_rows(part.strip(), "--budget ") for part in args.budget.split(",")]
        present(allocated(laws, list(dict.fromkeys(budgets)), bounds(args.most, laws), args.out), args.out)

    return reading(work)


if __name__ == "__main__":
    sys.exit(main())
