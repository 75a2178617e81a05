"""What stages and runs cost: energy counters, FLOPs by hand, stages that are continued, runs that share stages."""
from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, TINY, torchrun, xalign

from xalign import meter
from xalign.cache import Cache, Stage
from xalign.cost import cost_rows, few, totals
from xalign.digests import digest_of
from xalign.energy import EnergyMeter, Gpu
from xalign.meter import Meter, work
from xalign.report import method_cost
from xalign.report.cost import cost_grids, count, distinct, run_grid, shared_stages, stages_grid, together, wall

OF = {"run": "r", "method": "sft", "lang": "fin", "source": "eng", "backbone": "tiny", "seed": 0}


def domain(root: Path, folder: str, name: str, uj: int, most: int = 1_000_000) -> Path:
    """One folder of a powercap tree as the kernel shows it."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", uj), ("max_energy_range_uj", most)):
        (root / folder / file).write_text(f"{value}\n")
    return root / folder / "energy_uj"


def put(path: Path, uj: int) -> None:
    """Change a counter that a thread may be reading."""
    path.with_name("new").write_text(f"{uj}\n")
    os.replace(path.with_name("new"), path)


def test_packages_are_added_their_parts_are_not_and_a_counter_that_wraps_goes_on(tmp_path):
    first, second = domain(tmp_path, "intel-rapl:0", "package-0", 900_000), domain(tmp_path, "intel-rapl:1", "package-1", 100)
    parts = [domain(tmp_path, "intel-rapl:0:0", "core", 0), domain(tmp_path, "intel-rapl:0:1", "dram", 0),
             domain(tmp_path, "intel-rapl:2", "psys", 0), domain(tmp_path, "intel-rapl-mmio:0", "package-0", 0)]
    found = EnergyMeter(tmp_path, gpus=0)
    assert found.name == "rapl: 2 whole packages" and found.joules() == 0
    for path in parts:
        path.write_text("500000\n")
    second.write_text("250100\n")
    for uj in (950_000, 30_000, 10_000):  # 50 000, then around the end: 80 000, and once more: 980 000
        first.write_text(f"{uj}\n")
        found.sample()
    assert found.joules() == pytest.approx((50_000 + 80_000 + 980_000 + 250_000) / 1e6)


def test_without_a_readable_counter_there_is_a_reason_and_no_number(tmp_path):
    assert EnergyMeter(tmp_path, gpus=0).reason == "no energy meter: there is no intel-rapl here"
    domain(tmp_path, "intel-rapl:0", "package-0", 5)
    (tmp_path / "intel-rapl:1").mkdir()
    (tmp_path / "intel-rapl:1" / "name").write_text("package-1")  # its counter cannot be read: one package is not both
    found = EnergyMeter(tmp_path, gpus=0)
    assert found.joules() is None and "intel-rapl is not readable here" in found.reason and "intel-rapl:1" in found.reason
    with Meter(powercap=tmp_path / "nothing") as spent:
        pass
    cost = spent.cost()
    assert "energy_kwh" not in cost and cost["energy_kwh_reason"] == "no energy meter: there is no intel-rapl here"


def test_a_counter_that_fails_on_the_way_ends_the_measurement(tmp_path):
    path = domain(tmp_path, "intel-rapl:0", "package-0", 5)
    with Meter(powercap=tmp_path) as spent:
        path.unlink()
    assert "energy_kwh" not in spent.cost() and "failed" in spent.cost()["energy_kwh_reason"]


def test_a_gpu_without_an_energy_counter_has_its_power_integrated(monkeypatch):
    at, watts = iter([10.0, 12.0, 16.0]), iter([100.0, 300.0, 100.0])
    monkeypatch.setattr("xalign.energy.time.monotonic", lambda: next(at))
    gpu = Gpu(lambda: ("power", next(watts)))
    gpu.sample()
    gpu.sample()
    assert gpu.joules == pytest.approx(2 * 200 + 4 * 200)
    energy = iter([1000.0, 1250.5])
    monkeypatch.undo()
    gpu = Gpu(lambda: ("energy", next(energy)))
    gpu.sample()
    assert gpu.joules == pytest.approx(250.5)


def test_the_thread_sees_a_wrap_that_start_and_end_would_miss(tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "TICK", 0.01)
    path = domain(tmp_path, "intel-rapl:0", "package-0", 0)
    with Meter(powercap=tmp_path) as spent:
        for uj in (900_000, 800_000, 700_000):  # 900 000 + 900 000 + 900 000, of which the ends show 700 000
            put(path, uj)
            for _ in range(500):
                if spent.energy.packages[0].last == uj:
                    break
                spent.over.wait(0.01)
    cost = spent.cost()
    assert cost["energy_kwh"] == pytest.approx(2.7 / 3.6e6, abs=1e-9) and cost["energy_meter"] == "rapl: 1 whole package"


def watch(model) -> None:
    from xalign.backbones.counting import watch

    watch(model)


def spent_by(do) -> tuple[int, int]:
    """(tokens, FLOPs) that `do` computes."""
    before = (work.tokens, work.flops)
    do()
    return work.tokens - before[0], work.flops - before[1]


def test_flops_of_a_causal_model_by_hand():
    """Llama, H 16, F 32, 4 heads of 4, 2 of them for keys: Q and O are 16 x 16, K and V 16 x 8, the MLP 3 x 16 x 32, three norms."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
                         num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None, eos_token_id=2, pad_token_id=2)
    layer, norms, head, frozen = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32, 3 * 16, 400 * 16, 3 * 16 * 32
    model, ids = LlamaForCausalLM(config), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    model.model.layers[0].mlp.requires_grad_(False)
    watch(model)
    assert spent_by(lambda: model(input_ids=ids)) == (8, 8 * (6 * (layer + norms + head - frozen) + 4 * frozen))
    with torch.no_grad():
        assert spent_by(lambda: model(input_ids=ids)) == (8, 2 * 8 * (layer + norms + head))
        assert spent_by(lambda: model(input_ids=ids, logits_to_keep=1)) == (8, 2 * (8 * (layer + norms) + 2 * head))
        generated = spent_by(lambda: model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False))
    assert generated == (8 + 2 * 2, 2 * (12 * (layer + norms) + 3 * 2 * head))  # the last token drawn is never read


