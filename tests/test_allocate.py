"""A budget shared by scaling laws: the laws behind published allocations, and the command."""
from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from xalign.analysis.allocation import Law, allocate, closed_form, read_given, read_laws, slsqp
from xalign.analysis.recover import Optimum, read_published, recover
from xalign.compose import package_folder
from xalign.config import XalignError
from xalign.studies.allocate import from_paper, main, share_out

# x-LLM Table 4: ara, ell, hin, tur, vie, zho
LANGS = ("ara", "ell", "hin", "tur", "vie", "zho")
TABLE4 = {300_000: (41842, 44953, 73002, 59652, 40731, 39816), 1_200_000: (183539, 189556, 234233, 242263, 175985, 174422)}
COMET = {300_000: 82.38, 1_200_000: 84.70}


def optima(laws: dict[str, tuple[float, float]], price: float, most: dict[str, float] | None = None) -> dict[str, float]:
    """Rows at which the last one gains `price` in every language: (a |b| / price)^(1 / (1 - b)), or all there are."""
    return {k: min((a * -b / price) ** (1 / (1 - b)), (most or {}).get(k, math.inf)) for k, (a, b) in laws.items()}


def mean(laws: dict[str, tuple[float, float]], rows: dict[str, float]) -> float:
    return sum(100 - a * rows[k] ** b for k, (a, b) in laws.items()) / len(laws)


def published(laws: dict[str, tuple[float, float]], prices: tuple[float, ...], scores: bool = True,
              most: dict[str, float] | None = None) -> dict[int, Optimum]:
    """The optima of `laws` as a paper would print them."""
    found = [optima(laws, price, most) for price in prices]
    return {round(sum(rows.values())): Optimum(rows, mean(laws, rows) if scores else None) for rows in found}


TRUE = {"fin": (70.0, -0.12), "ind": (50.0, -0.2), "jpn": (90.0, -0.08), "tha": (120.0, -0.15)}


# the laws behind published allocations


def test_the_published_allocations_come_out_again_and_hindis_bound_binds() -> None:
    known, most = from_paper("xllm_table4")
    assert {k: tuple(o.rows.values()) for k, o in known.items()} == TABLE4 and {k: o.score for k, o in known.items()} == COMET
    found = recover(known, most)
    assert found.bound == {"hin": [1_200_000]} and found.most == {"hin": 234_233}
    for budget, rows in TABLE4.items():
        available = {**most, **found.most}
        again = closed_form(budget, available, found.laws)
        assert tuple(again[lang] for lang in LANGS) == pytest.approx(rows, rel=1e-4)  # a hundredth of what was asked
        assert again == pytest.approx(slsqp(budget, available, found.laws), rel=1e-6)
        laws = {lang: (law.alpha, law.beta) for lang, law in found.laws.items()}
        assert mean(laws, dict(zip(LANGS, rows, strict=True))) == pytest.approx(COMET[budget], abs=1e-3)
        gain = {lang: a * -b * again[lang] ** (b - 1) for lang, (a, b) in laws.items()}
        others = [gain[lang] for lang in LANGS if lang != "hin"]
        assert max(others) == pytest.approx(min(others), rel=1e-9)
        assert gain["hin"] / others[0] == pytest.approx(1.0 if budget == 300_000 else 1.37, abs=0.005)
    assert all(-1 < law.beta < 0 for law in found.laws.values())


def test_the_experiments_laws_are_those_of_the_command() -> None:
    given = yaml.safe_load((package_folder("experiments") / "xllm_table4.yaml").read_text(encoding="utf-8"))["method"]["law"]
    laws = recover(*from_paper("xllm_table4")).laws
    assert set(laws) == set(given)
    for lang, law in laws.items():
        assert (law.alpha, law.beta) == pytest.approx((given[lang]["alpha"], given[lang]["beta"]), rel=1e-7)


