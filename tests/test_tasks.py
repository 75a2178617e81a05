"""The evaluation stage on random backbones: what it writes, its baselines by arithmetic, prompts, resuming, bad files."""
from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from xalign.backbones.causal import OptionScore
from xalign.backbones.node import Tiny, TinyEncoder
from xalign.cache import Artifact, Cache, Stage
from xalign.config import ConfigError, XalignError, build
from xalign.data.examples import read_jsonl
from xalign.metrics.node import Metrics
from xalign.metrics.statistics import value_of
from xalign.tasks.base import Evaluation, Journal, Request, generate_all
from xalign.tasks.belebele import BelebeleTask, read_questions
from xalign.tasks.evaluate import evaluation, per_example
from xalign.tasks.lab import LabTask
from xalign.tasks.ranking import Question, add_majority, add_ranking, rank_options

SHARED = Path(__file__).parents[1].parent / "shared"
SMALL = {"choice_items": 12, "open_items": 8, "phrases": 4, "sentences": 3, "max_new_tokens": 5, "shots": 1}


def make_run(task, lang: str = "fin", source: str = "eng", seed: int = 0, backbone=Tiny()) -> SimpleNamespace:  # noqa: B008
    return SimpleNamespace(tasks=(task,), backbone=backbone, lang=(lang,), target=lang, source=source, seed=seed, metric=Metrics(),
                           evaluated=(lang, source))


