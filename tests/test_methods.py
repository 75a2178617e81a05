"""The training sets of sft, t_sft and sdrrl, row by row, and SDRRL's two loss weightings by arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from xalign.cache import Artifact, Cache, Stage
from xalign.config import ConfigError, XalignError, build
from xalign.data.codeswitch import Dictionary, switch_questions
from xalign.data.examples import Example, read_examples, write_jsonl
from xalign.data.filters import Filters
from xalign.data.packing import Row
from xalign.methods import sdrrl
from xalign.methods.sdrrl import SDRRL, SUBSETS, Answers, Transfer, coin, comp_rows, cut, four_subsets, mt_rows
from xalign.methods.supervised import SFT, TSFT

CONF = Path(__file__).parents[1] / "conf" / "method"
KENYA = Example("capital/KE/t1", "eng", "Capital of Kenya?", "Nairobi", source="lab:capital", group="KE")
PERU = Example("capital/PE/t1", "eng", "Capital of Peru?", "Lima", source="lab:capital", group="PE")
FIN = {
    "Capital of Kenya?": "Kenian pääkaupunki?",
    "Capital of Peru?": "Perun pääkaupunki?",
    "Nairobi": "Nairobi (fi)",
    "Lima": "Lima (fi)",
    "It is Nairobi.": "Se on Nairobi.",
}
PAIRS = [
    {"id": "s1", "src": "The lamp is on.", "tgt": "Lamppu on päällä.", "kind": "sentence"},
    {"id": "n1", "src": "Kenya, Peru", "tgt": "Kenia, Peru", "kind": "names"},
]


# the parts of the method


def test_the_coin_is_fair_and_seeded() -> None:
    heads = sum(coin(0, f"q{i}") for i in range(10000))
    assert abs(heads - 5000) < 3 * 50  # three standard deviations of 10,000 fair coins
    assert [coin(0, f"q{i}") for i in range(64)] != [coin(1, f"q{i}") for i in range(64)]


def test_transfer_set_takes_the_answer_and_its_own_translation() -> None:
    examples = [Example(f"q{i}", "eng", f"x{i}", f"y{i}") for i in range(3)]
    own = [examples[1].with_(response="own1"), examples[2].with_(response="own2")]
    of_d = [{"id": f"q{i}", "prompt": f"T(x{i})", "response": f"T(y{i})", "failed": {}} for i in range(3)]
    of_g = [
        {"id": "q1", "prompt": None, "response": "T(own1)", "failed": {}},
        {"id": "q2", "prompt": None, "response": None, "failed": {}},
    ]
    chosen = sdrrl.transfer_set(examples, own, of_d, of_g)
    assert [(t.example.prompt, t.example.response, t.question, t.answer) for t in chosen] == [
        ("x0", "y0", "T(x0)", "T(y0)"),
        ("x1", "own1", "T(x1)", "T(own1)"),
        ("x2", "own2", "T(x2)", None),
    ]  # the data's translated answer never stands in for the model's
    assert [(t.example.response, t.answer) for t in sdrrl.transfer_set(examples, [], of_d, [])] == [
        (f"y{i}", f"T(y{i})") for i in range(3)
    ]
    assert [t.question for t in sdrrl.transfer_set(examples, own, [], [])] == [None] * 3


def test_four_subsets() -> None:
    rows = four_subsets([Transfer(KENYA, "Kenian pääkaupunki?", "Nairobi (fi)")], ["LL", "TL", "LT", "TT"], "fin")
    assert [(r.id, r.subset, r.lang, r.prompt, r.response, r.group) for r in rows] == [
        ("capital/KE/t1/LL", "LL", "eng", "Capital of Kenya?", "Nairobi", "KE"),
        ("capital/KE/t1/TL", "TL", "fin", "Kenian pääkaupunki?", "Nairobi", "KE"),
        ("capital/KE/t1/LT", "LT", "eng", "Capital of Kenya?", "Nairobi (fi)", "KE"),
        ("capital/KE/t1/TT", "TT", "fin", "Kenian pääkaupunki?", "Nairobi (fi)", "KE"),
    ]


@pytest.mark.parametrize("question, answer, left", [("q", None, ["LL", "TL"]), (None, "a", ["LL", "LT"]), (None, None, ["LL"])])
def test_a_missing_side_costs_only_its_subsets(question: str | None, answer: str | None, left: list[str]) -> None:
    assert [r.subset for r in four_subsets([Transfer(KENYA, question, answer)], ["LL", "TL", "LT", "TT"], "fin")] == left


def test_questions_are_switched_by_the_dictionary_of_their_language() -> None:
    rows = four_subsets([Transfer(KENYA, "Kenian pääkaupunki?", "Nairobi (fi)")], ["LL", "TL", "LT", "TT"], "fin")
    words = {"eng": {"Kenya": ("Kenia",), "Nairobi": ("X",)}, "fin": {"pääkaupunki": ("capital",)}}
    switched, changed = switch_questions(rows, words, 1.0, seed=0)
    assert [r.prompt for r in switched] == ["Capital of Kenia?", "Kenian capital?"] * 2
    assert [r.response for r in switched] == [r.response for r in rows]  # answers are never switched
    assert changed == dict.fromkeys(("LL", "TL", "LT", "TT"), 1)
    assert switch_questions(rows, words, 0.0, seed=0)[0] == rows


def test_mt_rows_both_ways() -> None:
    rows = mt_rows(PAIRS, "eng", "fin")
    assert [(r.prompt, r.response) for r in rows] == [
        ("Translate the following sentence from English to Finnish.\nThe lamp is on.", "Lamppu on päällä."),
        ("Translate the following sentence from English to Finnish.\nKenya, Peru", "Kenia, Peru"),
        ("Translate the following sentence from Finnish to English.\nLamppu on päällä.", "The lamp is on."),
        ("Translate the following sentence from Finnish to English.\nKenia, Peru", "Kenya, Peru"),
    ]
    assert {r.subset for r in rows} == {"mt"} and len({r.id for r in rows}) == 4
    assert {r.group for r in rows} == {
        "pair/s1",
        "pair/n1",
    }  # a sentence is on one side of the validation cut, whatever is done with it


def test_comp_rows_answer_with_the_whole_sentence() -> None:
    rows = [r for seed in range(20) for r in comp_rows(PAIRS, "fin", seed)]
    head = "Complete the following sentence in Finnish according to its context.\n"
    assert {r.prompt for r in rows} == {head + "Lamppu", head + "Lamppu on"}
    assert {r.response for r in rows} == {"Lamppu on päällä."} and {r.subset for r in rows} == {"comp"} and len(rows) == 20


def test_cut() -> None:
    assert cut("word", True, Random(0)) == "" and cut("", False, Random(0)) == ""
    cuts = {cut("กีข้", False, Random(i)) for i in range(30)}
    assert cuts == {"กี"}  # a vowel sign or tone mark is never torn off


# the loss weightings


def test_subset_mean_is_equation_6() -> None:
    rows = [Row("a", (0,) * 5, 2, "LL"), Row("b", (0,) * 11, 1, "LL"), Row("c", (0,) * 4, 3, "comp")]  # 3, 10 and 1 targets
    ce = {"a": 0.6, "b": 2.0, "c": 5.0}  # mean CE of each row's tokens
    weights = SDRRL(loss_weighting="subset_mean").row_weights(rows)
    # 14 tokens, 2 subsets, |LL| = 2, |comp| = 1
    assert weights == pytest.approx([14 / (2 * 2 * 3), 14 / (2 * 2 * 10), 14 / (2 * 1 * 1)])
    loss = sum(w * ce[r.id] * r.targets for w, r in zip(weights, rows, strict=True)) / 14  # what the trainer computes
    assert loss == pytest.approx(((0.6 + 2.0) / 2 + 5.0) / 2)  # equation 6 over its number of subsets
    assert sum(w * r.targets for w, r in zip(weights, rows, strict=True)) == pytest.approx(
        14
    )  # mean weight 1: the learning rate keeps its meaning
    pooled = SDRRL().row_weights(rows)
    assert pooled == [1.0, 1.0, 1.0]
    assert sum(w * ce[r.id] * r.targets for w, r in zip(pooled, rows, strict=True)) / 14 == pytest.approx(
        (3 * 0.6 + 10 * 2.0 + 5.0) / 14
    )


def test_the_weighting_is_part_of_the_models_key() -> None:
    assert SDRRL(loss_weighting="subset_mean").loss_params() != SDRRL().loss_params() == SFT().loss_params()


# whole stages


class Fakes:
    """A run whose data and translator are hand-made, around the real filters and dictionary."""

    def __init__(self, folder: Path, method: Any, lost: tuple[str, ...] = (), **nodes: Any) -> None:
        self.method, self.lang, self.target, self.source, self.seed = method, ("fin",), "fin", "eng", 0
        muse = folder / "muse.txt"
        muse.write_text("Kenya Kenia\nPeru Perussa\n", encoding="utf-8")
        self.data, self.parallel, self.translator, self.lost = self, self, self, lost
        self.filter, self.dictionary = Filters(langid=False), Dictionary(path=str(muse))
        self.backbone = SimpleNamespace(
            kind="causal",
            instruct=True,
            params=lambda: {"model": "fake"},
            weights=lambda run: Stage("weights", 1, {}, lambda f, i: {}),
        )
        self.choices = {"translator": "fake"}
        self.cache = Cache(folder / "cache")
        vars(self).update(nodes)

    def questions_stage(self, run: Any, lang: str) -> Stage:
        return Stage("questions", 1, {}, lambda folder, _: {"n": write_jsonl(folder / "examples.jsonl", [KENYA, PERU])})

    def stage(self, run: Any, *args: Any) -> Stage:
        """The translator (called with examples) and the parallel text in one."""
        if args == ("fin",):
            return Stage("pairs", 1, {}, lambda folder, _: {"n": write_jsonl(folder / "pairs.jsonl", PAIRS)})
        sides = args[2] if len(args) > 2 else ("prompt", "response")

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            records = []
            for e in read_examples(inputs[0].file("examples.jsonl")):
                texts = {s: FIN.get(getattr(e, s)) if getattr(e, s) not in self.lost else None for s in sides}
                records.append(
                    {
                        "id": e.id,
                        "prompt": texts.get("prompt"),
                        "response": texts.get("response"),
                        "failed": {s: "unknown text" for s, t in texts.items() if t is None},
                    }
                )
            return {"n": write_jsonl(folder / "examples.jsonl", records)}

        return Stage("translate", 1, {"sides": list(sides), "lost": list(self.lost)}, work, inputs=(args[0],))

    def check_source(self, run: Any) -> None:
        """This translator reads everything."""

    def make(self) -> tuple[list[Example], dict[str, Any]]:
        artifact = self.cache.get(self.method.rows(self))
        return read_examples(artifact.file("rows.jsonl")), artifact.receipt["facts"]


def words(text: str, add_special_tokens: bool) -> SimpleNamespace:
    """A tokenizer: one id a word."""
    return SimpleNamespace(input_ids=text.split())


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone that answers every question alike."""

    def generate(prompts: list[str], limit: int, each: Any) -> None:
        assert limit == 512
        for i, _ in enumerate(prompts):
            each(i, "It is Nairobi.")

    import xalign.backbones.load as load

    monkeypatch.setattr(load, "load_backbone", lambda path, node: SimpleNamespace(generate=generate, tokenizer=words))


