"""Plots of finished runs: what is drawn is what was measured; what cannot be drawn says why."""
from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer

from xalign.report import plots
from xalign.report.curves import wilson
from xalign.report.examples import example_groups
from xalign.report.frontier import device_hours, front
from xalign.report.pivot import pivots
from xalign.report.runs import FinishedRun, load_runs

METHODS, LANGS, SEEDS = ("sft", "cit", "sdrrl"), ("fin", "jpn", "ara"), (0, 1)
BEFORE = {"fin": 0.3, "jpn": 0.2, "ara": 0.25}


def after(method: str, lang: str, seed: int) -> float:
    return round(BEFORE[lang] + 0.1 * METHODS.index(method) + 0.02 * seed, 4)


def make_run(root: Path, method: str, lang: str, seed: int, probe: bool = False, cost: bool = True) -> Path:
    """A finished run whose numbers follow from its name."""
    folder = root / f"{method}-{lang}-tiny-s{seed}-{METHODS.index(method)}{LANGS.index(lang)}{seed}abcde"
    folder.mkdir(parents=True)
    of = {"run": folder.name, "method": method, "source": "eng", "backbone": "tiny", "seed": seed}
    rows = []

    def add(lang: str, task: str, metric: str, when: str, value: float | None, se: float | None = 0.04, n: int = 100, **more) -> None:
        rows.append({**of, "lang": lang, "task": task, "metric": metric, "when": when, "value": value, "se": se, "n": n,
                     "signature": f"{metric}|v:1", "reason": None, **more})

    for code in (lang, "eng"):
        base = BEFORE.get(code, 0.6)
        add(code, "choice", "accuracy_pmi", "baseline:chance", 0.25, None)
        add(code, "choice", "accuracy_pmi", "before", base)
        add(code, "choice", "accuracy_pmi", "after", after(method, lang, seed) if code == lang else base, diff=0.1, diff_se=0.03, p=0.001)
    add(lang, "all", "off_target", "before", 0.6, 0.05, 80)
    add(lang, "all", "off_target", "after", 0.4 - 0.1 * METHODS.index(method), 0.05, 80)
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump({"lang": [lang], "seed": seed, "choices": {"method": method, "backbone": "tiny"}}))
    (folder / "run.json").write_text("{}")
    log = []
    for stage, steps in (("warm", 4), (f"train {method}", 6)):
        for step in range(steps + 1):
            if step:
                log.append({"step": step, "loss": 5.0 - 0.5 * step + seed, "tokens": 1000 * step, "stage": stage})
            if step % 2 == 0:
                log.append({"step": step, "valid_loss": 6.0 - 0.5 * step + seed, "stage": stage})
                if probe:
                    log.append({"step": step, f"off_target_{lang}": 0.5, f"off_target_{lang}_n": 16, "stage": stage})
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    if cost:
        stages = [("questions", "data", "shared", 0.5), ("train", "train", folder.name, 1.0 + METHODS.index(method)),
                  ("evaluate", "evaluate", f"e{folder.name}", 9.0)]
        (folder / "cost.jsonl").write_text("".join(json.dumps({**of, "lang": lang, "stage": s, "name": s, "kind": k, "key": key,
            "seconds": h * 3600, "devices": 1, "device": "cpu", "device_hours": h, "reused": False}) + "\n" for s, k, key, h in stages))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[FinishedRun]:
    root = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        for lang in LANGS:
            for seed in SEEDS:
                make_run(root, method, lang, seed, probe=method == "sdrrl")
    return load_runs([root])


def test_bars_are_the_means_over_seeds_with_their_intervals(runs: list[FinishedRun]) -> None:
    target = pivots(runs, metrics=("accuracy_pmi",))[0]
    figure = plots.language_bars(target)
    bars = [c for axis in figure.axes for c in axis.containers if isinstance(c, BarContainer)]
    labels = [t.get_text() for axis in figure.axes for t in axis.get_xticklabels()]
    assert sorted(labels[:-1]) == ["Arabic", "Finnish", "Japanese"] and labels[-1] == "mean"
    order = [m for m in target.rows if m in METHODS]
    expected = []
    for column in target.columns:
        for method in order:
            values = [after(method, column, seed) for seed in SEEDS]
            expected.append((statistics.fmean(values), statistics.stdev(values) / math.sqrt(2)))
    for bar, (mean, se) in zip(bars, expected, strict=False):
        assert bar.patches[0].get_height() == pytest.approx(mean)
        (x, low), (_, high) = bar.errorbar[2][0].get_segments()[0]
        assert (low, high) == pytest.approx((mean - 1.96 * se, mean + 1.96 * se))
    assert len(bars) == len(order) * (len(LANGS) + 1)
    assert [b.patches[0].get_height() for b in bars[-3:]] == pytest.approx([target.average[m].value for m in order])
    assert "n 100 items a language, 2 seeds" in figure.caption and "1.96 x s.e." in figure.caption
    # the untrained model is a line at its own height in each group
    lines = [s[0][1] for axis in figure.axes for c in axis.collections if len(c.get_segments()) == 1 for s in c.get_segments()
             if s[0][1] == s[1][1]]
    assert set(BEFORE.values()) <= {round(y, 6) for y in lines}