def scores_stage(run: SimpleNamespace, lang: str, baselines: bool) -> Stage:
    return evaluation(run, run.backbone.weights(run), run.tasks[0], lang, baselines)


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty translated sentences in place of the Home Assistant artifact."""
    def work(folder: Path, inputs: list[Artifact]) -> None:
        for lang, text in {"eng": "The lamp number {} is on now", "fin": "Lamppu numero {} on nyt päällä", "khm": ""}.items():
            texts = {f"k{i}": text.format(i) for i in range(40)} if text else {}
            (folder / f"{lang}.json").write_text(json.dumps(texts), encoding="utf-8")

    monkeypatch.setattr("xalign.assets.home_assistant_stage", lambda: Stage("corpus", 1, {}, work))


def table(artifact: Artifact) -> dict[tuple[str, str, str], dict]:
    return {(r["task"], r["metric"], r["name"]): r for r in read_jsonl(artifact.file("scores.jsonl"))}


def test_the_lab_s_scores_come_with_error_n_signature_and_baselines(cache, corpus):
    run = make_run(LabTask(**SMALL))
    stage = scores_stage(run, "fin", baselines=True)
    artifact, predictions = Cache(cache).get(stage), Cache(cache).get(stage.inputs[0])
    scores = table(artifact)
    names = {"choice": {"model", "chance", "majority", "1-shot"}, "open": {"model", "majority", "copy"},
             "phrases:eng-fin": {"model", "copy"}, "phrases:fin-eng": {"model", "copy"}, "sentences:eng-fin": {"model", "copy"},
             "sentences:fin-eng": {"model", "copy"}, "all": {"model", "reference"}}
    assert {task: {n for t, _, n in scores if t == task} for task in names} == names
    metrics = {m for t, m, n in scores if t == "choice" and n == "model"}
    assert {"accuracy_raw", "accuracy_pmi", "mrr_raw", "mrr_pmi", "accuracy_differs_pmi", "accuracy_pmi.capital"} <= metrics
    assert {m for t, m, n in scores if t == "open"} == {"em", "em_cased", "f1", "containment"}
    assert all(s["signature"] and s["n"] >= 1 for s in scores.values() if s["value"] is not None)
    assert all(s["reason"] for s in scores.values() if s["value"] is None)
    assert scores["choice", "accuracy_raw", "chance"]["value"] == 0.25

    records = list(read_jsonl(predictions.file("predictions.choice.jsonl")))
    assert len(records) == 12 == scores["choice", "accuracy_pmi", "model"]["n"]
    values = per_example(artifact)["choice", "accuracy_pmi"]
    for r in records:  # PMI ranks by the option's log-likelihood minus that under the neutral question
        pmi = [a - b for a, b in zip(r["logp"], r["neutral"], strict=True)]
        assert float(max(range(4), key=pmi.__getitem__) == r["gold"]) == values[r["id"]][0]
        assert values[r["id"]][1] == r["cluster"]
    assert scores["choice", "accuracy_pmi", "model"]["value"] == pytest.approx(sum(v for v, _ in values.values()) / 12)
    assert {m for t, m, n in scores if t == "phrases:eng-fin"} == {"bleu", "chrf", "chrf++"}
    # a corpus metric's examples carry the statistics that it is made of
    chrf = per_example(artifact)["phrases:eng-fin", "chrf"]
    sums = [sum(column) for column in zip(*(statistics for _, _, statistics in chrf.values()), strict=True)]
    assert value_of("chrf", sums) == pytest.approx(scores["phrases:eng-fin", "chrf", "model"]["value"])
    copied = list(read_jsonl(predictions.file("predictions.open.jsonl")))
    same = sum(r["text"].casefold() in [a.casefold() for a in r["references"]] for r in copied)
    assert scores["open", "em", "copy"]["value"] == pytest.approx(same / len(copied))


def test_the_source_language_has_no_translation_and_is_shared_between_targets(cache, corpus):
    task = LabTask(**SMALL)
    stages = []
    for lang in ("fin", "jpn"):
        stages.append(scores_stage(make_run(task, lang), "eng", baselines=False))
    assert stages[0].key == stages[1].key
    scores = table(Cache(cache).get(stages[0]))
    assert {t for t, _, _ in scores} == {"choice", "open", "all"} and {n for *_, n in scores} == {"model"}
    assert not any("differs" in m for _, m, _ in scores)


def test_the_key_follows_what_is_asked(cache, corpus):
    def stage(lang="fin", baselines=True, metric=None, seed=0, **changes) -> Stage:
        run = make_run(LabTask(**{**SMALL, **changes}))
        run.metric, run.seed = metric or run.metric, seed
        return evaluation(run, Stage("model", 1, {}, lambda folder, inputs: {}), run.tasks[0], lang, baselines)

    first = stage()
    assert stage(seed=7).key == first.key
    assert len({s.key for s in (first, stage(baselines=False), stage("deu"), stage(open_items=3))}) == 4
    # what only the scoring asks for is scored without predicting anew
    for other in (stage(scores=["pmi"]), stage(metric=Metrics(similarity=True))):
        assert other.key != first.key and other.inputs[0].key == first.inputs[0].key
    assert stage(scores=["raw"]).inputs[0].key != first.inputs[0].key  # without the neutral questions


def test_a_language_without_sentences_says_so(cache, corpus):
    run = make_run(LabTask(**{**SMALL, "choice_items": 4, "open_items": 0, "phrases": 0}), "khm")
    scores = table(Cache(cache).get(scores_stage(run, "khm", baselines=False)))
    row = scores["sentences:eng-khm", "chrf", "model"]
    assert row["value"] is None and "eng-khm" in row["reason"]


def test_a_killed_evaluation_continues_where_it_was(cache, corpus, tmp_path, monkeypatch):
    from xalign.backbones.causal import CausalBackbone

    run = make_run(LabTask(**{**SMALL, "sentences": 0}))
    scores = scores_stage(run, "fin", baselines=False)
    stage, own = scores.inputs[0], Cache(tmp_path)
    whole = Cache(cache).get(stage)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CausalBackbone, "generate", killed)
        own.get(stage)
    assert own.started(stage)
    journal = next(tmp_path.glob("predict/*.partial/predictions.choice.jsonl"))
    with open(journal, "a") as f:  # the kill came in the middle of a line
        f.write('{"id": "half')
    with monkeypatch.context() as patch:
        patch.setattr(CausalBackbone, "score", killed)  # nothing is scored again
        again = own.get(stage)
    for name in ("predictions.choice.jsonl", "predictions.open.jsonl"):
        assert again.file(name).read_text() == whole.file(name).read_text()
    assert own.get(scores).file("scores.jsonl").read_text() == Cache(cache).get(scores).file("scores.jsonl").read_text()


def test_a_journal_drops_only_the_broken_end(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path).add([{"id": "a", "x": "ä"}, {"id": "b"}])
    path.write_bytes(path.read_bytes()[:-3])
    journal = Journal(path)
    assert list(journal.done) == ["a"]
    journal.add([{"id": "c"}])
    assert [r["id"] for r in read_jsonl(path)] == ["a", "c"]


def test_an_encoder_ranks_options_and_generates_nothing(cache):
    task = LabTask(choice_items=12, terms=20)
    run = make_run(task, backbone=TinyEncoder())
    task.check_run(run)
    stage = scores_stage(run, "fin", baselines=True)
    predictions = Cache(cache).get(stage.inputs[0])
    assert len(stage.inputs) == 1 and task.inputs(make_run(task), "fin")  # only the causal backbone's tests read sentences
    artifact = Cache(cache).get(stage)
    scores = table(artifact)
    assert {(t, n) for t, _, n in scores} == {(t, n) for t in ("choice", "terms") for n in ("model", "chance", "majority")} | \
        {("all", "model")}
    metrics = {m for t, m, n in scores if (t, n) == ("terms", "model")}
    assert metrics == {f"{m}_{by}" for m in ("accuracy", "mrr", "accuracy_differs") for by in ("raw", "pmi")} | \
        {f"accuracy_{by}.{kind}" for by in ("raw", "pmi") for kind in ("country", "city", "language", "currency", "unit")}
    absent = scores["all", "off_target", "model"]
    assert absent["value"] is None and absent["reason"] == "an encoder generates nothing"
    assert scores["terms", "accuracy_pmi", "chance"]["value"] == 0.2 and scores["terms", "accuracy_pmi", "majority"]["value"] == 0.2
    records = list(read_jsonl(predictions.file("predictions.terms.jsonl")))
    assert len(records) == 20 and all(len(r["options"]) == len(r["logp"]) == len(r["neutral"]) == 5 for r in records)
    assert len({tuple(r["neutral"]) for r in records}) == 1  # one neutral text for all terms
    assert {"choice": 12, "terms": 20}.items() <= artifact.receipt["facts"].items()
    assert sorted(p.name for p in predictions.path.glob("predictions.*")) == ["predictions.choice.jsonl", "predictions.terms.jsonl"]


def test_an_encoder_s_key_does_not_know_what_is_generated():
    def key(backbone, lang: str = "fin", **changes) -> str:
        run = make_run(LabTask(**changes), backbone=backbone)
        return scores_stage(run, lang, baselines=False).key

    other = {"open_items": 9, "phrases": 9, "sentences": 0, "answer_tokens": 9, "max_new_tokens": 9, "shots": 0}
    assert key(TinyEncoder()) == key(TinyEncoder(), **other) == key(TinyEncoder(), terms=420) == key(TinyEncoder(), terms=9999)
    assert len({key(TinyEncoder()), key(TinyEncoder(), terms=40), key(TinyEncoder(), choice_items=9), key(TinyEncoder(), "eng")}) == 4
    assert key(Tiny()) != key(Tiny(), **other) and key(Tiny()) == key(Tiny(), terms=0) != key(Tiny(), terms=20)
    run = make_run(LabTask())
    assert "terms" not in run.tasks[0].recipe(run, "fin")  # scores from before there were terms are still found
    assert 1 < LabTask().seconds(make_run(LabTask(), backbone=TinyEncoder()), "fin", True) < 60


def test_a_causal_backbone_classifies_terms_when_it_is_asked_to(cache, corpus):
    run = make_run(LabTask(**{**SMALL, "open_items": 0, "phrases": 0, "sentences": 0, "shots": 0}, terms=10))
    scores = table(Cache(cache).get(scores_stage(run, "fin", baselines=True)))
    assert scores["terms", "accuracy_raw", "model"]["n"] == 10 and scores["terms", "accuracy_raw", "majority"]["value"] == 0.2


def test_scores_by_length_need_a_likelihood():
    for task in (LabTask(scores=["raw", "bytes"]), BelebeleTask(path=".", scores=["tokens"])):
        with pytest.raises(ConfigError, match=r"task.\w+.scores=\[.*\]: (bytes|tokens) divides .* use raw and pmi"):
            task.check_run(make_run(task, backbone=TinyEncoder()))
    LabTask(scores=["raw", "bytes"]).check_run(make_run(LabTask()))
    with pytest.raises(ConfigError, match=r"task.terms=some: must be auto or a whole number in \[0,"):
        build({"_target_": "xalign.tasks.lab.LabTask", "terms": "some"}, "task")


class Recorder:
    """Prefers the options in alphabetical order, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.shots: list[tuple[str, str]] = []

    def keep(self, options) -> None:
        """Nothing is remembered."""

    def score(self, prompts, options, raw_text=False, shots=()):
        self.asked += prompts
        self.shots += shots
        return [[OptionScore(-float(sorted(row).index(o)), 1, len(o)) for o in row] for row in options]

    def generate(self, prompts, max_new_tokens, stop_newline=False, shots=(), each=None):
        self.asked += prompts
        self.shots += shots
        for i, prompt in enumerate(prompts):
            each(i, prompt)