def test_sft_rows(tmp_path: Path) -> None:
    run = Fakes(tmp_path, SFT())
    rows, facts = run.make()
    assert [(r.prompt, r.response, r.subset, r.group) for r in rows] == [
        ("Capital of Kenya?", "Nairobi", "D", "KE"),
        ("Capital of Peru?", "Lima", "D", "PE"),
    ]
    assert facts == {"rows": 2, "subsets": {"D": 2}, "answer characters": {"D": 11}}
    run.target = "jpn"
    assert SFT().rows(run).key == SFT().rows(Fakes(tmp_path, SFT())).key  # independent of the target language


def test_t_sft_rows(tmp_path: Path) -> None:
    rows, facts = Fakes(tmp_path, TSFT(), lost=("Lima",)).make()
    assert [(r.id, r.lang, r.prompt, r.response) for r in rows] == [
        ("capital/KE/t1/D", "eng", "Capital of Kenya?", "Nairobi"),
        ("capital/PE/t1/D", "eng", "Capital of Peru?", "Lima"),
        ("capital/KE/t1/T", "fin", "Kenian pääkaupunki?", "Nairobi (fi)"),
    ]
    assert facts["subsets"] == {"D": 2, "T": 1} and facts["not translated"] == {"response: unknown text": 1}


def test_sdrrl_rows(tmp_path: Path, answered: None) -> None:
    rows, facts = Fakes(tmp_path, SDRRL(code_switch=1.0), lost=("Capital of Peru?",)).make()
    kenya, peru = ("It is Nairobi." if coin(0, e.id) else e.response for e in (KENYA, PERU))
    assert [(r.subset, r.prompt, r.response) for r in rows if r.subset in ("LL", "TL", "LT", "TT")] == [
        ("LL", "Capital of Kenia?", kenya),
        ("LL", "Capital of Perussa?", peru),
        ("TL", "Kenian pääkaupunki?", kenya),
        ("LT", "Capital of Kenia?", FIN[kenya]),
        ("LT", "Capital of Perussa?", FIN[peru]),
        ("TT", "Kenian pääkaupunki?", FIN[kenya]),
    ]
    assert facts["rows"] == len(rows) == 11
    assert facts["subsets"] == {"LL": 2, "TL": 1, "LT": 2, "TT": 1, "mt": 4, "comp": 1}
    own = coin(0, KENYA.id) + coin(0, PERU.id)
    assert facts["transfer set"] == {"D": 2 - own, "G": own}
    assert facts["not translated"] == {"prompt: unknown text": 1}
    assert facts["code-switched questions"] == {"LL": 2, "TL": 0, "LT": 2, "TT": 0}