def test_flops_of_a_sentence_encoder_by_hand():
    """BERT, H 16, F 32, with biases; the tokens of all texts pass it, the head (16 x 16) is for the prompts."""
    import torch
    from transformers import BertConfig, BertModel

    from xalign.backbones.encoder import Scorer

    config = BertConfig(vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4)
    model = Scorer(BertModel(config, add_pooling_layer=False), "similarity", 0.05).requires_grad_(False)
    watch(model)
    weights = 4 * (16 * 16 + 16) + 2 * 16 * 32 + 32 + 16 + 3 * 2 * 16
    ids, index = torch.randint(0, 60, (3, 5)), torch.tensor([[0, 1, 2]])  # a prompt and its two options
    spent = spent_by(lambda: model.rank(model.encode(ids, torch.ones_like(ids)), index, torch.ones_like(index, dtype=torch.bool)))
    assert spent == (15, 2 * (15 * weights + 16 * 16))


def test_flops_of_a_translator_by_hand():
    """An encoder-decoder: the source passes the encoder once, every beam the decoder."""
    import torch
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    config = M2M100Config(vocab_size=60, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                          decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, pad_token_id=1,
                          bos_token_id=0, eos_token_id=2, decoder_start_token_id=2)
    model = M2M100ForConditionalGeneration(config).eval().requires_grad_(False)
    watch(model)
    attention, mlp, norm = 4 * (8 * 8 + 8), 8 * 16 + 16 + 16 * 8 + 8, 2 * 8
    encoder, decoder = attention + mlp + 2 * norm + norm, 2 * attention + mlp + 3 * norm + norm
    ids = torch.tensor([[5, 6, 7, 2], [8, 9, 10, 2]])
    steps, beams = 4, 3
    tokens, flops = spent_by(lambda: model.generate(input_ids=ids, num_beams=beams, min_new_tokens=steps, max_new_tokens=steps,
                                                    do_sample=False))
    read = 2 * beams * steps
    assert tokens == 8 + read and flops == 2 * (8 * encoder + read * (decoder + 60 * 8))


