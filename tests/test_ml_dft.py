"""ML-DFT's and PL-BL's training rows, row by row, and the optimiser that the paper trains with."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from xalign.cache import Cache, Stage
from xalign.config import ConfigError, build
from xalign.data.examples import Example, read_examples, write_jsonl
from xalign.methods.base import Method
from xalign.methods.ml_dft import MLDFT
from xalign.methods.pl_bl import PLBL
from xalign.methods.rl_ia import RLIA
from xalign.training.node import TrainerNode

CONF = Path(__file__).parents[1] / "conf" / "method"
ROWS = {
    "eng": [Example("KE", "eng", "Capital of Kenya?", "Nairobi", source="lab:capital", group="ke", options=("Lima", "Nairobi")),
            Example("t1", "eng", "Kenya", "country", source="lab:term", options=("country", "city"))],
    "fin": [Example("KE", "fin", "Kenian pääkaupunki?", "Nairobi", source="lab:capital", group="ke", options=("Lima", "Nairobi")),
            Example("t1", "fin", "Kenia", "maa", source="lab:term", options=("maa", "kaupunki"))],
    "jpn": [Example("KE", "jpn", "ケニアの首都は?", "ナイロビ", source="lab:capital", group="ke", options=("リマ", "ナイロビ")),
            Example("t1", "jpn", "ケニア", "国", source="lab:term", options=("国", "都市"))],
}


class Hand:
    """A run around `ROWS`."""

    multilingual = has_options = True
    seed, source, kind, instruct = 0, "eng", "encoder", True
    choices = {"backbone": "fake", "data": "fake"}

    def __init__(self, folder: Path, method: Method, lang: tuple[str, ...] = ("fin", "jpn")) -> None:
        self.method, self.lang, self.data, self.backbone = method, lang, self, self
        self.trainer, self.cache = TrainerNode(lr=1e-3, optimizer="adamw"), Cache(folder)

    def questions_stage(self, run: Any, lang: str) -> Stage:
        return Stage("questions", 1, {"lang": lang}, lambda folder, _: {"n": write_jsonl(folder / "examples.jsonl", ROWS[lang])})

    def params(self) -> dict[str, Any]:
        return {}

    def weights(self, run: Any) -> Stage:
        return Stage("weights", 1, {}, lambda folder, inputs: {})

    def made(self, stage: Stage) -> tuple[list[Example], dict[str, Any]]:
        artifact = self.cache.get(stage)
        return read_examples(artifact.file("rows.jsonl")), artifact.receipt["facts"]


# rows


def test_ml_dft_pools_the_rows_of_all_languages(tmp_path: Path) -> None:
    run = Hand(tmp_path, MLDFT())
    rows, facts = run.made(run.method.rows(run))
    assert [(r.id, r.subset, r.lang, r.prompt, r.response, r.options, r.group, r.weight) for r in rows] == [
        ("KE/source/eng", "source", "eng", "Capital of Kenya?", "Nairobi", ("Lima", "Nairobi"), "ke", 1.0),
        ("t1/source/eng", "source", "eng", "Kenya", "country", ("country", "city"), "t1", 1.0),
        ("KE/target/fin", "target", "fin", "Kenian pääkaupunki?", "Nairobi", ("Lima", "Nairobi"), "ke", 1.0),
        ("t1/target/fin", "target", "fin", "Kenia", "maa", ("maa", "kaupunki"), "t1", 1.0),
        ("KE/target/jpn", "target", "jpn", "ケニアの首都は?", "ナイロビ", ("リマ", "ナイロビ"), "ke", 1.0),
        ("t1/target/jpn", "target", "jpn", "ケニア", "国", ("国", "都市"), "t1", 1.0)]
    assert facts["subsets"] == {"source": 2, "target": 4} and run.method.frame(run) is None
    few, facts = run.made(MLDFT(labelled=1).rows(run))
    assert facts["subsets"] == {"source": 2, "target": 2}  # only the target languages are scarce
    assert [r.id.split("/")[0] for r in few if r.subset == "target"] in (["KE", "KE"], ["t1", "t1"])  # the same in each


def test_data_in_the_source_language_alone_is_translated(tmp_path: Path) -> None:
    class English(Hand):
        multilingual, kind = False, "causal"

        def stage(self, run: Any, examples: Stage, *more: Any) -> Stage:  # the translator's, and the filter's
            if isinstance(more[0], Stage):
                return more[0]
            records = [{"id": "KE", "prompt": f"{more[0]}: capital?", "response": f"{more[0]}: Nairobi", "failed": {}},
                       {"id": "t1", "prompt": None, "response": "maa", "failed": {"prompt": "language"}}]
            return Stage("translate", 1, {"lang": more[0]}, lambda folder, _: {"n": write_jsonl(folder / "examples.jsonl", records)})

    run = English(tmp_path, MLDFT())
    run.translator = run.filter = run
    rows, _ = run.made(run.method.rows(run))
    assert [(r.id, r.lang, r.prompt, r.response) for r in rows if r.subset == "target"] == [
        ("KE/target/fin", "fin", "fin: capital?", "fin: Nairobi"), ("KE/target/jpn", "jpn", "jpn: capital?", "jpn: Nairobi")]


CHOICE = "Task: answer the question with a name or a few words.\n"
FIN = "Language: Finnish, Uralic, Latin script, spaces between words.\n"
JPN = "Language: Japanese, Japonic, Japanese script, no spaces between words.\n"
ENG = "Language: English, West Germanic, Latin script, spaces between words.\n"


def term(*categories: str) -> str:
    return f"Task: classify the term into one of the categories: {', '.join(categories)}.\n"


@pytest.mark.parametrize("method", [PLBL(), RLIA()])
def test_pl_bl_and_rl_ia_put_task_and_language_before_the_input(tmp_path: Path, method: Any) -> None:
    run = Hand(tmp_path, method)
    rows, facts = run.made(method.rows(run))
    assert [(r.id, r.subset, r.lang, r.prompt, r.response, r.options, r.pivot) for r in rows] == [
        ("KE/target/fin", "target", "fin", CHOICE + FIN + "Kenian pääkaupunki?", "Nairobi", ("Lima", "Nairobi"), ""),
        ("t1/target/fin", "target", "fin", term("maa", "kaupunki") + FIN + "Kenia", "maa", ("maa", "kaupunki"), ""),
        ("KE/target/jpn", "target", "jpn", CHOICE + JPN + "ケニアの首都は?", "ナイロビ", ("リマ", "ナイロビ"), ""),
        ("t1/target/jpn", "target", "jpn", term("国", "都市") + JPN + "ケニア", "国", ("国", "都市"), "")]
    assert facts["subsets"] == {"target": 4}
    first, _ = run.made(method.eim_rows(run))
    assert [(r.id, r.subset, r.prompt, r.response) for r in first] == [
        ("KE/source/eng", "source", CHOICE + ENG + "Capital of Kenya?", "Nairobi"),
        ("t1/source/eng", "source", term("country", "city") + ENG + "Kenya", "country")]
    assert [s.key for s in method.training_rows(run)] == [method.eim_rows(run).key, method.rows(run).key]
    assert method.frame(run)("term", "fin", "Peru", ("maa",)) == term("maa") + FIN + "Peru"  # what evaluation asks


# training stages


def test_pl_bl_fine_tunes_e_im(tmp_path: Path) -> None:
    run = Hand(tmp_path, PLBL(finetune_lr=0.25))
    stage = run.method.model_stage(run)
    assert [s.name for s in stage.inputs] == ["rows", "e_im"] and stage.inputs[1].key == RLIA().eim_stage(run).key
    assert stage.params["lr_factor"] == 0.25 and stage.params["loss"] == {"loss": "ce", "weighting": "pooled"}
    assert stage.inputs[1].inputs[1].name == "weights"


def test_ml_dft_trains_with_sgd_or_its_control(tmp_path: Path) -> None:
    run = Hand(tmp_path, MLDFT(momentum=0.8, lr=0.02))
    trainer = run.trainer.params()
    stage = run.method.model_stage(run)
    assert stage.params["trainer"] == {**trainer, "optimizer": "sgd", "momentum": 0.8, "lr": 0.02}
    assert [s.name for s in stage.inputs] == ["rows", "weights"]
    control = replace(run.method, optimizer="adamw")
    assert control.model_stage(run).params["trainer"] == trainer  # the trainer's own rate and betas
    run.trainer = replace(run.trainer, optimizer="sgd")
    assert control.model_stage(run).params["trainer"]["optimizer"] == "adamw"


def test_sgd_steps_are_what_the_formula_says(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file
    from test_training import make_rows, tiny

    from xalign.data.packing import pad, plan_steps
    from xalign.training.losses import supervised
    from xalign.training.trainer import Trainer

    rows, mu, lr, decay = make_rows(12), 0.8, 0.05, 0.1
    node = TrainerNode(epochs=2, lr=lr, tokens_per_step=120, valid_share=0, checkpoint_every=0, optimizer="sgd", momentum=mu,
                       weight_decay=decay, clip=1e9, warmup=0, final_lr=1.0)
    Trainer(tiny(), SimpleNamespace(name="ce", loss=supervised), node, rows, [], tmp_path, 0).fit()
    after = load_file(tmp_path / "checkpoints" / "best.safetensors")
    model = tiny()
    speed = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    steps = [step for epoch in range(2) for step in plan_steps(rows, 120, 0, epoch)]
    assert len(steps) >= 4
    for step in steps:  # v = mu v + g + decay w, w = w - lr v; biases and norms do not decay
        model.zero_grad()
        (supervised(model, pad(step)).sum / sum(r.targets for r in step)).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                speed[name] = mu * speed[name] + p.grad + (decay * p if p.ndim > 1 else 0)
                p -= lr * speed[name]
    start = dict(tiny().named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(after[name], p.detach(), rtol=1e-3, atol=1e-5)
        assert (p - start[name]).abs().max() > 1e-3, name


# bad input


@pytest.mark.parametrize(("name", "cls", "change", "message"), [
    ("ml_dft", MLDFT, {"optimizer": "adam"}, "method.optimizer=adam: must be one of sgd, adamw; did you mean 'adamw'"),
    ("ml_dft", MLDFT, {"momentum": 1.0}, r"method.momentum=1.0: must be in \[0, 0.999\]; the paper's value is 0.9"),
    ("ml_dft", MLDFT, {"lr": 2.0}, r"method.lr=2.0: must be auto or a number in"),
    ("ml_dft", MLDFT, {"labelled": 0}, "method.labelled=0: must be at least 1"),
    ("pl_bl", PLBL, {"finetune_lr": 0.0}, r"method.finetune_lr=0.0: must be in \(0, 10\]"),
])
def test_bad_values(name: str, cls: type, change: dict, message: str) -> None:
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    assert build(values, "method") == cls()  # the YAML lists the defaults
    with pytest.raises(ConfigError, match=message):
        build({**values, **change}, "method")
