"""LoRA: what it trains, what it leaves alone, and that merging changes nothing but the form."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from xalign.backbones.load import load_backbone  # noqa: E402
from xalign.backbones.node import Tiny  # noqa: E402
from xalign.backbones.tiny import make_tiny  # noqa: E402
from xalign.cache import Cache, Stage  # noqa: E402
from xalign.config import ConfigError  # noqa: E402
from xalign.data.examples import Example, write_jsonl  # noqa: E402
from xalign.methods.base import Objective  # noqa: E402
from xalign.training.adapter import add_lora, merge  # noqa: E402
from xalign.training.node import TrainerNode  # noqa: E402
from xalign.training.stage import train_stage  # noqa: E402

NODE = TrainerNode(epochs=30, lr=2e-2, tokens_per_step=200, valid_share=0.0, checkpoint_every=0, adapter="lora", lora_rank=3, lora_alpha=6)
EXAMPLES = [Example(f"e{i}", "eng", f"Capital {i % 5}?", ["Oslo", "Rome", "Paris", "Lima", "Quito"][i % 5]) for i in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    make_tiny(path, 32, 2, 600, 0)
    return path


def logits(model: object) -> object:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 25)[None]).logits


def test_it_starts_at_zero_and_trains_two_thin_matrices_a_layer(folder: Path) -> None:
    plain, model = load_backbone(folder, Tiny()).model, load_backbone(folder, Tiny(), train=True).model
    add_lora(model, NODE, seed=0)
    model.eval()
    assert torch.equal(logits(model), logits(plain))  # B = 0
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    linear = [m for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    assert len(trained) == 2 * len(linear)
    assert sum(p.numel() for p in trained.values()) == sum(3 * (m.in_features + m.out_features) for m in linear)


def test_merging_adds_alpha_over_rank_times_b_a(folder: Path) -> None:
    plain, model = load_backbone(folder, Tiny()).model, load_backbone(folder, Tiny(), train=True).model
    add_lora(model, NODE, seed=0)
    model.eval()
    layer = model.model.layers[1].self_attn.q_proj
    torch.manual_seed(1)
    for p in (p for n, p in model.named_parameters() if "lora_B" in n):
        p.data.normal_()
    a, b = layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone()
    before = logits(model)
    merge(model)
    w = plain.model.layers[1].self_attn.q_proj.weight
    torch.testing.assert_close(model.model.layers[1].self_attn.q_proj.weight, w + 6 / 3 * b @ a)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert not any("lora" in n for n, _ in model.named_parameters())


def test_a_stage_with_lora_saves_a_plain_model_that_learned(folder: Path, tmp_path: Path) -> None:
    rows = Stage("rows", 1, {}, lambda f, _: {"n": write_jsonl(f / "rows.jsonl", EXAMPLES)})
    weights = Stage("weights", 1, {}, lambda f, _: make_tiny(f, 32, 2, 600, 0))
    run = SimpleNamespace(trainer=NODE, backbone=Tiny(), seed=0)
    stage = train_stage(run, Objective(), rows, weights)
    made = Cache(tmp_path).get(stage)
    start, end = made.receipt["facts"]["course"]["loss"]
    assert end < start - 0.2  # the frozen random output layer allows about 0.6: |h| |e| = sqrt(32) * 0.02 * sqrt(32)
    old, new = (load_backbone(f, Tiny()).model for f in (folder, made.path))
    assert [n for n, _ in new.named_parameters()] == [n for n, _ in old.named_parameters()]
    for name, p in new.named_parameters():
        change = p.detach() - old.get_parameter(name)
        if "proj" in name:  # an update of rank 3, nothing more
            assert 0 < torch.linalg.matrix_rank(change, atol=1e-5) <= 3, name
        else:
            assert not change.any(), name
    full = train_stage(replace_run(run, adapter="none"), Objective(), rows, weights)
    assert full.key != stage.key


def replace_run(run: SimpleNamespace, **changes: object) -> SimpleNamespace:
    return SimpleNamespace(trainer=replace(run.trainer, **changes), backbone=run.backbone, seed=run.seed)


def test_it_is_for_causal_backbones() -> None:
    run = SimpleNamespace(backbone=SimpleNamespace(kind="encoder"))
    with pytest.raises(ConfigError, match="trainer.adapter=lora: is for causal backbones; set trainer.adapter=none"):
        NODE.check_run(run)