def test_laws_with_their_scores_are_found_again() -> None:
    for prices in ((1e-5, 1e-6), (1e-5, 3e-6, 1e-6, 2e-7)):
        found = recover(published(TRUE, prices))
        assert not found.assumed and not found.bound
        for lang, (a, b) in TRUE.items():
            assert (found.laws[lang].alpha, found.laws[lang].beta) == (pytest.approx(a, rel=1e-4), pytest.approx(b, abs=1e-5))
            low, high = found.betas[lang]
            assert low < b < high


def test_allocations_alone_give_every_other_allocation() -> None:
    """Neither the exponents' common factor nor the scale is known, and the optimum at a third budget is."""
    found = recover(published(TRUE, (1e-5, 1e-6), scores=False))
    assert len(found.assumed) == 2 and found.laws["ind"].beta != pytest.approx(-0.2, abs=0.05)
    third = optima(TRUE, 4e-7)
    budget = sum(third.values())
    assert closed_form(budget, dict.fromkeys(third, math.ceil(budget)), found.laws) == pytest.approx(third, rel=1e-6)
    one = {k: Optimum(o.rows, o.score if i else None) for i, (k, o) in enumerate(published(TRUE, (1e-5, 1e-6)).items())}
    scaled = recover(one)
    last = list(one.values())[1]
    assert len(scaled.assumed) == 1 and mean({k: (w.alpha, w.beta) for k, w in scaled.laws.items()}, last.rows) == pytest.approx(last.score)


def test_a_language_at_its_bound_tells_only_that_it_binds() -> None:
    most = {"tha": 150_000.0}
    known = published(TRUE, (3e-5, 3e-6), most=most)
    free, bound = (o.rows["tha"] for o in known.values())
    assert free < 110_000 and bound == 150_000
    found = recover(known, {"tha": 150_100})  # as published, rounded
    assert found.most == {"tha": 150_000} and "tha" in found.assumed[0] and "the mean of the others" in found.assumed[0]
    others = [found.laws[k].beta for k in ("fin", "ind", "jpn")]
    assert found.laws["tha"].beta == pytest.approx(sum(others) / 3)
    for budget, optimum in known.items():
        assert closed_form(budget, {k: found.most.get(k, budget) for k in TRUE}, found.laws) == pytest.approx(optimum.rows, rel=1e-4)
    steep = {"fin": (70.0, -0.12), "jpn": (90.0, -0.3)}  # here the mean exponent would leave jpn rows to spare
    rows = [optima(steep, price) for price in (1e-5, 1e-6)]
    rows[1]["jpn"] = rows[0]["jpn"] * (rows[1]["jpn"] / rows[0]["jpn"]) ** 1.3
    again = recover({round(sum(r.values())): Optimum(r) for r in rows}, {"jpn": rows[1]["jpn"]})
    assert "the steepest with which its bound still binds" in again.assumed[0]


R = {"fin": 100, "ind": 200}


@pytest.mark.parametrize("known, most, message", [
    ({300: Optimum(R)}, {}, "fewer than two budgets say nothing about the laws' exponents"),
    ({300: Optimum(R), 600: Optimum({"fin": 90, "ind": 510})}, {}, "fin: has 100 rows of 300 and 90 of 600; by a scaling law"),
    ({300: Optimum(R), 600: Optimum({"fin": 600})}, {}, "600: has fin, and 300 has fin, ind; give all budgets the same languages"),
    ({300: Optimum(R), 600: Optimum({"fin": 200, "ind": 300})}, {}, "600: its rows add up to 500; correct the budget or the rows"),
    ({300: Optimum(R), 600: Optimum({"fin": 200, "ind": 400})}, {"ind": 300}, "600: ind has 400 rows; .* at least 1 and at most .*300"),
    ({300: Optimum(R), 600: Optimum({"fin": 100, "ind": 500})}, {"fin": 100}, "fin: has all its rows at every budget"),
    ({300: Optimum(R), 3000: Optimum({"fin": 120, "ind": 2880})}, {}, "no scaling laws with exponents between -1 and 0 share the budgets"),
    ({300: Optimum(R, 50), 600: Optimum({"fin": 210, "ind": 390}, 40)}, {}, "the mean score is 50 at 300 and 40 at 600; .* scores higher"),
    ({300: Optimum(R), 600: Optimum({"fin": 200, "ind": 400})}, {"fin": 200, "ind": 400}, "no language has rows to spare at two budgets"),
])
def test_what_no_laws_explain_is_refused(known: dict[int, Optimum], most: dict[str, float], message: str) -> None:
    with pytest.raises(XalignError, match=message) as e:
        recover(known, most)
    assert "\n" not in str(e.value)


