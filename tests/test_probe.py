"""The off-target rate while a model trains: what is asked, how it is counted, and that training does not feel it."""
from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from conftest import torchrun  # noqa: E402

from xalign.backbones.node import Tiny, TinyEncoder  # noqa: E402
from xalign.backbones.tiny import make_tiny  # noqa: E402
from xalign.cache import Artifact, Cache, Stage  # noqa: E402
from xalign.config import ConfigError  # noqa: E402
from xalign.data.examples import Example, write_jsonl  # noqa: E402
from xalign.data.packing import Row  # noqa: E402
from xalign.methods.base import Objective  # noqa: E402
from xalign.methods.cit import CIT  # noqa: E402
from xalign.methods.coit import instructions  # noqa: E402
from xalign.methods.ml_ipd import pivoted  # noqa: E402
from xalign.methods.sdrrl import TRANSFER, Transfer, comp_rows, four_subsets, mt_rows  # noqa: E402
from xalign.methods.supervised import labelled, translated_rows  # noqa: E402
from xalign.metrics.offtarget import OffTarget  # noqa: E402
from xalign.plan import Plan  # noqa: E402
from xalign.report.course import series  # noqa: E402
from xalign.results import export_logs, training_records  # noqa: E402
from xalign.training import stage as training  # noqa: E402
from xalign.training.node import TrainerNode  # noqa: E402
from xalign.training.probe import answer_language, questions, rates  # noqa: E402
from xalign.training.stage import train_stage  # noqa: E402

NODE = TrainerNode(max_steps=12, epochs=9, eval_every=4, lr=1e-2, tokens_per_step=300, valid_share=0.2, patience=0, checkpoint_every=0)
PROBE = replace(NODE, probe_prompts=3, probe_tokens=12)
SHORT = replace(PROBE, max_steps=2, probe_tokens=4)
SENTENCES = {"eng": "The lamp in the kitchen is on and the window is open.", "fin": "Keittiön lamppu on päällä ja ikkuna on yhä auki."}


def rows(n: int = 8) -> list[Example]:
    """Questions in two languages, each answered in both."""
    asked = {"eng": "Question {}?", "fin": "Kysymys {}?"}
    return [Example(f"q{i}/{subset}", a, asked[a].format(i), SENTENCES[b], subset=subset, group=f"q{i}")
            for i in range(n) for subset, a, b in (("LL", "eng", "eng"), ("TL", "fin", "eng"), ("LT", "eng", "fin"), ("TT", "fin", "fin"))]


class Plain(Objective):
    name = "ce"


def chain(folder: Path, node: TrainerNode, examples: list[Example] | None = None) -> tuple[Cache, Stage, Stage]:
    """A cache, a training of a tiny model, and a second training that goes on from it with two steps."""
    data = Stage("rows", 1, {}, lambda f, _: {"rows": write_jsonl(f / "rows.jsonl", examples or rows())})
    weights = Stage("weights", 1, {}, lambda f, _: make_tiny(f, 32, 2, 600, 0))
    run = SimpleNamespace(trainer=node, backbone=Tiny(), seed=0, source="eng", lang=("fin",))
    first = train_stage(run, Plain(), data, weights)
    return Cache(folder), first, train_stage(run, Plain(), data, first, name="again", max_steps=2)


def trained(folder: Path, node: TrainerNode) -> Artifact:
    cache, stage, _ = chain(folder, node)
    return cache.get(stage)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def course_of(artifact: Artifact) -> list[dict[str, Any]]:
    """The log without the probe's records and without what depends on the clock."""
    log = [r for r in read(artifact.file("log.jsonl")) if "off_target_eng_n" not in r]
    return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in log]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return trained(tmp_path_factory.mktemp("probed"), PROBE)


# what is asked