def test_methods_keep_one_colour_each_and_legends_name_them(runs: list[FinishedRun]) -> None:
    figure = plots.language_bars(pivots(runs, metrics=("accuracy_pmi",))[0])
    legend = figure.legends[0]
    assert sorted(t.get_text() for t in legend.get_texts()) == sorted([*METHODS, "untrained", "chance"])
    faces = [to_hex(c.patches[0].get_facecolor()) for a in figure.axes for c in a.containers if isinstance(c, BarContainer)]
    assert len(set(faces)) == len(METHODS) and faces[:3] == faces[3:6]


def test_a_legend_covers_no_axes_however_many_methods(runs: list[FinishedRun]) -> None:
    """Six methods and fourteen languages: rows of bars, and everything inside the figure."""
    from dataclasses import replace

    from xalign.languages import LANGUAGES

    pivot = pivots(runs, metrics=("accuracy_pmi",))[0]
    columns, methods = list(LANGUAGES)[1:15], [f"method_{i}" for i in range(6)]
    cell = pivot.cells["sft", "fin"]
    cells = {(m, c): replace(cell, value=0.3 + 0.01 * i, mark="**") for i, m in enumerate([*methods, "untrained"]) for c in columns}
    many = replace(pivot, rows=["untrained", *methods], columns=columns, cells=cells, average={})
    figure = plots.language_bars(many)
    assert len(figure.axes) == 3
    figure.draw_without_rendering()
    legend, edge = figure.legends[0].get_window_extent(), figure.bbox
    for axis in figure.axes:
        assert not legend.overlaps(axis.get_window_extent())
        boxes = sorted((t.get_window_extent() for t in axis.get_xticklabels() if t.get_text()), key=lambda b: b.x0)
        assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False)), "labels overlap"
        assert all(edge.x0 <= b.x0 and b.x1 <= edge.x1 for b in boxes)
    names = [t.get_text() for axis in figure.axes for t in axis.get_xticklabels()]
    assert names == [LANGUAGES[c].name for c in columns]


def test_heat_map_writes_every_value_and_bright_is_good(runs: list[FinishedRun]) -> None:
    accuracy, off_target = (next(p for p in pivots(runs, metrics=(m,)) if p.role == "target") for m in ("accuracy_pmi", "off_target"))
    figure = plots.heat_map(accuracy)
    texts = [t.get_text() for t in figure.axes[0].texts]
    for method in METHODS:
        for lang in LANGS:
            cell = accuracy.cells[method, lang]
            assert f"{cell.value:.3f}"[1:] + cell.mark in texts

    def light(figure: plots.Plot, value: float) -> float:
        mesh = figure.axes[0].collections[0]
        r, g, b, _ = mesh.cmap(mesh.norm(value))
        return 0.299 * r + 0.587 * g + 0.114 * b

    assert light(figure, 0.5) > light(figure, 0.3) + 0.2
    assert light(plots.heat_map(off_target), 0.2) > light(plots.heat_map(off_target), 0.6) + 0.2  # lower is better
    difference = plots.heat_map(accuracy, difference=True)
    base = accuracy.cells["untrained", "fin"].value
    assert f"{accuracy.cells['sdrrl', 'fin'].value - base:+.3f}".replace("0.", ".", 1) in {
        t.get_text().rstrip("*") for t in difference.axes[0].texts}
    assert "untrained" not in [t.get_text() for t in difference.axes[0].get_xticklabels()]


def test_learning_curves_put_stages_after_each_other(runs: list[FinishedRun]) -> None:
    one = [r for r in runs if r.method == "sft" and r.langs == ("fin",)]
    figure = plots.learning_curves(one)
    data = [(list(map(float, x.get_xdata())), list(map(float, x.get_ydata()))) for x in figure.axes[0].lines]
    assert ([1, 2, 3, 4], [4.5, 4.0, 3.5, 3.0]) in data  # the first stage's training loss, seed 0
    assert ([5, 6, 7, 8, 9, 10], [4.5, 4.0, 3.5, 3.0, 2.5, 2.0]) in data  # the second stage starts at step 4
    assert ([4, 6, 8, 10], [7.0, 6.0, 5.0, 4.0]) in data  # its validation loss, seed 1
    assert ([4, 4], [0, 1]) in data  # where the second begins
    assert "10 k tokens" in figure.axes[0].get_title("left")
    many = plots.learning_curves([r for r in runs if r.method == "sft"] + [r for r in runs if r.method == "sft"])
    medians = [list(map(float, x.get_ydata())) for x in many.axes[0].lines]
    assert [5.0, 4.5, 4.0, 3.5] in medians  # between seed 0 and 1