def test_scores_that_no_exponent_explains_are_said() -> None:
    known = {300: Optimum({"fin": 100, "ind": 200}, 50), 600: Optimum({"fin": 210, "ind": 390}, 80)}  # twice the rows: 75 at best
    found = recover(known)
    assert "The scores rise more with the budget" in found.assumed[0] and min(law.beta for law in found.laws.values()) < -0.999


# the command


def command(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(list(argv))
    return (code, *capsys.readouterr())


LAWS = "fin: {alpha: 60, beta: -0.1, gamma: 0.5}\nind: {alpha: 70, beta: -0.2}\njpn: {alpha: 90, beta: -0.05}\n"


@pytest.fixture
def laws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "law.yaml"
    path.write_text(LAWS)
    return path


def test_a_budget_is_shared_and_its_file_is_an_allocation_file(laws: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(str(laws), "--budget", "50000", "--most", "ind=12000,jpn=90000", capsys=capsys)
    assert (code, err) == (0, "")
    rows = yaml.safe_load(Path("allocation/allocation.yaml").read_text())
    read = read_laws(str(laws), "method.law", LANGUAGES3)
    assert rows == allocate("optimised", 50_000, {"fin": 50_000, "ind": 12_000, "jpn": 50_000}, read) and rows["ind"] == 12_000
    assert read_given("allocation/allocation.yaml", "method.allocation_file", LANGUAGES3, 50_000) == rows
    even = {"fin": 19_000, "ind": 12_000, "jpn": 19_000}
    true = {"fin": (60 * 0.5**-0.1, -0.1), "ind": (70.0, -0.2), "jpn": (90.0, -0.05)}
    gain = mean(true, rows) - mean(true, even)
    line = next(x for x in out.splitlines() if x.startswith("all, mean"))
    assert f"{mean(true, even):.3f}" in line and f"{gain:+.3f}" in line and "50,000" in line
    per_row = {k: 1000 * a * -b * rows[k] ** (b - 1) for k, (a, b) in true.items()}
    assert f"{per_row['ind'] / per_row['fin']:.2f} times as much in ind: the bound binds" in " ".join(out.split())
    assert "Taken to have as many rows as wanted (--most says otherwise): fin." in out
    assert {p.name for p in Path("allocation").iterdir()} == {"allocation.yaml", "allocation.png", "allocation.pdf", "tables.md"}


LANGUAGES3 = ("fin", "ind", "jpn")


def test_several_budgets_have_a_table_and_a_file_each(laws: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("most.json").write_text(json.dumps({"ind": 15_000, "tha": 3}))
    code, out, _ = command(str(laws), "--budget", "3000,9000", "--most", "most.json", "--out", "o", capsys=capsys)
    assert code == 0 and "3,000 rows among 3 languages" in out and "9,000 rows among 3 languages" in out
    for budget in (3000, 9000):
        assert sum(yaml.safe_load(Path(f"o/allocation_{budget}.yaml").read_text()).values()) == budget
        assert Path(f"o/allocation_{budget}.png").is_file()


@pytest.mark.parametrize("argv, message", [
    (["--budget", "0"], "--budget 0: must be a whole number of rows, 1 or more"),
    (["--budget", "1e6"], "--budget 1e6: must be a whole number"),
    (["--budget", "2"], "--budget 2: is less than one row for each of 3 languages; raise it"),
    (["--budget", "101", "--most", "fin=10,ind=40,jpn=50"], "--budget 101: there are 100 rows (fin 10, ind 40, jpn 50); lower it"),
    (["--budget", "9", "--most", "fni=3"], "--most fni=3: fni has no law; did you mean 'fin'?"),
    (["--budget", "9", "--most", "fin=0"], "--most fin=0: fin: 0: must be a whole number"),
    (["--budget", "9", "--most", "none.yaml"], "--most=none.yaml: no such file"),
    ([], "needs LAWS and --budget N, or --published"),
    (["--budget", "9", "--published", "xllm_table4"], "--published xllm_table4: finds the laws; leave LAWS, --budget and --most out"),
])
def test_what_cannot_be_shared_is_one_line(laws: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    code, out, err = command(str(laws), *argv, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err
    assert not Path("allocation").exists()


def test_broken_laws_are_one_line(laws: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, message in (("fin: {alpha: 300, beta: -1.3}", "LAWS=law.yaml: beta of fin is -1.3; it must be a number in (-1, 0)"),
                          ("", "LAWS=law.yaml: is empty"), ("- 1", "LAWS=law.yaml: must be a mapping")):
        laws.write_text(text)
        code, _, err = command("law.yaml", "--budget", "9", capsys=capsys)
        assert code == 2 and message in err and err.count("\n") == 1


def test_published_allocations_as_a_user_sees_them(laws: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command("--published", "xllm_table4", capsys=capsys)
    assert (code, err) == (0, "") and "hin has rows to spare at 300,000 only" in out
    cells = [line.split() for line in out.splitlines() if line.startswith(LANGS)]
    shown = [float(part) for row in cells for part, unit in zip(row, row[1:], strict=False) if unit == "%" and part[0] in "+-"]
    assert len(shown) == 12 and max(map(abs, shown)) < 0.01  # per cent off the published rows
    read = read_laws("allocation/laws.yaml", "method.law", LANGS)
    assert tuple(allocate("optimised", 1_200_000, dict(zip(LANGS, (1_097_200, 620_800, 234_233, 477_700, 1_073_800, 912_500), strict=True)),
                          read).values()) == pytest.approx(TABLE4[1_200_000], abs=2)
    own = {k: {"rows": dict(zip(LANGS, rows, strict=True)), "score": COMET[k]} for k, rows in TABLE4.items()}
    Path("own.yaml").write_text(yaml.safe_dump({**own, "most": {"hin": 234_300}}))
    assert recover(*read_published("own.yaml")).laws == recover(*from_paper("xllm_table4")).laws
    for text, message in (("1: 2", "own.yaml: '1: 2' is none of its entries"), ("- 1", "own.yaml: must hold BUDGET: {rows"),
                          ("300: {rows: {fin: -1, ind: 301}}", "own.yaml: 300: rows: must give languages numbers of rows"),
                          ("300: {rows: {fin: 100, ind: 200}, score: 182}", "own.yaml: 300: score is 182; it must be a number")):
        Path("own.yaml").write_text(text)
        code, _, err = command("--published", "own.yaml", capsys=capsys)
        assert code == 2 and message in err and err.count("\n") == 1
    code, _, err = command("--published", "xllm_tabel4", capsys=capsys)
    assert code == 2 and "is neither a file nor one of xllm_table4; did you mean 'xllm_table4'?" in err


def test_the_picture_says_its_numbers() -> None:
    from xalign.studies.allocate_plot import draw

    shares = share_out(9000, {"fin": Law(60, -0.1), "ind": Law(70, -0.2)}, {"ind": 3000})
    figure = draw(shares, "allocation")
    assert figure.title == "9,000 translation rows among 2 languages." and "but for Indonesian: there is no more" in figure.caption
    assert "Finnish: even 6,000 rows, optimal 6,000" in figure.alt and "Dotted" in figure.caption