HELPED = """
from dataclasses import dataclass
from xalign.meter import work
from xalign.training import ranks

@dataclass(frozen=True)
class Job:
    def run(self):
        rank, _ = ranks.place()
        work.tokens, work.flops = work.tokens + 10 * (rank + 1), work.flops + 100 * (rank + 1)

ranks.join()
if ranks.is_helper():
    ranks.serve()
else:
    ranks.perform(Job())
    ranks.perform(Job())
    print("computed", work.tokens, work.flops)
    ranks.release()
"""


def test_what_other_processes_compute_counts(tmp_path):
    """Two jobs of two processes: 2 x (10 + 20) tokens."""
    (tmp_path / "job.py").write_text(HELPED)
    done = torchrun(tmp_path / "job.py")
    assert done.returncode == 0 and "computed 60 600" in done.stdout, done.stderr[-3000:]


def test_the_share_of_the_peak_is_flops_a_second_and_process():
    from xalign.training.hardware import peak_flops

    peak = peak_flops(False, work.half)
    assert meter.share_of_peak({"flops": 80 * peak}, 100, 2, False) == {"mfu": 0.4}
    assert "too short" in meter.share_of_peak({"flops": 80 * peak}, 10, 2, False)["mfu_reason"]
    assert meter.share_of_peak({"flops": 0}, 100, 1, False) == {"mfu_reason": "no model computed"}


def test_what_computes_uncounted_has_no_flops_and_no_zero():
    with Meter() as spent:
        work.uncounted = "the judge computes elsewhere"
    cost = spent.cost()
    assert "flops" not in cost and "tokens" not in cost and cost["tokens_reason"] == cost["flops_reason"] == "the judge computes elsewhere"


def stage(root: Path, work_, **more) -> Stage:
    return Stage("answers", 1, {"root": root.name}, work_, label="answers eng", resumable=True, **more)


def test_a_continued_stage_adds_up(tmp_path):
    def fails(folder, inputs):
        work.tokens, work.flops = work.tokens + 100, work.flops + 1000
        raise KeyboardInterrupt

    def ends(folder, inputs):
        work.tokens, work.flops = work.tokens + 11, work.flops + 7
        return {}

    cache = Cache(tmp_path)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            cache.get(stage(tmp_path, fails))
    spent = next(tmp_path.glob("answers/*.partial/.spent"))
    noted = json.loads(spent.read_text())
    assert noted["attempts"] == 2 and noted["tokens"] == 200 and noted["running"] is False
    del noted["digest"]
    changed = {**noted, "seconds": 3600.0, "joules": None}
    spent.write_text(json.dumps({**changed, "digest": digest_of(changed)}))
    receipt = cache.get(stage(tmp_path, ends)).receipt
    cost = receipt["cost"]
    assert (cost["tokens"], cost["flops"], cost["attempts"]) == (211, 2007, 3) and "incomplete" not in cost
    assert 3600 <= receipt["seconds"] < 3610 and receipt["device_hours"] == pytest.approx(receipt["seconds"] / 3600, abs=1e-5)
    assert list(receipt["files"]) == [] and "energy_kwh" not in cost