def test_off_target_curves_pool_seeds_and_say_what_they_do_not_know(runs: list[FinishedRun]) -> None:
    figure = plots.off_target_curves(runs)
    axis = next(a for a in figure.axes if a.get_title("left") == "Finnish")
    line = next(x for x in axis.lines if len(x.get_xdata()) == 6)
    assert list(line.get_xdata()) == [0, 2, 4, 6, 8, 10] and set(line.get_ydata()) == {0.5}  # at step 4 one stage ends, the next begins
    # 2 seeds x 16 answers; by hand: z = 1.96, z2 = 3.84; (.5 + z2/64) / (1 + z2/32) -+ z / (1 + z2/32) * sqrt(.25/32 + z2/4096)
    low, high = 0.5 - 1.75 * 0.0935, 0.5 + 1.75 * 0.0935
    assert wilson(0.5, 32) == pytest.approx((low, high), abs=0.001)
    band = next(c for c in axis.collections if isinstance(c, PolyCollection)).get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((low, high), abs=0.001)
    points = [float(y) for x in axis.lines for y in x.get_ydata()]
    assert 0.4 in [round(y, 6) for y in points] and 0.6 in [round(y, 6) for y in points]  # sft has only before and after
    assert "measured only before and after" in figure.caption and "Wilson" in figure.caption


def test_cost_counts_shared_stages_once_and_leaves_evaluation_out(runs: list[FinishedRun]) -> None:
    sdrrl = [r for r in runs if r.method == "sdrrl"]
    assert device_hours(sdrrl) == pytest.approx(0.5 + 3 * 3.0)  # one seed: the shared questions, three languages' training
    figure = plots.accuracy_cost(pivots(runs, metrics=("accuracy_pmi",))[0])
    points = {round(float(x.get_xdata()[0]), 6) for x in figure.axes[0].lines if len(x.get_xdata()) == 1}
    assert {3.5, 6.5, 9.5} <= points
    names = {t.get_text() for t in figure.axes[0].texts}
    assert names == set(METHODS)
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1:])


def test_front_is_what_no_other_point_beats() -> None:
    points = [(1, 0.3), (2, 0.2), (2, 0.5), (3, 0.5), (4, 0.6)]
    assert front(points, lower=False) == [(1, 0.3), (2, 0.5), (4, 0.6)]
    assert front(points, lower=True) == [(1, 0.3), (2, 0.2)]


def test_nothing_to_draw_has_a_reason_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "runs", "sft", "fin", 0, cost=False)
    (folder / "log.jsonl").unlink()
    runs = load_runs([folder])
    with pytest.raises(plots.NotDrawn, match="no run has a log.jsonl"):
        plots.learning_curves(runs)
    written = plots.write_all(runs, pivots(runs, metrics=("accuracy_pmi",)), tmp_path / "plots")
    said = capsys.readouterr().out
    assert {p.name for p in written} == {p.name for p in (tmp_path / "plots").iterdir()}
    assert not any("heat" in p.name or "learning" in p.name or "cost" in p.name for p in written)
    assert "no plot  learning curves: no run has a log.jsonl" in said and "fewer than two methods with both a value and a cost" in said
    for path in written:
        start = path.read_bytes()[:8]
        assert start == b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else start.startswith(b"%PDF-1.")
    pdf = next(p for p in written if p.suffix == ".pdf").read_bytes()
    assert b"/Type3" not in pdf and b"/FontFile2" in pdf  # text is text, in TrueType
    assert (tmp_path / "plots" / "bars_target_choice_accuracy_pmi.png").is_file()


def test_same_figure_same_file_and_a_wrong_ending_is_named(runs: list[FinishedRun], tmp_path: Path) -> None:
    pivot = pivots(runs, metrics=("accuracy_pmi",))[0]
    for kind in ("pdf", "svg"):
        plots.save(plots.heat_map(pivot), tmp_path / f"a.{kind}")
        plots.save(plots.heat_map(pivot), tmp_path / f"b.{kind}")
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    with pytest.raises(plots.NotDrawn.__mro__[1], match="a.xyz"):
        plots.save(plots.heat_map(pivot), tmp_path / "a.xyz")


def test_no_torch_and_no_pyplot() -> None:
    code = "import sys; from xalign.report import page, plots; print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_examples_follow_their_rule(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "sft", "fin", 0)
    old = {"a": 0.5, "b": 0.5, "c": 0.0, "d": 1.0, "e": 0.2, "f": 0.9}
    new = {"a": 0.5, "b": 0.6, "c": 1.0, "d": 0.0, "e": 0.9, "f": 0.8}
    for when, values in (("before", old), ("after", new)):
        path = folder / "predictions" / when / "fin"
        path.mkdir(parents=True)
        records = [{"id": i, "prompt": "q", "references": ["r"], "prediction": f"{when} {i}", "scores": {"f1": v}}
                   for i, v in values.items()]
        (path / "open.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reversed(records)))
    (group,), note = example_groups(load_runs([folder]))
    assert [(e.id, e.why) for e in group.examples] == [("a", "first by id"), ("b", "first by id"), ("c", "rose most"), ("e", "rose most"),
                                                       ("d", "fell most"), ("f", "fell most")]
    assert group.total == 6 and "first 2 by id" in group.rule and "f1" in group.rule and not note
    assert (group.examples[2].before, group.examples[2].after, group.examples[2].scores) == ("before c", "after c", (("f1", 0.0, 1.0),))