def test_the_language_of_an_answer_is_that_of_the_rows_the_methods_build() -> None:
    said = [Example("a", "eng", "eng asks", "eng says"), Example("b", "eng", "eng asks", "eng says")]
    found = [{"id": e.id, "prompt": "fin asks", "response": "fin says"} for e in said]
    pairs = [{"id": "p", "src": "eng says", "tgt": "fin says", "kind": "sentence"}]
    chosen = [Transfer(e, "fin asks", "fin says") for e in said]
    cit = CIT(cross=0.5).one_pass(chosen, found, "eng", "fin", 0, 1)[0] + CIT(cross=0.5).one_pass(chosen, found, "eng", "fin", 0, 2)[0]
    built = [*labelled(said, "D"), *translated_rows(said, found, "fin"), *four_subsets(chosen, TRANSFER, "fin"), *cit,
             *mt_rows(pairs, "eng", "fin"), *comp_rows(pairs, "fin", 0), *instructions(pairs, "eng", "fin", "both"),
             *labelled(pivoted([e.with_(lang="fin", response="fin says") for e in said], said, choose=False), "pair")]
    assert {row.subset for row in built} >= {"D", "T", *TRANSFER, "mt", "comp", "pair"}
    for row in built:
        assert answer_language(row, ("eng", "fin")) == row.response[:3], row
    assert answer_language(Example("x", "fin", "?", "!", subset="my own"), ("eng", "fin")) is None
    assert answer_language(Example("x", "eng", "?", "!", subset="LT"), ("eng", "fin", "jpn")) is None  # which of the two?


def test_held_out_rows_come_first_then_training_rows_and_answers_that_can_be_judged(tmp_path: Path) -> None:
    def row(name: str, long: int = 0) -> Row:
        return Row(name, (1,) * (9 + long), 8 + long)

    def example(name: str, response: str) -> Example:
        return Example(name, "eng", name, response, subset="D")

    known = [example("held, short", "Oslo"), example("held, wrong", SENTENCES["fin"]), example("held, good", SENTENCES["eng"]),
             *(example(f"train {i}", SENTENCES["eng"]) for i in range(5)), example("train, long", SENTENCES["eng"])]
    valid = [row(e.id) for e in known[:3]]
    train = [*(row(e.id) for e in known[3:8]), row("train, long", 1)]

    def ask(n: int, seed: int = 0) -> list[str]:
        return [q.id for q in questions(known, train, valid, n, seed, ("eng", "fin"), room=8)]

    assert ask(1) == ["held, good"] and ask(2) == ["held, good", "held, short"]  # the off-target one is never asked
    assert ask(4)[:2] == ask(2) and ask(3) == ask(4)[:3] and set(ask(4)[2:]) < {f"train {i}" for i in range(5)}
    assert sorted(ask(99)) == sorted(e.id for e in known if e.id not in ("held, wrong", "train, long"))
    assert len({tuple(ask(99, seed)) for seed in range(5)}) > 1
    asked = questions(known, train, valid, 3, 0, ("eng", "fin"), room=8)
    assert [q.held_out for q in asked] == [True, True, False] and asked[0].ids == (1,) * 8 and asked[0].lang == "eng"


def test_the_share_is_that_of_the_judged_answers() -> None:
    samples = [{"lang": lang, "off_target": wrong} for lang, wrong in
               (("eng", 1.0), ("eng", 0.0), ("eng", None), ("eng", 0.0), ("eng", 0.0), ("fin", None))]
    assert rates(samples) == {"off_target_eng": 1 / 4, "off_target_eng_n": 4, "off_target_fin_n": 0}  # nothing judged: no share, no zero


# what is written


def test_the_log_agrees_with_the_samples(probed: Artifact) -> None:
    samples, log = read(probed.file("samples.jsonl")), [r for r in read(probed.file("log.jsonl")) if "off_target_eng_n" in r]
    assert [r["step"] for r in log] == [0, 4, 8, 12]
    assert len(samples) == 4 * 2 * 3 and {s["lang"] for s in samples} == {"eng", "fin"}
    asked = [[(s["id"], s["prompt"], s["lang"]) for s in samples if s["step"] == step] for step in (0, 4, 8, 12)]
    assert all(a == asked[0] for a in asked) and len(set(asked[0])) == 6  # the same questions every time
    for record in log:
        for lang in ("eng", "fin"):
            answers = [s["answer"] for s in samples if s["step"] == record["step"] and s["lang"] == lang]
            judged = [x for x in OffTarget().per_example(answers, [lang] * 3) if x is not None]
            assert record[f"off_target_{lang}_n"] == len(judged)
            assert record.get(f"off_target_{lang}") == (sum(judged) / len(judged) if judged else None)
    assert probed.receipt["facts"]["probe"] == {"eng": {"held out": 2, "training": 1}, "fin": {"held out": 2, "training": 1}}