def framed(folder: Path) -> tuple[Evaluation, Recorder]:
    model = Recorder()
    return Evaluation(folder, lambda: model, (), "fin", "eng", True, kind="encoder",
                      frame=lambda task, text, categories: f"<{task} {'/'.join(categories)}> {text}"), model


QUESTIONS = [Question("a", "k", "1", "Is it?", ("no", "yes"), 1, "?"), Question("b", "k", "2", "Was it?", ("no", "yes"), 0, "?"),
             Question("c", "k", "3", "Will it?", ("no", "yes"), 0, "?")]


def test_the_frame_is_put_around_questions_neutral_texts_and_shots_but_not_written_down(tmp_path):
    ev, model = framed(tmp_path)
    journal = ev.journal("x")
    records = rank_options(ev, QUESTIONS, journal, True, "x", shots=lambda kind: [("Was he?", "no")],
                           task_name="paraphrase", categories=("no", "yes"))
    head = "<paraphrase no/yes>"
    assert model.asked == [f"{head} ?", *(f"{head} {q.text}" for q in QUESTIONS)]
    assert set(model.shots) == {(f"{head} Was he?", "no")}
    assert [r["question"] for r in records] == ["Is it?", "Was it?", "Will it?"]
    bare = Evaluation(tmp_path, lambda: model, (), "fin", "eng", True)
    model.asked.clear()
    rank_options(bare, QUESTIONS, bare.journal("y"), False, "y")
    assert model.asked == [q.text for q in QUESTIONS] and bare.kind == "causal"

    request = Request(ev.journal("z"), "a", "Say it.", 4, {"x": 1}, str.upper, "open")
    generate_all(ev, [request], "z", shots=[("Sing it.", "la")])
    assert model.asked[-1] == "<open > Say it." and model.shots[-1] == ("<open > Sing it.", "la")
    assert request.journal.done["a"] == {"id": "a", "x": 1, "prompt": "Say it.", "raw": "<open > Say it.", "prediction": "<OPEN > SAY IT."}