@pytest.mark.parametrize(
    "changes, subsets, stages",
    [
        (
            {"subsets": ["LL", "TT", "mt", "comp"]},
            ["LL", "TT", "mt", "comp"],
            {"answers", "translate", "filter", "dictionary", "pairs"},
        ),
        ({"self_distill": False}, list(SUBSETS), {"translate", "filter", "dictionary", "pairs"}),
        ({"parallel": False}, ["LL", "TL", "LT", "TT"], {"answers", "translate", "filter", "dictionary"}),
        ({"code_switch": 0.0}, list(SUBSETS), {"answers", "translate", "filter", "pairs"}),
        ({"subsets": ["mt", "comp"]}, ["mt", "comp"], {"pairs"}),
        ({"subsets": ["LL"], "code_switch": 0.0}, ["LL"], {"answers"}),
    ],
)
def test_table_6_ablations(tmp_path: Path, answered: None, changes: dict, subsets: list[str], stages: set[str]) -> None:
    run = Fakes(tmp_path, SDRRL(**changes))
    rows, facts = run.make()
    assert list(facts["subsets"]) == subsets == list(dict.fromkeys(r.subset for r in rows))
    assert {s.name for s in run.method.rows(run).all()} - {
        "rows",
        "questions",
        "weights",
    } == stages  # nothing is made for nothing


