"""RL-IA: its loss term by term, what is drawn and how often, rewards, and a reward that rises."""
from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch")

from xalign.backbones.load import load_backbone  # noqa: E402
from xalign.backbones.node import Tiny, TinyEncoder  # noqa: E402
from xalign.backbones.tiny import make_tiny, make_tiny_encoder  # noqa: E402
from xalign.cache import Cache, Stage  # noqa: E402
from xalign.config import ConfigError, build  # noqa: E402
from xalign.data.choices import collate, gather  # noqa: E402
from xalign.data.examples import Example, write_jsonl  # noqa: E402
from xalign.data.packing import Row  # noqa: E402
from xalign.methods.rl_ia import RLIA  # noqa: E402
from xalign.training import rollouts  # noqa: E402
from xalign.training.attention import use_packed  # noqa: E402
from xalign.training.losses import Aids, Targets  # noqa: E402
from xalign.training.node import TrainerNode  # noqa: E402
from xalign.training.rollouts import choose, reward, sample, uniforms  # noqa: E402

CONF = Path(__file__).parents[1] / "conf" / "method"
SIZE = {"width": 32, "layers": 1, "vocab": 400}
KINDS = {"encoder": (TinyEncoder(**SIZE), make_tiny_encoder), "causal": (Tiny(**SIZE), make_tiny)}
CITIES = ("Nairobi", "Lima", "Paris")
TRAINER = TrainerNode(epochs=2, lr=3e-3, tokens_per_step=200, patience=0, valid_share=0, checkpoint_every=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models of both kinds."""
    made = {}
    for kind, (_, make) in KINDS.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        make(made[kind], **SIZE, seed=0)
    return made


def opened(folders: dict[str, Path], kind: str, method: RLIA) -> Any:
    """A backbone as the trainer gets it: critic attached, teacher beside it, student away from the teacher."""
    torch.manual_seed(1)
    backbone = load_backbone(folders[kind], KINDS[kind][0], train=True)
    method.extend(backbone)
    with torch.no_grad():
        for name, p in backbone.model.named_parameters():
            p += 0.1 * torch.randn_like(p) if not name.startswith("value") else 0.3 * torch.randn_like(p)
    backbone.model.aids = Aids(backbone, load_backbone(folders[kind], KINDS[kind][0]))
    return backbone


def examples(n: int = 6) -> list[Example]:
    """Questions of different length; every third has two options only."""
    return [Example(f"e{i}", "fin", "Kenia " * (i % 4 + 1) + "?", CITIES[i % 2], options=CITIES[:2 + (i % 3 > 0)], subset="target")
            for i in range(n)]


# the loss


@pytest.mark.parametrize("only", ["policy", "value_coef", "entropy", "kl"])
def test_each_term_by_arithmetic(only: str) -> None:
    low = torch.finfo(torch.float32).min
    z, ref = [[1.0, 0.0], [0.5, 2.0, -1.0]], [[0.0, 0.5], [1.0, 1.0, 1.0]]
    logits = torch.tensor([[*z[0], low], z[1]], requires_grad=True)  # the first row has two options
    value = torch.tensor([0.25, 0.5], requires_grad=True)
    drawn, worth, weights = [0, 2], [1.0, 0.0], [1.0, 2.0]
    found = Targets(logits, torch.tensor([0, 1]), torch.tensor(weights), torch.tensor([0, 1]))
    method = RLIA(**{k: 0.7 if k == only else 0.0 for k in ("value_coef", "entropy", "kl")})
    total, count, logs = method.actor_critic(found, torch.tensor(drawn), torch.tensor(worth), value,
                                             torch.tensor([[*ref[0], low], ref[1]]))
    expected = Counter[str]()
    for own, other, a, r, v, w in zip(z, ref, drawn, worth, (0.25, 0.5), weights, strict=True):
        p, q = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (own, other))
        expected["policy"] += w * -(r - v) * math.log(p[a])
        expected["value_coef"] += w * (r - v) ** 2
        expected["entropy"] += w * sum(x * math.log(x) for x in p)  # minus H
        expected["kl"] += w * sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    assert total.item() == pytest.approx(expected["policy"] + (0.7 * expected[only] if only != "policy" else 0), rel=1e-5)
    assert count == 2
    assert {k: v.item() for k, v in logs.items()} == pytest.approx(
        {"reward": 1.0, "value": 0.25 + 2 * 0.5, "entropy": -expected["entropy"], "kl": expected["kl"]}, rel=1e-5)
    total.backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 2] == 0  # the missing option takes no part
    wanted = [-2 * 0.7 * w * (r - v) if only == "value_coef" else 0 for r, v, w in zip(worth, (0.25, 0.5), weights, strict=True)]
    assert value.grad is None and not any(wanted) or value.grad.tolist() == pytest.approx(wanted)  # no gradient through A


def test_an_encoder_draws_an_option(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    method = RLIA()
    backbone = opened(folders, "encoder", method)
    model, teacher = backbone.model, backbone.model.aids.teacher.model
    rows = [backbone.row(e) for e in examples()]
    rows[3] = rows[3].unlabelled()
    draws = [0.05, 0.35, 0.65, 0.95, 0.5]
    monkeypatch.setattr(rollouts, "uniforms", lambda rows, n: torch.tensor(draws[:len(rows)], dtype=torch.float64)[:, None])
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    out = method.loss(model, gather(rows))
    out.sum.backward()
    expected, rewards = 0.0, 0
    with torch.no_grad():
        for row, u in zip([r for r in rows if r.gold >= 0], draws, strict=True):
            z, vector = model(gather([row]), vectors=True)
            p, q = z[0].softmax(0).tolist(), teacher(gather([row]))[0].softmax(0).tolist()
            a = next(k for k in range(len(p)) if sum(p[:k + 1]) > u)
            r, v = float(a == row.gold), model.value(vector).item()
            rewards += r
            expected += -(r - v) * math.log(p[a]) + 0.5 * (r - v) ** 2
            expected += 0.01 * sum(x * math.log(x) for x in p) + 0.05 * sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    assert out.sum.item() == pytest.approx(expected, rel=1e-4)
    assert out.count == 5 and out.logs["reward"].item() == rewards and 0 < rewards < 5
    assert all(p.grad.isfinite().all() for p in model.parameters()) and model.value.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


@pytest.mark.parametrize("packing", [True, False])
def test_a_causal_model_draws_an_answer(folders: dict[str, Path], packing: bool) -> None:
    method = RLIA(max_new_tokens=5)
    backbone = opened(folders, "causal", method)
    model, teacher, tokenizer = backbone.model, backbone.model.aids.teacher.model, backbone.tokenizer
    rows = [backbone.row(e) for e in examples()]
    rows = [replace(r, weight=w) for r, w in zip(rows, method.row_weights(rows), strict=True)]
    if packing:
        use_packed(model, rows)
        use_packed(teacher, rows)
    out = method.loss(model, collate(rows, packing))
    out.sum.backward()
    expected, logs = 0.0, Counter[str]()
    with torch.no_grad():
        for row, draws in zip(rows, uniforms(rows, 5).tolist(), strict=True):
            (answer,) = sample(model, [row.ids[:row.n_prompt]], 5, backbone.stop, torch.tensor([draws]))
            assert 1 <= len(answer) <= 5 and all(t not in backbone.stop for t in answer[:-1])
            texts = [tokenizer.decode(list(x), skip_special_tokens=True) for x in (answer, row.ids[row.n_prompt:])]
            r = reward("chrf", *texts)
            ids = torch.tensor([[*row.ids[:row.n_prompt], *answer]])
            got = model(input_ids=ids, output_hidden_states=True)
            at = slice(row.n_prompt - 1, -1)
            logp, logq = got.logits[0, at].log_softmax(-1), teacher(input_ids=ids).logits[0, at].log_softmax(-1)
            v = model.value(got.hidden_states[-1][0, at])[:, 0]
            h, kl = -(logp.exp() * logp).sum(-1), (logp.exp() * (logp - logq)).sum(-1)
            chosen = logp[range(len(answer)), answer]
            terms = -(r - v) * chosen + 0.5 * (r - v) ** 2 - 0.01 * h + 0.05 * kl
            expected += terms.mean().item()  # mean over the row's tokens
            for name, x in {"reward": r, "value": v.mean(), "entropy": h.mean(), "kl": kl.mean()}.items():
                logs[name] += float(x)
    targets = sum(r.targets for r in rows)  # what the trainer divides by
    assert out.sum.item() / targets == pytest.approx(expected / len(rows), rel=1e-3)
    assert {k: v.item() / targets for k, v in out.logs.items()} == pytest.approx({k: v / len(rows) for k, v in logs.items()}, rel=1e-3)
    assert model.training and model.value.weight.grad.abs().max() > 0 and all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_rows_takes_part_with_a_zero_gradient(folders: dict[str, Path], kind: str) -> None:
    backbone = opened(folders, kind, RLIA())
    out = RLIA().loss(backbone.model, collate([backbone.row(examples()[0]).unlabelled()], False))
    out.sum.backward()
    assert out.sum == 0 and backbone.model.value.weight.grad.abs().max() == 0


def test_rows_count_alike_however_long_their_gold_answer() -> None:
    rows = [Row("a", (0,) * 5, 2), Row("b", (0,) * 11, 1), Row("c", (0,) * 4, 3, weight=2)]  # 3, 10 and 1 targets
    weights = RLIA().row_weights(rows)
    assert [w * r.targets for w, r in zip(weights, rows, strict=True)] == pytest.approx([14 / 3, 14 / 3, 28 / 3])
    choices = [Row("a", (0,) * 9, 3, parts=(3, 3, 3), gold=1)] * 4
    assert RLIA().row_weights(choices) == [1.0] * 4


# drawing


def test_numbers_depend_on_seed_and_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(f"r{i}", (0,), 1) for i in range(4)]
    torch.manual_seed(7)
    all_, two = uniforms(rows, 3), uniforms([rows[2], rows[0]], 3)
    assert torch.equal(all_[[2, 0]], two) and len(set(all_.flatten().tolist())) == 12
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rank in (0, 1):
        torch.manual_seed(7 * 2 + rank)  # as the trainer seeds two processes
        assert torch.equal(uniforms(rows, 3), all_)
    torch.manual_seed(8 * 2)
    assert not torch.equal(uniforms(rows, 3), all_)
    assert uniforms([], 3).shape == (0, 3)


def test_options_are_drawn_as_often_as_the_policy_says() -> None:
    n, p = 4000, [0.7, 0.2, 0.1]
    logits = torch.tensor([[*map(math.log, p), torch.finfo(torch.float32).min]]).expand(n, -1)
    drawn = Counter(choose(logits, uniforms([Row(f"r{i}", (0,), 1) for i in range(n)], 1)[:, 0]).tolist())
    for k, share in enumerate(p):
        assert abs(drawn[k] - n * share) < 4 * math.sqrt(n * share * (1 - share))
    assert drawn[3] == 0
    assert choose(logits[:3], torch.tensor([0.0, 0.69, 0.9999])).tolist() == [0, 0, 2]


class Coin(torch.nn.Module):
    """Token 1 with probability 0.25, else the stop token 0, whatever it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([math.log(0.75), math.log(0.25)]))

    def forward(self, input_ids: Any, **inputs: Any) -> Any:
        assert not self.training
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def test_answers_are_drawn_as_often_as_the_model_says() -> None:
    torch.manual_seed(3)
    n, model = 4000, Coin()
    answers = Counter(map(tuple, sample(model, [[1]] * n, 3, {0})))
    shares = {(0,): 0.75, (1, 0): 0.25 * 0.75, (1, 1, 0): 0.25 ** 2 * 0.75, (1, 1, 1): 0.25 ** 3}
    assert set(answers) == set(shares) and model.training
    for answer, share in shares.items():
        assert abs(answers[answer] - n * share) < 4 * math.sqrt(n * share * (1 - share))
    torch.manual_seed(3)
    assert Counter(map(tuple, sample(model, [[1]] * n, 3, {0}))) == answers


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_of_prompts_draws_what_each_would_alone(folders: dict[str, Path], packed: bool) -> None:
    backbone = opened(folders, "causal", RLIA())
    model, rows = backbone.model, [backbone.row(e) for e in examples()]
    if packed:  # then transformers drops a two-dimensional mask
        use_packed(model, rows)
        model.gradient_checkpointing_enable()
    prompts, draws = [list(r.ids[:r.n_prompt]) for r in rows], uniforms(rows, 6)
    together = sample(model, prompts, 6, backbone.stop, draws)
    model.eval()
    for prompt, own, answer in zip(prompts, draws, together, strict=True):
        ids = list(prompt)
        for u in own.tolist():  # without batch, padding or cache
            with torch.no_grad():
                mass = model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1).cumsum(-1)
            ids.append(int((mass > u * mass[-1]).nonzero()[0]))
            if ids[-1] in backbone.stop:
                break
        assert ids[len(prompt):] == answer
    assert len({tuple(a) for a in together}) == len(together)