def test_every_part_of_the_lab_names_its_task(tmp_path):
    ev, model = framed(tmp_path)
    LabTask(choice_items=2, terms=5).predict(ev)
    categories = "country/city/language/currency/unit"
    assert {text.partition(">")[0] for text in model.asked} == {"<choice ", f"<term {categories}"}
    assert f"<term {categories}> ?" in model.asked
    (tmp_path / "causal").mkdir()
    ev, model = framed(tmp_path / "causal")
    ev.kind = "causal"
    LabTask(choice_items=2, open_items=2, phrases=2, sentences=0, shots=1).predict(ev)
    assert {text.partition(">")[0] for text in model.asked} == {"<choice ", "<open ", "<translation "}


def test_majority_and_chance_by_arithmetic(tmp_path):
    ev, _ = framed(tmp_path)
    records = rank_options(ev, QUESTIONS, ev.journal("x"), False, "x")
    add_ranking(ev, "x", records, ["raw"])
    add_majority(ev, "x", records, ["raw"], "most frequent label")
    # right: yes, no, no. The recorder always says no (2 of 3), as the majority does; its mean rank is (1/2 + 1 + 1) / 3
    values = {(s["metric"], s["name"]): s["value"] for s in ev.scores}
    assert values == {("accuracy_raw", "model"): pytest.approx(2 / 3), ("mrr_raw", "model"): pytest.approx(5 / 6),
                      ("accuracy_raw", "majority"): pytest.approx(2 / 3)}
    # each group has its own: "a" alone is always right; by place, 0 is right in "b" and "c" only
    odd = [{**r, "kind": r["id"], "options": ["yes", "no"] if r["id"] == "c" else r["options"]} for r in records]
    ev.scores.clear()
    add_majority(ev, "x", odd, ["raw"], "s", lambda r: r["kind"])
    add_majority(ev, "x", odd, ["raw"], "s")
    add_majority(ev, "x", odd, ["raw"], "s", by_place=True)
    assert [s["value"] for s in ev.scores] == [1.0, pytest.approx(2 / 3), pytest.approx(2 / 3)]
    # "yes" is right twice here; where it is not on offer, one of two is guessed
    rest = [{**r, "options": ["left", "no"]} if r["id"] == "b" else r for r in odd]
    ev.scores.clear()
    add_majority(ev, "x", rest, ["raw"], "s")
    assert ev.scores[0]["value"] == pytest.approx((1 + 1 / 2 + 1) / 3)