def test_shared_stages(tmp_path: Path) -> None:
    run = Fakes(tmp_path, SDRRL())
    keys = {s.key for s in SDRRL().rows(run).all()}
    assert {s.key for s in TSFT().rows(run).all()} - {TSFT().rows(run).key} <= keys  # t_sft's translations are sdrrl's
    answers = SDRRL().answers_stage(run, run.questions_stage(run, "eng")).key
    run.target = "jpn"
    assert SDRRL().answers_stage(run, run.questions_stage(run, "eng")).key == answers  # the answers know no target language
    assert SDRRL(max_new_tokens=64).answers_stage(run, run.questions_stage(run, "eng")).key != answers


def test_a_base_model_is_fine_tuned_before_it_answers(tmp_path: Path) -> None:
    from xalign.training.node import TrainerNode

    run = Fakes(tmp_path, SDRRL(), trainer=TrainerNode())
    run.backbone.instruct = False
    questions = run.questions_stage(run, "eng")
    stage = SDRRL().answers_stage(run, questions)
    assert stage.inputs[1].key == SFT().model_stage(run).key  # the very model that method=sft trains
    assert SDRRL(answers="model").answers_stage(run, questions).inputs[1].name == "weights"
    run.backbone.instruct = True
    assert SDRRL(answers="sft").answers_stage(run, questions).key == stage.key


