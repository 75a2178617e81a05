"""The trainer: losses by arithmetic, trajectories that do not depend on how a step is cut, resume, refusals."""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from xalign.backbones.trainable import Trainable  # noqa: E402
from xalign.config import ConfigError, XalignError  # noqa: E402
from xalign.data.examples import Example  # noqa: E402
from xalign.data.packing import IGNORED, PREFIX, Row, common_prefix, deal, pack, pad, plan_steps, split_groups  # noqa: E402
from xalign.methods.base import Objective  # noqa: E402
from xalign.training.losses import supervised  # noqa: E402
from xalign.training.node import TrainerNode  # noqa: E402
from xalign.training.schedule import auto_lr, cosine  # noqa: E402

NODE = TrainerNode(epochs=2, lr=3e-3, tokens_per_step=120, valid_share=0.1, checkpoint_every=0)
METHOD = SimpleNamespace(name="ce", loss=supervised)


def tiny(kv_heads: int = 2) -> torch.nn.Module:
    """A random two-layer Llama with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=kv_heads, tie_word_embeddings=True, attn_implementation="sdpa",
                         initializer_range=0.3)
    return LlamaForCausalLM(config)


def make_rows(n: int = 40, prefix: int = 5) -> list[Row]:
    """Rows of 12 to 21 tokens whose first `prefix` tokens are the same; the response continues a pattern."""
    rows = []
    for i in range(n):
        ids = [*range(1, prefix + 1), *((7 * i + 3 * k) % 43 + 6 for k in range(12 + i % 10 - prefix))]
        rows.append(Row(f"r{i}", tuple(ids), prefix + 2 + i % 3, weight=1 + i % 2))
    return rows


def fit(folder: Path, rows: list[Row], node: TrainerNode, method: object = METHOD, on_log: object = None) -> list[dict]:
    """Train a fresh tiny model; returns the log."""
    from xalign.training.trainer import Trainer

    train, valid = split_groups(rows, node.valid_share, 0)
    Trainer(tiny(), method, node, train, valid, folder, 0, on_log).fit()
    return [json.loads(x) for x in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def curve(log: list[dict]) -> list[float]:
    return [r.get("loss", r.get("valid_loss")) for r in log]


def test_learning_rate_is_what_the_formula_says() -> None:
    assert auto_lr(4_000_000, 1.0) == 3e-4
    assert auto_lr(65536, 0.25) == pytest.approx(3e-4 * math.sqrt(16384 / 4e6))
    rates = [cosine(s, 100, 0.05, 0.1) for s in range(100)]
    assert rates[:6] == pytest.approx([k / 6 for k in range(1, 7)])  # five warm-up steps, then the peak
    assert rates[-1] == pytest.approx(0.1) and rates == sorted(rates[:6]) + sorted(rates[6:], reverse=True)
    assert rates[52] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 47 / 94)))
    assert cosine(0, 1, 0.05, 0.1) == 1.0


def test_a_packed_batch_holds_the_prefix_once() -> None:
    a, b = Row("a", (1, 2, 3, 9, 8), 3), Row("b", (1, 2, 4, 7), 3, weight=0.5)
    batch = pack([a, b])
    assert batch.input_ids.tolist() == [[1, 2, 3, 9, 8, 4, 7]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 9, 8, IGNORED, 7, IGNORED]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert batch.segment_ids.tolist() == [[PREFIX, PREFIX, 0, 0, 0, 1, 1]]
    assert batch.weights.tolist() == [[0, 0, 1, 1, 0, 0.5, 0]]
    padded = pad([a, b])
    assert padded.input_ids.tolist() == [[1, 2, 3, 9, 8], [1, 2, 4, 7, 0]]
    assert padded.labels.tolist() == [[IGNORED, IGNORED, 9, 8, IGNORED], [IGNORED, IGNORED, 7, IGNORED, IGNORED]]


def test_the_prefix_never_reaches_a_supervised_position() -> None:
    same = (1, 2, 3, 4)
    assert common_prefix([Row("a", same, 3), Row("b", same, 2)]) == 1
    assert common_prefix([Row("a", same, 3)]) == 0
    assert common_prefix([Row("a", same, 1), Row("b", (2, 2), 1)]) == 0


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("prefix", [0, 5])
def test_packed_loss_and_gradient_equal_those_of_separate_rows(prefix: int, kv_heads: int) -> None:
    from xalign.training.attention import use_packed

    rows = make_rows(9, prefix)
    alone, total = tiny(kv_heads), 0.0
    for r in rows:  # arithmetic: -sum over the response of weight * log softmax at the position before
        ids = torch.tensor([r.ids])
        logp = alone(input_ids=ids).logits[0].log_softmax(-1)
        loss = -sum(r.weight * logp[t - 1, r.ids[t]] for t in range(r.n_prompt, len(r.ids)))
        loss.backward()
        total += loss.item()
    for make in (pack, pad):
        model = tiny(kv_heads)
        if make is pack:
            use_packed(model, rows)
        out = supervised(model, make(rows))
        out.sum.backward()
        assert out.sum.item() == pytest.approx(total, rel=1e-5)
        assert out.count.item() == sum(r.targets for r in rows)
        for p, q in zip(alone.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=2e-4)


def test_rows_do_not_see_their_neighbours() -> None:
    from xalign.training.attention import use_packed

    model, rows = tiny(), make_rows(4)
    use_packed(model, rows)
    changed = [rows[0], replace(rows[1], ids=rows[1].ids[:5] + (49,) * (len(rows[1].ids) - 5)), *rows[2:]]
    logits = []
    for version in (rows, changed):
        batch = pack(version)
        logits.append(model(input_ids=batch.input_ids, position_ids=batch.position_ids, layout=batch.layout).logits[0].detach())
    other = batch.segment_ids[0] != 1
    torch.testing.assert_close(logits[0][other], logits[1][other], rtol=0, atol=1e-6)
    assert (logits[0][~other] - logits[1][~other]).abs().max() > 0.1


def test_a_model_that_cannot_keep_packed_rows_apart_is_refused() -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    from xalign.training.attention import use_packed

    torch.manual_seed(0)
    config = GptOssConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1)
    sinks = GptOssForCausalLM(config)
    with pytest.raises(ConfigError, match="attention uses s_aux, which SDPA lacks; set trainer.packing=false"):
        use_packed(sinks, make_rows(3))

    class Deaf(type(tiny())):  # drops the layout on its way
        def forward(self, layout: object = None, **inputs: object) -> object:
            return super().forward(**inputs)

    with pytest.raises(ConfigError, match="Deaf does not keep packed rows apart; set trainer.packing=false"):
        use_packed(Deaf(tiny().config), make_rows(3))
    with pytest.raises(ConfigError, match=r"trainer.packing=true: Linear .* set trainer.packing=false"):
        use_packed(torch.nn.Linear(2, 2), make_rows(3))


def test_steps_and_groups() -> None:
    rows = [replace(r, group=f"g{i // 4}") for i, r in enumerate(make_rows())]
    steps = plan_steps(rows, 120, 1, 0)
    assert sorted(r.id for s in steps for r in s) == sorted(r.id for r in rows)
    assert all(sum(len(r.ids) for r in s) <= 120 for s in steps)
    assert steps == plan_steps(rows, 120, 1, 0) != plan_steps(rows, 120, 1, 1)
    train, valid = split_groups(rows, 0.1, 0)
    assert len(valid) == 4 and not {r.group for r in train} & {r.group for r in valid}
    assert split_groups(rows, 0, 0) == (rows, [])
    parts = deal(steps[0][:2], 3)
    assert [len(p) for p in parts] == [1, 1, 1] and [p[0].targets for p in parts][2] == 0


def test_trajectory_does_not_depend_on_micro_batches_packing_or_zero(tmp_path: Path) -> None:
    rows = make_rows()
    variants = {"whole": {}, "micro30": {"micro_tokens": 30}, "micro15": {"micro_tokens": 15}, "padded": {"packing": False},
                "zero1": {"zero": 1, "micro_tokens": 60}, "zero2": {"zero": 2}, "zero3": {"zero": 3},
                "recompute": {"activation_checkpointing": True}}
    logs = {name: fit(tmp_path / name, rows, replace(NODE, **changes)) for name, changes in variants.items()}
    whole = curve(logs["whole"])
    assert len(whole) > 12 and whole[-1] < whole[0] - 0.3
    for name, log in logs.items():
        assert curve(log) == pytest.approx(whole, rel=2e-4), name
        norms = ([r["grad_norm"] for r in one if "loss" in r] for one in (log, logs["whole"]))
        assert next(norms) == pytest.approx(next(norms), rel=1e-3), name
    assert any(r["loss"] != r["ce"] for r in logs["whole"] if "loss" in r)  # rows have different weights


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    from xalign.training.trainer import load_weights

    rows = make_rows()
    log = fit(tmp_path, rows, replace(NODE, lr=0.3, patience=2, epochs=8))
    valid = [r for r in log if "valid_loss" in r]
    assert valid[-1]["step"] < 8 * len(plan_steps(rows, 120, 0, 0)) and not valid[-1]["best"] and not valid[-2]["best"]
    model = tiny()
    load_weights(model, tmp_path)
    held = split_groups(rows, 0.1, 0)[1]
    with torch.no_grad():
        loss = supervised(model, pad(held)).sum.item() / sum(r.targets for r in held)
    assert loss == pytest.approx(min(r["valid_loss"] for r in valid), rel=1e-4)


@pytest.mark.parametrize("zero", [0, 2])
def test_a_killed_run_continues_as_if_never_killed(tmp_path: Path, zero: int) -> None:
    from safetensors.torch import load_file

    class Killed(Exception):
        pass

    def kill(record: dict) -> None:
        if record["step"] == 9:
            raise Killed

    node = replace(NODE, checkpoint_every=1e-9, zero=zero)
    straight = fit(tmp_path / "straight", make_rows(), replace(node, checkpoint_every=0))
    with pytest.raises(Killed):
        fit(tmp_path / "killed", make_rows(), node, on_log=kill)
    assert [p.name for p in (tmp_path / "killed/checkpoints").glob("step-*")] == ["step-000008"]
    (tmp_path / "killed/log.jsonl").open("a").write('{"step": 1')  # a half-written line
    resumed = fit(tmp_path / "killed", make_rows(), node)
    assert [r["step"] for r in resumed] == [r["step"] for r in straight]
    assert curve(resumed) == curve(straight)
    a, b = (load_file(tmp_path / k / "checkpoints/best.safetensors") for k in ("straight", "killed"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    latest = tmp_path / "killed/checkpoints/latest.json"
    latest.write_text(json.dumps(json.loads(latest.read_text()) | {"world": 3}))
    with pytest.raises(XalignError, match="written by 3 processes, this run has 1"):
        fit(tmp_path / "killed", make_rows(), node)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_rows(tmp_path: Path) -> None:
    rows = make_rows()
    rows[7] = replace(rows[7], weight=float("nan"))
    with pytest.raises(XalignError, match=r"the loss in step \d+ is not finite, rows r7; lower trainer.lr"):
        fit(tmp_path, rows, replace(NODE, valid_share=0, micro_tokens=20))


@pytest.mark.parametrize(("changes", "message"), [
    ({"lr": "fast"}, r"trainer.lr=fast: must be auto or a number in \(0, 1\]"),
    ({"lr": 2}, "trainer.lr=2: must be auto or a number"),
    ({"betas": [0.9]}, r"trainer.betas=\[0.9\]: must be two numbers"),
    ({"zero": 4}, r"trainer.zero=4: must be in \[0, 3\]"),
])
def test_wrong_values_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(NODE, **changes).check("trainer")


class Letters(Trainable):
    """A backbone whose tokens are letters."""

    def __init__(self, folder: Path, node: object, train: bool) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder)

    def row(self, example: Example, prompt: str | None = None, options: tuple[str, ...] = ()) -> Row:
        text = prompt or example.prompt
        ids = tuple(ord(c) % 50 for c in text + example.response) + (0,)
        return Row(example.id, ids, len(text), example.subset, example.group)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


class ByRow(Objective):
    name = "ce"

    def row_weights(self, rows: list[Row]) -> list[float]:
        return [10 / r.targets for r in rows]


def words_stage(tmp_path: Path, name: str, **overrides: object) -> tuple[object, object]:
    """A cache, and a stage that trains 32 examples, two of them too long or empty."""
    from xalign.cache import Cache, Stage
    from xalign.data.examples import write_jsonl
    from xalign.training.stage import train_stage

    words = [Example(f"e{i}", "eng", f"say {i % 7}", "seven " * (i % 3 + 1), group=f"g{i}") for i in range(30)]
    words += [Example("long", "eng", "x" * 200, "y"), Example("empty", "eng", "x" * 200, "")]
    rows = Stage("rows", 1, {}, lambda folder, _: {"n": write_jsonl(folder / "rows.jsonl", words)})
    weights = Stage("weights", 1, {}, lambda folder, _: tiny().save_pretrained(folder))
    run = SimpleNamespace(trainer=replace(NODE, max_length=100), backbone=Backbone(), seed=0)
    return Cache(tmp_path / name), train_stage(run, ByRow(), rows, weights, epochs=3, **overrides)


class Backbone:
    def params(self) -> dict:
        return {}


def test_the_stage_trains_tokenised_examples_into_a_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    from xalign.backbones import load

    monkeypatch.setattr(load, "load_backbone", Letters)
    cache, stage = words_stage(tmp_path, "cache")
    made = cache.get(stage)
    facts = made.receipt["facts"]
    assert facts["rows"] == 30 and facts["rows_dropped_too_long"] == 2 and facts["train_rows"] + facts["valid_rows"] == 30
    assert not made.file("checkpoints").exists() and made.file("log.jsonl").is_file() and made.file("model.safetensors").is_file()
    before, after = tiny(), AutoModelForCausalLM.from_pretrained(made.path)
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
    assert after.lm_head.weight is after.model.embed_tokens.weight
    assert stage.key != words_stage(tmp_path, "cache", zero=3)[1].key


TWO = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_training import Letters, words_stage
from xalign.backbones import load
from xalign.training import ranks
load.load_backbone = Letters
if ranks.is_helper():
    ranks.serve()
else:
    for zero in (0, 3):
        cache, stage = words_stage(Path(sys.argv[2]), "two", zero=zero, micro_tokens=30)
        print(cache.get(stage).path)
    ranks.release()
"""


def test_two_processes_follow_the_same_trajectory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xalign.backbones import load

    monkeypatch.setattr(load, "load_backbone", Letters)
    cache, stage = words_stage(tmp_path, "one")
    paths = [cache.get(stage).path]
    script = tmp_path / "two.py"
    script.write_text(TWO)
    here = Path(__file__).parent
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launch, str(script), str(here), str(tmp_path)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    paths += [Path(x) for x in done.stdout.split()]
    assert len(paths) == 3
    one, *two = ([json.loads(x) for x in (p / "log.jsonl").read_text().splitlines()] for p in paths)
    for log in two:
        assert curve(log) == pytest.approx(curve(one), rel=2e-4)


def test_configuration_needs_no_torch() -> None:
    modules = "xalign.training.node, xalign.training.stage, xalign.training.ranks, xalign.data.packing"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