def test_rewards() -> None:
    assert [reward("exact", *pair) for pair in ((" lima\n", "Lima"), ("Lima.", "Lima"), ("", "Lima"))] == [1, 0, 0]
    assert reward("chrf", "Lima", " Lima ") == 1 and reward("chrf", "", "Lima") == reward("chrf", "xyz", "Lima") == 0
    # "Lima" for "Limassol": precision 1 for every n from 1 to 4, recall 4/8, 3/7, 2/6, 1/5; chrF takes their means over n
    # and an F with beta 2; orders beyond the four letters do not count
    precision, recall = 1.0, (4 / 8 + 3 / 7 + 2 / 6 + 1 / 5) / 4
    import sacrebleu

    expected = 5 * precision * recall / (4 * precision + recall)
    assert reward("chrf", "Lima", "Limassol") == pytest.approx(expected, abs=1e-6)
    assert reward("chrf", "Liman", "Lima on") == pytest.approx(sacrebleu.sentence_chrf("Liman", ["Lima on"]).score / 100)


# training


class Hand:
    """Hand-made data in two languages, and the run around it.

    English teaches both answers alike, Finnish asks for one of them by its question.
    """

    multilingual = has_options = True
    choices = {"backbone": "tiny"}
    source, lang, seed = "eng", ("fin",), 0

    def __init__(self, kind: str, method: RLIA, folder: Path, trainer: TrainerNode, rows: dict[str, list[Example]]) -> None:
        self.data, self.backbone, self.method, self.trainer, self.made = self, KINDS[kind][0], method, trainer, rows
        self.cache = Cache(folder)

    def questions_stage(self, run: Any, lang: str) -> Stage:
        rows = self.made[lang]
        return Stage("questions", 1, {"rows": [dataclasses.asdict(r) for r in rows]},
                     lambda folder, _: {"n": write_jsonl(folder / "examples.jsonl", rows)})


