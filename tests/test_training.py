"""The trainer: losses by arithmetic, trajectories that do not depend on how a step is cut, resume, refusals."""
from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from xalign.backbones.trainable import Trainable  # noqa: E402
from xalign.config import ConfigError  # noqa: E402
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
    folder.mkdir(parents=True, exist_ok=True)
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


def test_configuration_needs_no_torch() -> None:
    modules = "xalign.training.node, xalign.training.stage, xalign.training.ranks, xalign.data.packing"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