def test_energy_adds_up_over_attempts_and_is_absent_if_one_had_no_meter(tmp_path):
    path = domain(tmp_path, "intel-rapl:0", "package-0", 0)

    def attempt(to: int, ends: bool) -> dict:
        with nullcontext() if ends else pytest.raises(ZeroDivisionError), Meter(tmp_path / ".spent", powercap=tmp_path) as spent:
            put(path, to)
            assert 1 / ends
        return spent.cost()

    attempt(300_000, False)
    assert attempt(500_000, True)["energy_kwh"] == pytest.approx(0.5 / 3.6e6, abs=1e-9)
    (tmp_path / ".spent").write_text("12.5")  # it is not as it was written: whatever it held is lost
    cost = attempt(600_000, True)
    assert cost["seconds"] < 12.5 and cost["incomplete"] and cost["energy_kwh_reason"] == "the energy of an earlier attempt is not known"


def test_a_killed_stage_says_that_its_sums_are_incomplete(tmp_path):
    code = ("import os, signal, sys\nfrom xalign.cache import Cache, Stage\nfrom xalign import meter\nmeter.TICK, meter.WRITTEN = 0.01, 1\n"
            "def work(folder, inputs):\n    meter.work.tokens += 50\n    __import__('time').sleep(0.5)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            f"Cache({str(tmp_path)!r}).get(Stage('answers', 1, {{'root': {tmp_path.name!r}}}, work, resumable=True))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    cost = Cache(tmp_path).get(stage(tmp_path, lambda folder, inputs: {})).receipt["cost"]
    assert cost["incomplete"] and cost["attempts"] == 2 and cost["tokens"] == 50


def test_peak_memory_is_the_stage_s_own_and_survives_a_reset_on_the_way():
    if not meter.reset_peak():
        pytest.skip("the high-water mark cannot be set back here")
    with Meter() as large:
        with mmap.mmap(-1, 300 * 2**20) as block:  # not malloc's: the trainer's tests make that keep its pages
            block.write(b"x" * len(block))
        meter.reset_peak()  # as the trainer does
    with Meter() as small:
        pass
    assert large.cost()["peak_gib"] - small.cost()["peak_gib"] > 0.25


def receipt(key: str, name: str, seconds: float, params: dict | None = None, cached: bool = False, **cost) -> dict:
    devices = cost.setdefault("devices", 1)
    return {"key": key, "name": name, "label": f"{name} {key}", "params": params or {}, "seconds": seconds, "facts": {}, "cached": cached,
            "device_hours": seconds * devices / 3600, "cost": cost}


def finished(method: str, receipts: list[dict], seed: int = 0, langs: tuple[str, ...] = ("fin",), value: float = 0.5) -> SimpleNamespace:
    """A finished run as far as the tables look at it."""
    name = f"{method}-{'_'.join(langs)}-tiny-s{seed}-0"
    rows = tuple({"when": "after", "lang": lang, "source": "eng", "task": "lab", "metric": "accuracy", "value": value} for lang in langs)
    cost = cost_rows(receipts, {**OF, "run": name, "method": method, "seed": seed})
    return SimpleNamespace(name=name, method=method, langs=langs, source="eng", backbone="tiny", seed=seed, trained=True, cost=cost,
                           rows=rows, folder=Path("nowhere"), model=lambda when: SimpleNamespace(identity={"method": method}))


TRAINED = {"trainer": {}}
ONE = [receipt("w", "weights", 10, tokens=0, flops=0, energy_kwh=1e-6), receipt("q", "questions", 6, tokens=0, flops=0, energy_kwh=1e-6),
       receipt("a", "train", 100, TRAINED, tokens=1000, flops=2 * 10**12, mfu=0.5, devices=2, energy_kwh=3e-5)]
TWO = [receipt("w", "weights", 10, cached=True, tokens=0, flops=0, energy_kwh=1e-6),
       receipt("q", "questions", 6, cached=True, tokens=0, flops=0, energy_kwh=1e-6),
       receipt("b", "train", 40, TRAINED, tokens=500, flops=10**12, mfu=0.25, devices=2, energy_kwh=1e-5),
       receipt("e", "predict", 20, tokens=30, flops=10**6, energy_kwh_reason="no energy meter")]


def test_two_runs_that_share_stages():
    """Alone 116 s and 76 s; shared 16 s, 8 s each; every stage once: 10 + 6 + 100 + 40 + 20 = 176 s = 108 + 68."""
    runs = [finished("sft", ONE), finished("t_sft", TWO)]
    spent = [(run, run.cost) for run in runs]
    grid = together(spent)
    assert grid.rows[0][:6] == ["sft", *map(wall, (116, 100, 16, 8, 108))]
    assert grid.rows[1][:6] == ["t_sft", *map(wall, (76, 60, 16, 8, 68))]
    assert grid.rows[2][:6] == ["all, each stage once", wall(192), "", "", "", wall(176)]
    hours = (16 + 2 * 100 + 2 * 40 + 20) / 3600
    assert grid.rows[2][-1] == few(hours) and grid.rows[0][-1] == few((8 + 200) / 3600)
    assert len(distinct(spent)) == 5 and "92%" in grid.notes[0]
    shared = shared_stages(spent)
    assert [row[:5] for row in shared.rows] == [["weights w", "assets", "2", "all", "10 s"], ["questions q", "data", "2", "all", "6.0 s"]]


def test_a_run_s_table_sums_its_stages_and_says_what_is_missing():
    grid = run_grid("cost", cost_rows(TWO, OF))
    rows = {row[0]: row[1:] for row in grid.rows}
    assert list(rows) == ["assets", "data", "train", "evaluate", "all"]
    assert rows["all"][:5] == ["4", "1.3 min", few((16 + 80 + 20) / 3600), "530", "1 T"]
    assert rows["train"][5] == "25%" and rows["evaluate"][7] == "–" and rows["all"][7] == "≥ 0.0120"
    assert any("energy of 1 of 4 stages: no energy meter" in note for note in grid.notes)
    assert any("2 of 4 stages were taken from the cache" in note for note in grid.notes)
    # two stages at half and at a quarter of the peak: 3e12 FLOPs at what would have taken 4e12 + 4e12
    both = [r for run in (ONE, TWO) for r in cost_rows(run, OF) if r["kind"] == "train"]
    assert run_grid("", both).rows[0][6] == "38%"
    assert [row[0] for row in stages_grid([(finished("sft", ONE), cost_rows(ONE, OF))]).rows] == ["sft", "assets", "data", "train", "all"]


def test_receipts_of_older_versions_lack_numbers_and_say_so():
    old = {"key": "t", "name": "train", "label": "train sft", "params": TRAINED, "seconds": 7.0, "device_hours": 0.1,
           "facts": {"tokens_computed": 90, "flops": 10**9, "world": 2}}
    older = {**old, "key": "u", "name": "evaluate", "params": {}, "facts": {}}
    rows = cost_rows([old, older], OF)
    assert rows[0]["tokens"] == 90 and rows[0]["devices"] == 2 and "energy_kwh" not in rows[0] and rows[0]["energy_kwh_reason"]
    assert rows[1]["kind"] == "evaluate" and "tokens" not in rows[1] and "did not measure" in rows[1]["tokens_reason"]
    sums = totals(rows)
    assert sums["tokens"] == 90 and sums["tokens_reason"].startswith("not of 1 of 2 stages") and "energy_kwh" not in sums
    assert cost_grids([SimpleNamespace(**{**vars(finished("sft", [])), "cost": rows})])[0].rows


def test_ml_ipd_s_table_from_measurements():
    """Training hours x 2 devices: ML-DFT 2 h and 4 h (two seeds), ML-IPD 0.75 h: 6 and 1.5 device-hours, -75 %."""
    def trained(method: str, hours: float, seed: int, value: float) -> SimpleNamespace:
        own = receipt(f"{method}{seed}", "train", hours * 3600, TRAINED, devices=2)
        return finished(method, [receipt("w", "weights", 3600), own], seed, value=value)

    runs = [trained("ml_dft", 2, 0, 0.5), trained("ml_dft", 4, 1, 0.7), trained("ml_ipd", 0.75, 0, 0.9)]
    grid = method_cost.method_grid([(run, run.cost) for run in runs])
    first, second = grid.rows
    assert first[0] == "ML-DFT" and first[2] == f"3.00 ±{few(1)}" and first[5] == f"6.00 ±{few(2)}" and first[6] == f"7.00 ±{few(2)}"
    assert first[-1] == ".600 ±.100" and first[7] == "–"
    assert second[0] == "ML-IPD" and second[4] == "2" and second[7] == f"-75.0% / {100 * (2.5 / 7 - 1):.1f}%" and second[8] == "–"
    other = finished("rl_ia", [receipt("r", "train", 3600, TRAINED)], langs=("jpn",))
    grid = method_cost.method_grid([(run, run.cost) for run in (*runs, other)])
    assert grid.rows[1][0] == "RL-IA" and grid.rows[2][8] == "–"  # other target languages: nothing to compare
    assert any("not run on the same target languages" in note for note in grid.notes)
    paper = {row[0]: row for row in method_cost.papers_grid().rows}
    assert paper["ML-IPD"][3:] == ["200", "-75.0%", "-91.7%", "-22%", "-34%"] and paper["RL-IA"][3] == "2,400"
    titles = [g.title for g in cost_grids(runs)]
    assert titles[-2:] == ["cost by method, measured", "cost by method, as the paper states it (not measured here)"]


def test_numbers_for_people():
    assert [count(v) for v in (0, 812, 1_240_000, 3.1e15)] == ["0", "812", "1.24 M", "3.1 P"]
    assert [few(v) for v in (0, 0.00312, 12.44, 1204.4, 0.00001)] == ["0", "0.0031", "12.4", "1,204", "<0.0001"]
    assert [wall(v) for v in (0, 0.01, 0.4, 38, 750, 11_520)] == ["0 s", "<0.1 s", "0.4 s", "38 s", "12.5 min", "3.2 h"]


def test_a_run_s_cost_rows_and_the_terminal(tmp_path, cache, parallel_files):
    argv = ["method=sft", "lang=fin", *TINY, "trainer.max_steps=3", f"parallel.path={parallel_files}", f"cache={cache}"]
    done = xalign(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = next((tmp_path / "runs").glob("sft-fin-*"))
    rows = [json.loads(line) for line in (folder / "cost.jsonl").read_text().splitlines()]
    receipts, facts = (json.loads((folder / name).read_text()) for name in ("receipts.json", "run.json"))
    assert [r["key"] for r in rows] == [r["key"] for r in receipts]
    assert [r["reused"] for r in rows] == [r["cached"] for r in receipts]
    train = next(r for r in rows if r["kind"] == "train")
    assert not train["reused"] and train["tokens"] > 0 and train["flops"] > 0 and train["peak_gib"] > 0
    assert train["mfu_reason"].startswith("too short")
    predict = next(r for r in rows if r["name"] == "predict")
    assert predict["tokens"] > 0 and predict["flops"] > 2 * predict["tokens"]
    for name in ("tokens", "flops"):
        assert facts["cost"][name] == sum(r[name] for r in rows)
    assert facts["cost"]["seconds"] == pytest.approx(sum(r["seconds"] for r in receipts), abs=0.06)
    assert {"seconds_this_run", "train_seconds", "device_hours", "peak_gib", "stages"} <= set(facts["cost"])
    if not os.access("/sys/class/powercap/intel-rapl:0/energy_uj", os.R_OK):
        assert "energy_kwh" not in train and train["energy_kwh_reason"] and facts["cost"]["energy_kwh_reason"]
    # what the trainer counts is what the stage counts, but for validation
    own = next(r for r in receipts if r["key"] == train["key"])["facts"]
    assert 0 < own["flops"] <= train["flops"] and own["tokens_computed"] <= train["tokens"]
    tail = done.stdout[done.stdout.index("\ncost"):]
    assert "device-hours" in tail and "evaluate" in tail and "took" in tail and len(tail.splitlines()) < 20