def hand_made(answers: dict[str, list[str]], n: int) -> dict[str, list[Example]]:
    """Questions about two places in turn; each language's answers in turn."""
    return {lang: [Example(f"{i}", lang, ("Kenia ", "Peru ")[i % 2] * 4 + f"{i // 2}?", own[i % len(own)], source="lab:capital",
                           options=CITIES[:2]) for i in range(n)] for lang, own in answers.items()}


def trained(kind: str, method: RLIA, folder: Path, trainer: TrainerNode, answers: dict[str, list[str]], n: int) -> tuple[dict, set[str]]:
    """Run the whole stage; its facts, and the names of the weights that it saved."""
    from safetensors.torch import load_file

    run = Hand(kind, method, folder, trainer, hand_made(answers, n))
    artifact = run.cache.get(method.model_stage(run))
    assert not artifact.file("checkpoints").exists()
    return artifact.receipt["facts"], {k for f in artifact.path.glob("*.safetensors") for k in load_file(f)}


def test_the_reward_of_an_encoder_rises(tmp_path: Path) -> None:
    # E-IM learns nothing about the places; the reward asks for one answer a place
    answers = {"eng": ["Nairobi", "Lima", "Lima", "Nairobi"], "fin": ["Lima", "Nairobi"]}
    facts, saved = trained("encoder", RLIA(epochs=60, rl_lr=1.0), tmp_path, replace(TRAINER, tokens_per_step=1000), answers, 24)
    assert set(facts["course"]) == {"loss", "reward", "value", "entropy", "kl"}
    (start, end), value = facts["course"]["reward"], facts["course"]["value"]
    assert start < 0.7 and end > 0.95
    assert value[0] < start and value[1] == pytest.approx(end, abs=0.1)  # the critic starts at 0 and learns to expect it
    assert facts["train_rows"] == 24 and facts["valid_rows"] == 0
    assert {"embeddings.word_embeddings.weight", "weight"} <= saved and not [k for k in saved if k.startswith("value")]