def test_answers_are_the_models_own_and_their_language_is_told(tmp_path: Path) -> None:
    """After enough steps the model has learnt by heart to answer everything in Finnish: English answers are off target."""
    from xalign.backbones.load import load_backbone

    finnish = [e.with_(response=SENTENCES["fin"]) for e in rows() if e.subset in ("LL", "LT")]
    node = replace(PROBE, max_steps=60, epochs=99, eval_every=30, probe_tokens=64, valid_share=0.1)
    cache, stage, _ = chain(tmp_path, node, finnish)
    made = cache.get(stage)
    assert not [s for s in read(made.file("samples.jsonl")) if s["lang"] == "eng"]  # its own references are off target: not asked
    last = [s for s in read(made.file("samples.jsonl")) if s["step"] == 60]
    assert [s["answer"] for s in last] == [SENTENCES["fin"]] * 3 and {s["detected"] for s in last} == {"fin"}
    model = load_backbone(made.path, Tiny())
    assert [s["answer"] for s in last] == model.generate([s["prompt"] for s in last], 64)
    assert read(made.file("log.jsonl"))[-1] == {"step": 60, "off_target_fin": 0.0, "off_target_fin_n": 3}
    assert made.receipt["facts"]["course"].get("off_target_fin", [0, 0])[1] == 0
    from xalign.training.probe import Probe, Question

    crossed = [Question("q", "eng", tuple(model.encode_prompts(["Question 1?"])[0]), "Question 1?", True)]
    record, = Probe(model, crossed, 64)(model.model)
    assert record["off_target"] == 1 and record["detected"] == "fin"


# what it leaves alone


@pytest.mark.parametrize("changes", [{}, {"adapter": "lora", "lora_dropout": 0.3, "activation_checkpointing": True}, {"zero": 3},
                                     {"valid_share": 0.0}, {"packing": False, "attention": "eager"}], ids=str)
def test_training_is_the_same_to_the_bit(tmp_path: Path, probed: Artifact, changes: dict[str, Any]) -> None:
    plain = trained(tmp_path, replace(NODE, **changes))
    with_probe = trained(tmp_path, replace(PROBE, **changes)) if changes else probed
    assert with_probe.receipt["key"] != plain.receipt["key"] and not plain.file("samples.jsonl").exists()
    assert not [k for k in plain.receipt["params"]["trainer"] if k.startswith("probe")]  # keys from before there was a probe
    assert course_of(with_probe) == course_of(plain)
    assert with_probe.file("model.safetensors").read_bytes() == plain.file("model.safetensors").read_bytes()
    assert [r["step"] for r in read(with_probe.file("log.jsonl")) if "off_target_eng_n" in r] == [0, 4, 8, 12]
    if "zero" in changes:
        assert read(with_probe.file("samples.jsonl")) == read(probed.file("samples.jsonl"))


def test_a_killed_training_ends_with_the_same_samples(tmp_path: Path, probed: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, stage, _ = chain(tmp_path, replace(PROBE, checkpoint_every=1e-9))
    told: list[dict[str, Any]] = []

    def tell(record: dict[str, Any]) -> None:
        told.append(record)
        if len(told) == 14:  # in step 8's probe, after its samples: the checkpoint is of step 7
            assert "off_target_eng_n" in record and record["step"] == 8
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "on_log", tell)
    with pytest.raises(KeyboardInterrupt):
        cache.get(stage)
    assert cache.started(stage) and {r["stage"] for r in told} == {"train ce"}
    partial, = cache.folder(stage).parent.glob("*.partial")
    with open(partial / "samples.jsonl", "ab") as f:
        f.write(b'{"step": 4, "prompt": "{}\xc3')  # cut within a letter
    made = cache.get(stage)
    assert read(made.file("samples.jsonl")) == read(probed.file("samples.jsonl"))
    assert course_of(made) == course_of(probed)
    steps = [r["step"] for r in read(made.file("log.jsonl")) if "off_target_eng_n" in r]
    assert steps == [0, 4, 8, 12] and [r["step"] for r in told if "off_target_eng_n" in r] == [0, 4, 8, 8, 12]


