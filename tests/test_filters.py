"""The filters over translations, rule by rule."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from xalign.cache import Cache, Stage
from xalign.config import ConfigError, build
from xalign.data.examples import Example, read_jsonl, write_jsonl
from xalign.data.filters import RULES, Filters, count_words
from xalign.langid import judge, script_share

FIN = "Mikä on seuraavan maan pääkaupunki: Kenia"


@pytest.mark.parametrize(
    "original, text, source, lang, rule",
    [
        ("What is the capital of Kenya?", FIN, "eng", "fin", None),
        ("hello there", "<b>hei</b> vaan", "eng", "fin", "html"),
        ("fish &amp; chips are good", "kala &amp; ranskalaiset ovat hyviä", "eng", "fin", None),  # its source has it too
        ("1 < 2 and 3 > 2", "1 < 2 ja 3 > 2", "eng", "fin", None),
        ("word " * 101, "sana " * 101, "eng", "fin", "words"),
        ("word " * 100, "sana " * 100, "eng", "fin", None),
        ("a very long word", "x" * 41 + " on sana", "eng", "fin", "word_chars"),
        ("four words of English", "これは" + "長" * 20 + "い文章です", "eng", "jpn", "ratio"),  # 28 characters are 14 words
        ("Liechtenstein", "リヒテンシュタイン", "eng", "jpn", None),  # 4.5 words: too short for a ratio
        ("one two", "yksi kaksi kolme neljä viisi kuusi seitsemän", "eng", "fin", "ratio"),
        (
            "Which country is the following city in: Nairobi",
            "Which country is the following city in: Nairobi",
            "eng",
            "fin",
            "language",
        ),
        ("Nairobi", "Nairobi", "eng", "jpn", "language"),  # another script, however short
        ("Nairobi", "Nairobi", "eng", "fin", None),  # one word: nobody can tell
        ("Nairobi", "ナイロビ", "eng", "jpn", None),
        ("2024", "2024", "eng", "jpn", None),  # no letter at all
    ],
)
def test_rules(original: str, text: str, source: str, lang: str, rule: str | None) -> None:
    filters = Filters(langid="sana" not in text)
    assert filters.rule(original, text, source, lang) == rule


def test_rules_can_be_turned_off() -> None:
    off = Filters(html=False, langid=False, max_ratio=100, max_words=1000, max_word_chars=1000)
    assert off.rule("one", "<b>" + "x" * 200 + " one two three four</b>", "eng", "fin") is None


def test_words_of_unspaced_scripts() -> None:
    assert count_words("one two three", "eng") == 3
    assert count_words("東京 都庁", "jpn") == 2  # four characters, two a word; the space is none
    assert count_words("ประเทศไทย", "tha") == pytest.approx(9 / 4)


def test_language_identification() -> None:
    assert judge(FIN, "fin") is True and judge(FIN, "deu") is False
    assert judge("Hvad er hovedstaden i dette land: Kenya", "nob") is True  # Danish is let through as Norwegian
    assert judge("次の国の首都はどこですか：ケニア", "jpn") is True and judge("次の国の首都はどこですか：ケニア", "zho") is False
    assert judge("Alankomaiden Antillien guldeni", "fin") is None  # three words: CLD3 would guess
    assert (
        judge("Was ist die Hauptstadt dieses Landes: Malaysia?", "deu") is None
    )  # "Afrikaans", but unreliable by its own account
    assert judge("Suomi", "fin") is None and judge("", "fin") is None and judge("Suomi", "ell") is False
    assert script_share("abcд", "eng") == 0.75 and script_share("12", "eng") is None


def rows() -> list[Example]:
    return [
        Example(str(i), "eng", x, y)
        for i, (x, y) in enumerate(
            [
                ("What is the capital of the following country: Kenya", "Nairobi"),
                ("What is the capital of the following country: Kenya", "Nairobi"),
                ("What is the capital of the following country: Togo", "It is Lome, <i>I think</i>"),
                ("What is the capital of the following country: Peru", "Lima"),
            ]
        )
    ]


def records() -> list[dict]:
    texts = [
        (FIN, "Nairobi"),
        (FIN, "Nairobi"),
        ("Mikä on seuraavan maan pääkaupunki: Togo", None),
        ("What is the capital of the following country: Peru", "Lima"),
    ]
    return [
        {"id": str(i), "prompt": p, "response": r, "failed": {} if r else {"response": "unknown text"}}
        for i, (p, r) in enumerate(texts)
    ]


def test_each_side_is_dropped_alone_and_counted() -> None:
    kept, facts = Filters().apply(rows(), records(), "eng", "fin")
    assert [(r["prompt"] is not None, r["response"] is not None) for r in kept] == [
        (True, True),
        (False, False),
        (True, False),
        (False, True),
    ]
    assert kept[1]["failed"] == {"prompt": "duplicate", "response": "duplicate"}
    assert kept[2]["failed"] == {"response": "unknown text"}  # the translator's reason stays
    assert kept[3]["failed"] == {"prompt": "language"}
    none = dict.fromkeys(RULES, 0)
    assert facts["prompt"] == {
        "translated": 4,
        "kept": 2,
        "language not judged": 0,
        "dropped": {**none, "duplicate": 1, "language": 1},
    }
    assert facts["response"] == {"translated": 3, "kept": 2, "language not judged": 2, "dropped": {**none, "duplicate": 1}}
    assert all(f["translated"] == f["kept"] + sum(f["dropped"].values()) for f in facts.values())


def test_the_same_answer_to_another_question_is_no_duplicate() -> None:
    kept, facts = Filters(langid=False).apply(
        [Example(str(i), "eng", f"Currency of {c}", "euro") for i, c in enumerate("AB")],
        [{"id": str(i), "prompt": None, "response": "euro", "failed": {}} for i in range(2)],
        "eng",
        "fin",
    )
    assert facts["response"]["kept"] == 2


def test_quality_threshold() -> None:
    kept, facts = Filters(langid=False, dedup=False).apply(rows(), records(), "eng", "fin", [0.9, 0.8, 0.9, 0.79, 0.1, 1.0, 1.0])
    assert [(r["prompt"] is not None, r["response"] is not None) for r in kept] == [
        (True, True),
        (True, False),
        (False, False),
        (True, True),
    ]
    assert facts["prompt"]["dropped"]["quality"] == 1 and facts["response"]["dropped"]["quality"] == 1


def test_stage(tmp_path: Path) -> None:
    def write(name: str, data: list) -> Stage:
        return Stage(name, 1, {}, lambda folder, inputs: {"n": write_jsonl(folder / "examples.jsonl", data)})

    run = SimpleNamespace(source="eng")
    stage = Filters().stage(run, write("questions", rows()), write("translated", records()), "fin")
    artifact = Cache(tmp_path).get(stage)
    assert [r["id"] for r in read_jsonl(artifact.file("examples.jsonl"))] == ["0", "1", "2", "3"]
    assert artifact.receipt["facts"]["cometkiwi"] == "no checkpoint, not applied"
    assert artifact.receipt["facts"]["prompt"]["dropped"]["language"] == 1
    other = Filters(max_words=99).stage(run, write("questions", rows()), write("translated", records()), "fin")
    assert other.key != stage.key
    same = Filters(threshold=0.5).stage(run, write("questions", rows()), write("translated", records()), "fin")
    assert same.key == stage.key  # without a checkpoint the threshold decides nothing


def test_missing_checkpoint_is_refused() -> None:
    node = build({"_target_": "xalign.data.filters.Filters", "cometkiwi": "/nowhere/model.ckpt"}, "filter")
    with pytest.raises(ConfigError, match="filter.cometkiwi=/nowhere/model.ckpt: no such file"):
        node.check_run(SimpleNamespace())
    with pytest.raises(ConfigError, match=r"filter.threshold=1.5: must be in \[0, 1\]; the paper's value is 0.8"):
        build({"_target_": "xalign.data.filters.Filters", "threshold": 1.5}, "filter")
