"""EM and F1 of answers against the benchmarks' official scripts (values made with them) and arithmetic."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from xalign.languages import LANGUAGES
from xalign.metrics.base import Score
from xalign.metrics.qa import AnswerEM, AnswerF1, BestF1, mkqa, mlqa, squad

GOLDENS = Path(__file__).resolve().parent.parent.parent / "shared" / "goldens"
CODES = {row.iso1: code for code, row in LANGUAGES.items()} | {"no": "nob", "zh_cn": "zho"}


@pytest.mark.parametrize("scheme", [mkqa, mlqa])
def test_values_are_the_official_script_s(scheme):
    path = GOLDENS / f"{scheme.__name__}_official.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert len(cases) == {"mkqa": 20, "mlqa": 9}[scheme.__name__]
    for c in cases:
        way = scheme(CODES[c["lang"]])
        got = [metric(way).per_example([c["prediction"]], [c["golds"]])[0] for metric in (AnswerEM, AnswerF1)]
        assert got == pytest.approx([c["em"], c["f1"]], abs=1e-6), c


def test_what_the_official_scripts_leave_and_take_is_in_the_signature():
    assert AnswerF1(mkqa("fin")).signature == "mkqa|case:lower|punctuation:ascii|articles:fin|unit:word|questions:answerable"
    assert AnswerF1(mlqa("zho")).signature == "mlqa|case:lower|punctuation:unicode|articles:none|unit:han-character"
    assert AnswerEM(squad()).signature == "squad1.1|case:lower|punctuation:ascii|articles:eng|unit:word"
    # MLQA knows no French and no Thai: nothing is taken out; Thai is compared by character
    assert mlqa("fra").tokens("Les Alpes!") == ["les", "alpes"] and mlqa("tha").tokens("กา 1") == ["ก", "า", "1"]
    assert mkqa("ces").tokens("«To» je, 1.5") == ["«to»", "je", "15"]  # only ASCII punctuation goes
    assert mkqa("fra").tokens("les eaux") == ["s", "eaux"]  # the official pattern has "le" before "les"


def test_squad_takes_english_articles_in_every_language():
    em, f1 = AnswerEM(squad()), AnswerF1(squad())
    assert em.per_example(["The U.S. Army", "die Stadt"], [["US army"], ["Stadt"]]) == [1, 0]
    # given 4 words, right 3, 2 the same: 2 * 2 / 7; the better of two right answers counts
    assert f1.per_example(["in the old town hall"], [["new town hall", "nothing"]]) == pytest.approx([4 / 7])
    assert f1.per_example(["上海"], [["上海市"]]) == [0]  # words between spaces, in Chinese too
    assert f1.per_example(["the"], [["a"]]) == [0] and AnswerF1(mkqa("eng")).per_example(["the"], [["a"]]) == [1]


def test_mkqa_s_primary_score_is_of_answerable_questions():
    got = AnswerF1(mkqa("deu")).score(["Rhein", "", "Elbe", ""], [["der Rhein"], [""], ["Oder"], ["Po"]], clusters=["a", "a", "b", "c"])
    assert (got.value, got.n) == (pytest.approx(1 / 3), 3) and got.se > 0
    assert AnswerF1(mkqa("deu")).score([""], [[""]]) == Score(None, None, 0, AnswerF1(mkqa("deu")).signature, "no example could be judged")


def test_the_best_threshold_is_the_official_one():
    # answers and no-answer probabilities: right .1; answered though there is none .2; half right .3; rightly none .4; wrong .9
    given, right = ["Oslo", "Bergen", "big Oslo house", "", "Turku"], [["Oslo"], [""], ["Oslo"], [""], ["Oslo"]]
    assert AnswerF1(mkqa("fin")).per_example(given, right) == [1, None, pytest.approx(1 / 2), None, 0]
    best = BestF1(mkqa("fin"), probabilities=True)
    # from two (both unanswerable): +1, -1, +1/2, 0, 0; the highest is 3 of 5, with one answer let through
    assert best.per_example(given, right, [0.1, 0.2, 0.3, 0.4, 0.9]) == [1, 1, 0, 1, 0]
    # surest where it is half right: 2, 2.5, 2.5 (none), then 3.5 with the right one
    assert best.score(given, right, [0.3, 0.8, 0.1, 0.2, 0.9]).value == pytest.approx(3.5 / 5)
    assert best.signature.endswith("|questions:all|threshold:best|no-answer:given")
    plain = BestF1(mkqa("fin"))  # all probabilities 0: the script goes by the order of the file
    assert plain.score(given, right).value == pytest.approx(3 / 5) and plain.signature.endswith("|no-answer:0")
    assert plain.score(given[::-1], right[::-1]).value == pytest.approx(2.5 / 5)
    with pytest.raises(ValueError, match="probabilities"):
        best.score(given, right)