def test_the_reward_of_a_causal_model_rises(tmp_path: Path) -> None:
    # E-IM learns to answer with either city; the reward asks for one of them
    facts, saved = trained("causal", RLIA(epochs=12, rl_lr=1.0, max_new_tokens=6, reward="exact"), tmp_path,
                           replace(TRAINER, epochs=40, tokens_per_step=400), {"eng": ["Nairobi", "Lima"], "fin": ["Lima"]}, 16)
    start, end = facts["course"]["reward"]
    assert start < 0.8 and end > 0.9
    assert "model.embed_tokens.weight" in saved and not [k for k in saved if k.startswith("value")]


@pytest.mark.parametrize("kind", KINDS)
def test_trajectory_does_not_depend_on_micro_batches_or_zero(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    from safetensors.torch import load_file

    from xalign.training.trainer import Trainer

    method, curves = RLIA(max_new_tokens=4), {}
    for name, changes in {"whole": {}, "micro": {"micro_tokens": 60}, "zero2": {"zero": 2},
                          **({"zero3": {"zero": 3}} if kind == "encoder" else {"padded": {"packing": False}})}.items():
        backbone = opened(folders, kind, method)
        torch.nn.init.zeros_(backbone.model.value.weight)
        rows = [backbone.row(e) for e in examples(12)]
        rows = [replace(r, weight=w) for r, w in zip(rows, method.row_weights(rows), strict=True)]
        Trainer(backbone.model, method, replace(TRAINER, lr=1e-3, **changes), rows, [], tmp_path / name, 0).fit()
        log = [json.loads(x) for x in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        curves[name] = [r[k] for r in log for k in ("loss", "reward", "entropy", "kl", "value")]
        best = load_file(tmp_path / name / "checkpoints" / "best.safetensors")
        assert best["value.weight"].abs().max() > 0  # the critic is trained
    for name, curve in curves.items():
        assert curve == pytest.approx(curves["whole"], rel=1e-3, abs=1e-5), name


def test_the_stage_starts_from_e_im_and_compares_with_it(tmp_path: Path) -> None:
    made = hand_made({"eng": ["Nairobi", "Lima"], "fin": ["Lima"]}, 4)
    run = Hand("encoder", RLIA(epochs=5), tmp_path, replace(TRAINER, valid_share=0.05, patience=4), made)
    stage = run.method.model_stage(run)
    assert [s.name for s in stage.inputs] == ["rows", "e_im", "e_im"] and stage.inputs[1].key == run.method.eim_stage(run).key
    assert stage.inputs[0].key == run.method.rows(run).key and stage.params["lr_factor"] == 0.5
    assert {k: stage.params["trainer"][k] for k in ("epochs", "valid_share", "patience")} == {"epochs": 5, "valid_share": 0, "patience": 0}
    assert [s.key for s in run.method.training_rows(run)] == [run.method.eim_rows(run).key, run.method.rows(run).key]
    for change in ({"kl": 0.1}, {"entropy": 0.0}, {"value_coef": 1.0}, {"reward": "exact"}, {"max_new_tokens": 9}, {"rl_lr": 0.4}):
        assert replace(run.method, **change).model_stage(run).key != stage.key, change


# bad input


def test_what_cannot_sample_is_refused(tmp_path: Path) -> None:
    made = hand_made({"eng": ["Lima"], "fin": ["Lima"]}, 2)
    with pytest.raises(ConfigError, match="trainer.zero=3: method rl_ia draws answers .*; set trainer.zero=2"):
        RLIA().check_run(Hand("causal", RLIA(), tmp_path, replace(TRAINER, zero=3), made))
    with pytest.raises(ConfigError, match=r"method.max_new_tokens=1700: after a row of trainer.max_length=512 it exceeds .*=2048"):
        RLIA(max_new_tokens=1700).check_run(Hand("causal", RLIA(), tmp_path, TRAINER, made))
    RLIA().check_run(Hand("encoder", RLIA(), tmp_path, replace(TRAINER, zero=3), made))


@pytest.mark.parametrize(("change", "message"), [
    ({"reward": "bleu"}, "method.reward=bleu: must be one of chrf, exact"),
    ({"rl_lr": 0.0}, r"method.rl_lr=0.0: must be in \(0, 10\]"),
    ({"kl": -1.0}, "method.kl=-1.0: must be at least 0"),
    ({"epoch": 2}, "method.epoch: unknown key; did you mean 'epochs'"),
])
def test_bad_values(change: dict, message: str) -> None:
    values = yaml.safe_load((CONF / "rl_ia.yaml").read_text(encoding="utf-8"))
    assert build(values, "method") == RLIA()  # the YAML lists the defaults
    with pytest.raises(ConfigError, match=message):
        build({**values, **change}, "method")