TWO = """
import sys
from dataclasses import replace
from pathlib import Path
from xalign.training.stage import TrainJob
from test_probe import SHORT, Plain, Tiny
for zero in (1, 3):
    folder = Path(sys.argv[1]) / str(zero)
    node = replace(SHORT, zero=zero, micro_tokens=150)
    TrainJob(folder, Path(sys.argv[2]), Path(sys.argv[3]), Tiny(), Plain(), node, 0, None, 1.0, "t", ("eng", "fin")).run()
"""


def test_two_processes_ask_once(tmp_path: Path) -> None:
    cache, stage, _ = chain(tmp_path / "cache", SHORT)
    data, weights, alone = *(cache.get(s) for s in stage.inputs), read(cache.get(stage).file("samples.jsonl"))
    for zero in (1, 3):
        (tmp_path / str(zero)).mkdir()
    (tmp_path / "script.py").write_text(TWO, encoding="utf-8")
    done = torchrun(tmp_path / "script.py", str(tmp_path), str(weights.path), str(data.file("rows.jsonl")))
    assert done.returncode == 0, done.stderr[-3000:]
    for zero in (1, 3):
        assert read(tmp_path / str(zero) / "samples.jsonl") == alone


def test_an_encoder_is_refused_and_ranges_are_checked() -> None:
    causal, encoder = (SimpleNamespace(backbone=b) for b in (Tiny(), TinyEncoder()))
    PROBE.check_run(causal)
    NODE.check_run(encoder)
    with pytest.raises(ConfigError, match=r"^trainer\.probe_prompts=3: is for causal backbones; set trainer\.probe_prompts=0$"):
        PROBE.check_run(encoder)
    with pytest.raises(ConfigError, match="trainer.probe_tokens=0: must be at least 1"):
        replace(PROBE, probe_tokens=0).check("trainer")


# the run's log


def test_a_runs_log_holds_all_its_training_stages(tmp_path: Path) -> None:
    cache, first, second = chain(tmp_path / "cache", replace(PROBE, max_steps=4))
    plan = Plan(first.inputs[1], {}, {}, [], None, second)
    made = [cache.get(first), cache.get(second)]
    before = [m.file("log.jsonl").read_bytes() for m in made]
    run = tmp_path / "run"
    run.mkdir()
    os.link(made[1].file("log.jsonl"), run / "log.jsonl")  # as older versions left it
    export_logs(plan, cache, run)
    assert [m.file("log.jsonl").read_bytes() for m in made] == before
    log = read(run / "log.jsonl")
    assert log == list(training_records(plan, cache))
    assert log == [{**r, "stage": title} for m, title in zip(made, ("train ce", "again ce"), strict=True)
                   for r in read(m.file("log.jsonl"))]
    asked = [(s["stage"], s["step"]) for s in read(run / "samples.jsonl")]
    assert asked == [at for at in (("train ce", 0), ("train ce", 4), ("again ce", 0), ("again ce", 2)) for _ in range(6)]
    losses, counts = (series(SimpleNamespace(log=log), name) for name in ("loss", "off_target_fin_n"))
    assert [(title, [step for step, _ in points]) for title, points in losses] == [("train ce", [1, 2, 3, 4]), ("again ce", [1, 2])]
    assert losses[1][1] == [(r["step"], r["loss"]) for r in read(made[1].file("log.jsonl")) if "loss" in r]
    assert [[step for step, _ in points] for _, points in counts] == [[0, 4], [0, 2]]
    untitled = [{k: v for k, v in r.items() if k != "stage"} for r in log]
    assert [points for _, points in series(SimpleNamespace(log=untitled), "loss")] == [points for _, points in losses]
    assert series(SimpleNamespace(log=log), "no such number") == [("train ce", []), ("again ce", [])]
    assert series(SimpleNamespace(log=[]), "loss") == []