def test_answers_continue_where_they_were_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xalign.backbones.load as load
    from xalign.journal import sums_of
    from xalign.training.spread import spread

    log, asked = tmp_path / "answers.jsonl", []
    kept = {"id": KENYA.id, "answer": "kept", "ended": True}
    (tmp_path / "answers.jsonl.1").write_text(json.dumps(kept) + "\n" + '{"id": "capital/PE', encoding="utf-8")  # the second process' file

    def generate(prompts: list[str], limit: int, each: Any) -> None:
        asked.extend(prompts)
        for i, _ in enumerate(prompts):
            each(i, "one two three four")

    monkeypatch.setattr(load, "load_backbone", lambda path, node: SimpleNamespace(generate=generate, tokenizer=words))
    questions = {e.id: e.prompt for e in (KENYA, PERU)}
    new = {"id": PERU.id, "answer": "one two three four", "ended": True}
    assert spread(Answers(tmp_path, None, 9), questions, log) == [kept, new] and asked == [PERU.prompt]
    assert [json.loads(line) for line in log.read_text().splitlines()] == [kept, new]
    assert {p.name for p in tmp_path.iterdir()} == {log.name, sums_of(log).name}
    assert spread(Answers(tmp_path, None, 9), questions, log) == [kept, new] and asked == [PERU.prompt]  # killed behind it
    short = spread(Answers(tmp_path, None, 4), {PERU.id: PERU.prompt}, tmp_path / "short.jsonl")
    assert short == [{**new, "ended": False}]  # as long as allowed: it was cut


def test_only_finished_answers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xalign.backbones.load as load

    run = Fakes(tmp_path, SDRRL(max_new_tokens=5))
    run.seed = next(s for s in range(99) if coin(s, KENYA.id) and coin(s, PERU.id))
    other = [Example(f"q{i}", "eng", "x", "y") for i in range(20)]
    rows = [KENYA, PERU, *other]
    questions = Stage("questions", 1, {"more": 20}, lambda folder, _: {"n": write_jsonl(folder / "examples.jsonl", rows)})
    texts = {KENYA.prompt: "", PERU.prompt: "It goes on and on"}

    def generate(prompts: list[str], limit: int, each: Any) -> None:
        for i, prompt in enumerate(prompts):
            each(i, texts.get(prompt, "Yes."))

    monkeypatch.setattr(load, "load_backbone", lambda path, node: SimpleNamespace(generate=generate, tokenizer=words))
    artifact = run.cache.get(run.method.answers_stage(run, questions))
    asked = [e.id for e in other if coin(run.seed, e.id)]
    assert [(e.id, e.response) for e in read_examples(artifact.file("examples.jsonl"))] == [(i, "Yes.") for i in asked]
    counts = {"asked": len(asked) + 2, "answers": len(asked), "empty": 1, "unfinished": 1, "with a test fact": 0}
    assert artifact.receipt["facts"] == counts


def test_an_answer_that_states_a_test_fact_is_found() -> None:
    from xalign.data.lab import facts, name

    train, test = (next(f for f in facts() if f.split == split and f.kind == "capital") for split in ("train", "test"))
    rows = [Example(f.split, "eng", name(f.subject, "eng"), name(f.answer, "eng"), "lab:capital") for f in (train, test)]
    assert sdrrl.stated_test_facts(rows, "eng") == {"test"}
    assert sdrrl.stated_test_facts([r.with_(source="alpaca") for r in rows], "eng") == set()  # only the laboratory knows its test


# bad input


def test_an_empty_subset_names_the_reason(tmp_path: Path) -> None:
    with pytest.raises(XalignError, match=r"subset T is empty \(2 x prompt: unknown text\); use another translator"):
        Fakes(tmp_path, TSFT(), lost=(KENYA.prompt, PERU.prompt)).make()


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method.subsets=.*leaves nothing to train on with method.parallel=false"):
        SDRRL(subsets=["mt"], parallel=False).check_run(Fakes(tmp_path, None))


def test_one_target_language(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lang=\[fin,jpn\]: method sdrrl trains for one target language; .*lang=fin,jpn"):
        SDRRL().check_run(Fakes(tmp_path, None, lang=("fin", "jpn")))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"code_switch": 1.5}, r"method.code_switch=1.5: must be in \[0, 1\]; the paper's value is 0.15"),
        ({"subsets": ["LL", "XX"]}, "method.subsets: 'XX' is not one of LL, TL, LT, TT, mt, comp"),
        ({"loss_weighting": "pool"}, "must be one of pooled, subset_mean; did you mean 'pooled'"),
        ({"subset": ["LL"]}, "method.subset: unknown key; did you mean 'subsets'"),
    ],
)
def test_bad_values(change: dict, message: str) -> None:
    values = yaml.safe_load((CONF / "sdrrl.yaml").read_text(encoding="utf-8"))
    assert build(values, "method") == SDRRL()  # the YAML lists the defaults
    with pytest.raises(ConfigError, match=message):
        build({**values, **change}, "method")