def belebele_file(folder: Path, name: str, rows: int = 6, **changes: object) -> Path:
    row = {"link": "", "question_number": 1, "flores_passage": "It rained.", "question": "What fell?", "mc_answer1": "Rain",
           "mc_answer2": "Snow", "mc_answer3": "Sun", "mc_answer4": "Stars", "correct_answer_num": "1", "dialect": name}
    path = folder / f"{name}.jsonl"
    lines = [json.dumps({**row, "flores_passage": f"It rained {i // 2} times."}) for i in range(rows - 1)]
    path.write_text("\n".join([*lines, json.dumps({**row, **changes})]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("prompt", ["plain", "template"])
def test_belebele_reads_the_official_shape(cache, tmp_path, prompt):
    for name in ("eng_Latn", "fin_Latn"):
        belebele_file(tmp_path, name)
    task = BelebeleTask(path=str(tmp_path), prompt=prompt, limit=5)
    run = make_run(task)
    task.check_run(run)
    scores = table(Cache(cache).get(scores_stage(run, "fin", baselines=True)))
    assert {m for _, m, n in scores if n == "model"} == {"accuracy_raw", "accuracy_pmi", "mrr_raw", "mrr_pmi"}
    assert scores["belebele", "accuracy_raw", "model"]["n"] == 5 and ("belebele", "accuracy_raw", "chance") in scores
    first = read_questions(tmp_path / "fin_Latn.jsonl", "plain")[0]
    assert first.text == "P: It rained 0 times.\nQ: What fell?\nAnswer:" and first.gold == 0


def test_belebele_says_what_is_wrong_with_its_files(tmp_path):
    task = BelebeleTask(path=str(tmp_path))
    run = make_run(task)
    belebele_file(tmp_path, "eng_Latn")
    with pytest.raises(ConfigError, match="task.belebele.path=.*: has no fin_Latn.jsonl for fin"):
        task.check_run(run)
    for changes, what in (({"correct_answer_num": "5"}, "must be 1, 2, 3 or 4"), ({"mc_answer2": ""}, "mc_answer2"),
                          ({"question": None}, "question")):
        path = belebele_file(tmp_path, "fin_Latn", **changes)
        with pytest.raises(XalignError, match=rf"fin_Latn.jsonl:6: .*{what}"):
            task.check_run(run)
        path.unlink()
    (tmp_path / "fin_Latn.jsonl").write_text("{}\n[1\n")
    with pytest.raises(XalignError, match=r"fin_Latn.jsonl:[12]"):
        task.check_run(run)


def test_the_official_files_can_be_read():
    folder = SHARED / "data" / "belebele"
    if not folder.is_dir():
        pytest.skip("shared/data/belebele is not beside the repository")
    for name in ("eng_Latn", "deu_Latn"):
        assert len(read_questions(folder / f"{name}.jsonl", "template")) == 900
