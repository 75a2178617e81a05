"""ML-IPD: the rows of its three stages, the distillation loss by hand, soft prompts, and that the student comes closer.

At the end, that training reduces the loss of the methods whose loss is cross-entropy.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from xalign.backbones.load import load_backbone  # noqa: E402
from xalign.backbones.node import Tiny, TinyEncoder  # noqa: E402
from xalign.backbones.soft import FILE, SoftEmbedding, embedded  # noqa: E402
from xalign.backbones.tiny import make_tiny  # noqa: E402
from xalign.cache import Cache, Stage  # noqa: E402
from xalign.config import ConfigError  # noqa: E402
from xalign.data.choices import collate  # noqa: E402
from xalign.data.examples import Example, read_examples, write_jsonl  # noqa: E402
from xalign.data.prompts import Frame, language_text, soft_tokens  # noqa: E402
from xalign.methods.base import Method  # noqa: E402
from xalign.methods.ml_dft import MLDFT  # noqa: E402
from xalign.methods.ml_ipd import MLIPD, Distil, pivoted  # noqa: E402
from xalign.methods.pl_bl import PLBL  # noqa: E402
from xalign.methods.prompted import framed, pick  # noqa: E402
from xalign.methods.sdrrl import SDRRL  # noqa: E402
from xalign.methods.supervised import SFT  # noqa: E402
from xalign.training.losses import Aids, targets  # noqa: E402
from xalign.training.node import TrainerNode  # noqa: E402
from xalign.training.stage import tokenise, train_stage  # noqa: E402

PAIRS = [("Capital of Kenya?", "Kenian pääkaupunki?"), ("Capital of Peru?", "Perun pääkaupunki?"), ("Money of Japan?", "Japanin raha?")]
OPTIONS = [(("Nairobi", "Lima"), ("Nairobi (fi)", "Lima (fi)")), (("Lima", "Oslo"), ("Lima (fi)", "Oslo (fi)")),
           (("euro", "yen", "won"), ("euro (fi)", "jeni", "won (fi)"))]
GOLD = [0, 0, 1]
ENGLISH = [Example(f"q{i}", "eng", s, o[0][g], options=o[0]) for i, ((s, _), o, g) in enumerate(zip(PAIRS, OPTIONS, GOLD))]
FINNISH = [Example(f"q{i}", "fin", t, o[1][g], options=o[1]) for i, ((_, t), o, g) in enumerate(zip(PAIRS, OPTIONS, GOLD))]
NODE = TrainerNode(epochs=6, lr=5e-3, tokens_per_step=400, valid_share=0.0, checkpoint_every=0)
KINDS = {"causal": Tiny(width=32, vocab=600), "encoder": TinyEncoder(width=32, vocab=600)}


class Fakes(SimpleNamespace):
    """A run whose data are the three questions above."""

    def __init__(self, kind: str, **more: object) -> None:
        def stage(run: object, lang: str) -> Stage:
            rows = ENGLISH if lang == "eng" else FINNISH
            return Stage("questions", 1, {"lang": lang}, lambda f, _: {"n": write_jsonl(f / "examples.jsonl", rows)})

        data = SimpleNamespace(questions_stage=stage, multilingual=True, has_options=True)
        super().__init__(data=data, backbone=KINDS[kind], trainer=NODE, source="eng", target="fin", lang=("fin",), seed=0,
                         choices={}, **more)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


# rows


def test_frames() -> None:
    frame = Frame("text", "eng")
    assert frame("choice", "fin", "x?") == ("Task: answer the question with a name or a few words.\n"
                                            "Language: Finnish, Uralic, Latin script, spaces between words.\nx?")
    assert Frame("none")("term", "fin", "Suomi", ["country", "unit"]) == \
        "Task: classify the term into one of the categories: country, unit.\nSuomi"
    soft = Frame("soft", "eng", 3)
    assert soft("choice", "fin", "x?").split("\n")[1] == "<lp_fin_0><lp_fin_1><lp_fin_2>"
    assert soft("choice", "eng", "x?").split("\n")[1] == language_text("eng")
    assert "Japanese, Japonic, Japanese script, no spaces between words" in language_text("jpn")


def test_the_rows_of_the_three_stages(cache: Cache) -> None:
    run, method, frame = Fakes("encoder"), MLIPD(labelled=2), Frame("text", "eng")
    eim, distil, tune = (read_examples(cache.get(s).file("rows.jsonl")) for s in method.training_rows(run))
    assert [(e.id, e.lang, e.prompt, e.response) for e in eim] == [
        (f"q{i}/source/eng", "eng", frame("choice", "eng", s), e.response) for i, ((s, _), e) in enumerate(zip(PAIRS, ENGLISH))]
    assert [(e.prompt, e.pivot, e.response, e.options, e.pivot_options) for e in distil] == [
        (frame("choice", "fin", t), frame("choice", "eng", s), o[1][g], o[1], o[0]) for (s, t), o, g in zip(PAIRS, OPTIONS, GOLD)]
    assert len(tune) == 2 and all(e.lang == "fin" and not e.pivot and e.subset == "target" for e in tune)
    assert [e.id for e in tune] == [f"{e.id}/target/fin" for e in pick(FINNISH, 2, 0)]
    assert [e.id for e in pick(FINNISH, 2, 0)] == [e.id for e in pick(ENGLISH, 2, 0)]


def test_a_causal_pair_is_forced_with_the_source_answer() -> None:
    rows = pivoted(FINNISH, ENGLISH[:2], choose=False)
    assert [(e.prompt, e.pivot, e.response) for e in rows] == [
        ("Kenian pääkaupunki?", "Capital of Kenya?", "Nairobi"), ("Perun pääkaupunki?", "Capital of Peru?", "Lima")]


def test_eim_is_shared_and_knows_no_target_language() -> None:
    run, jpn = Fakes("encoder"), Fakes("encoder")
    jpn.lang = ("jpn",)
    key = MLIPD().eim_stage(run).key
    assert key in {s.key for s in MLIPD().model_stage(run).all()} and key in {s.key for s in PLBL().model_stage(run).all()}
    assert key == PLBL().eim_stage(jpn).key == MLIPD(language_prompt="soft").eim_stage(run).key
    assert key != MLIPD(language_prompt="none").eim_stage(run).key
    # PL-BL is ML-IPD without stage 2: its last stage has the same rows and rate
    a, b = MLIPD().model_stage(run), PLBL().model_stage(run)
    assert a.inputs[0].key == b.inputs[0].key and a.params == b.params and a.inputs[1].key != b.inputs[1].key == key


# loss


def loaded(kind: str, folder: Path, train: bool) -> object:
    backbone = load_backbone(folder, KINDS[kind], train=train)
    backbone.model.eval()
    return backbone


@pytest.fixture(params=["causal", "encoder"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple:
    """(kind, student, teacher with other weights, rows)."""
    kind = request.param
    if kind == "causal":
        make_tiny(tmp_path, 32, 2, 600, 0)
    else:
        from xalign.backbones.tiny import make_tiny_encoder

        make_tiny_encoder(tmp_path, width=32, layers=2, vocab=600, seed=0)
    student, teacher = loaded(kind, tmp_path, True), loaded(kind, tmp_path, False)
    torch.manual_seed(3)
    for p in teacher.model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    student.model.aids = Aids(student, teacher)
    rows, dropped = tokenise(framed(pivoted(FINNISH, ENGLISH, kind == "encoder"), Frame()), student, 512)
    assert len(rows) == 3, dropped
    return kind, student, teacher, rows


@pytest.mark.parametrize("output", ["logits", "probs", "hidden"])
def test_the_loss_is_half_the_mean_squared_errors_from_both_languages(pair: tuple, output: str) -> None:
    kind, student, teacher, rows = pair
    batch = collate(rows, packing=False)
    got = Distil(output).loss(student.model, batch)
    got.sum.backward()
    assert all(p.grad is None for p in teacher.model.parameters())

    def outputs(backbone: object, row: object) -> torch.Tensor:
        found = targets(backbone.model, collate([row], packing=False), states=True)
        return {"logits": found.logits, "probs": found.logits.softmax(-1), "hidden": found.states}[output]

    total = target = 0.0
    with torch.no_grad():
        for row in rows:  # one row at a time, so that no option is missing
            right, other, same = outputs(teacher, row.twin), outputs(student, row), outputs(student, row.twin)
            target += ((right - other) ** 2).mean(-1).sum().item()
            total += 0.5 * (((right - other) ** 2).mean(-1) + ((right - same) ** 2).mean(-1)).sum().item()
    assert got.sum.item() == pytest.approx(total, rel=1e-4)
    assert got.logs["mse_target"].item() == pytest.approx(target, rel=1e-4)
    assert got.count.item() == sum(r.targets for r in rows)
    if kind == "causal":
        from xalign.training.attention import use_packed

        use_packed(student.model, rows)
        use_packed(teacher.model, rows)
        assert Distil(output).loss(student.model, collate(rows, packing=True)).sum.item() == pytest.approx(total, rel=1e-3)


def test_a_copied_student_differs_only_where_the_language_does(pair: tuple) -> None:
    _, student, _, rows = pair
    student.model.aids = Aids(student, student)
    logs = Distil().loss(student.model, collate(rows, packing=False)).logs
    assert logs["mse_source"].item() == 0 and logs["mse_target"].item() > 0
    same = [replace(r, twin=replace(r, twin=None)) for r in rows]  # METHODS: the same input gives a copied student no loss
    assert Distil().loss(student.model, collate(same, packing=False)).sum.item() == 0


# soft prompts


def test_soft_tokens_start_as_the_text_and_alone_are_trained(pair: tuple, tmp_path: Path) -> None:
    kind, student, *_ = pair
    node, k = KINDS[kind], 7
    Distil(train="soft_prompt", languages=("fin", "jpn"), soft=k).extend(student)
    soft = embedded(student.model).get_input_embeddings()
    ids = student.tokenizer("".join(soft_tokens("fin", k)), add_special_tokens=False).input_ids
    text = student.tokenizer(language_text("fin"), add_special_tokens=False).input_ids
    assert ids == list(range(soft.first, soft.first + k))
    assert torch.equal(soft(torch.tensor(ids)), soft.base.weight[[text[i % len(text)] for i in range(k)]])
    assert [n for n, p in student.model.named_parameters() if p.requires_grad] == [
        n for n, _ in student.model.named_parameters() if n.endswith(".vectors")]
    soft.vectors.data.normal_()
    student.save(tmp_path / "saved")
    again = load_backbone(tmp_path / "saved", node)
    found = embedded(again.model).get_input_embeddings()
    assert isinstance(found, SoftEmbedding) and torch.equal(found.vectors, soft.vectors) and (tmp_path / "saved" / FILE).is_file()
    assert again.tokenizer("".join(soft_tokens("fin", k)), add_special_tokens=False).input_ids == ids


def test_without_soft_tokens_nothing_can_be_trained() -> None:
    with pytest.raises(ConfigError, match="method.train=soft_prompt: there are no soft tokens with method.language_prompt=text"):
        MLIPD(train="soft_prompt").check_run(Fakes("encoder"))


# stages


@pytest.mark.parametrize("kind", ["causal", "encoder"])
@pytest.mark.parametrize("options", [{}, {"language_prompt": "soft", "soft_tokens": 4, "train": "soft_prompt", "distil_lr": 100.0}])
def test_the_student_ends_closer_to_its_teacher(cache: Cache, kind: str, options: dict) -> None:
    run, method = Fakes(kind), MLIPD(distil_epochs=30, **options)
    final = method.model_stage(run)
    made = cache.get(final)
    student, teacher = final.inputs[1], method.eim_stage(run)
    assert student.inputs[1].key == student.inputs[2].key == teacher.key
    start, end = cache.get(student).receipt["facts"]["course"]["mse_target"]
    assert end < (0.99 if options else 0.8) * start, (start, end)  # four vectors can do little in a random model
    model = load_backbone(made.path, run.backbone)
    assert isinstance(embedded(model.model).get_input_embeddings(), SoftEmbedding) == bool(options)
    if options:  # the distilled student is E-IM but for the vectors
        a, b = (load_backbone(cache.get(s).path, run.backbone).model for s in (teacher, student))
        before, after = dict(a.named_parameters()), dict(b.named_parameters())
        changed = [n for n, p in after.items() if n.replace(".base.", ".") not in before or
                   not torch.equal(p, before[n.replace(".base.", ".")])]
        assert changed and all(n.endswith(".vectors") for n in changed)


@pytest.mark.parametrize("method, kind", [(SFT(), "causal"), (SFT(), "encoder"), (MLDFT(), "causal"), (MLDFT(lr=0.1), "encoder"),
                                          (MLDFT(optimizer="adamw"), "encoder"), (PLBL(), "causal"), (PLBL(), "encoder")])
def test_cross_entropy_falls(cache: Cache, method: Method, kind: str) -> None:
    run = Fakes(kind)
    run.trainer = replace(NODE, epochs=30)
    start, end = cache.get(method.model_stage(run)).receipt["facts"]["course"]["loss"]
    assert end < 0.9 * start, (start, end)


@pytest.mark.parametrize("weighting", ["pooled", "subset_mean"])
def test_sdrrls_loss_falls_under_both_weightings(cache: Cache, weighting: str) -> None:
    run = Fakes("causal")
    run.trainer = replace(NODE, epochs=30)
    rows = [*(e.with_(subset="LL") for e in ENGLISH), *(e.with_(id=f"{e.id}/TT", subset="TT") for e in FINNISH)]
    stage = Stage("rows", 1, {"sdrrl": "by hand"}, lambda f, _: {"n": write_jsonl(f / "rows.jsonl", rows)})
    method = SDRRL(loss_weighting=weighting)
    start, end = cache.get(train_stage(run, method, stage, run.backbone.weights(run))).receipt["facts"]["course"]["loss"]
    assert end < 0.9 * start, (start, end)
