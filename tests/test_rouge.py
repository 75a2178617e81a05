"""ROUGE in many languages: arithmetic on words found by hand, and rouge-score's own values in English."""
from __future__ import annotations

import importlib.util
from importlib.metadata import version

import pytest

from xalign.languages import LANGUAGES
from xalign.metrics.rouge import Rouge, Words


def f(same: int, given: int, right: int) -> float:
    return 2 * same / (given + right)


def test_english_is_rouge_score_s_own():
    from rouge_score.rouge_scorer import RougeScorer

    given, right = "The dogs' 2nd naïve runner ran home.", "A dog ran; the running dog's runner went 2nd: ran home!"
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(right, given)
    for order in "12L":
        metric = Rouge("eng", order)
        assert metric.per_example([given], [[right]]) == [theirs[f"rouge{order}"].fmeasure] and theirs[f"rouge{order}"].fmeasure > 0
    assert metric.signature == f"rougeL|f|tok:rouge-score|stem:porter|lang:eng|rouge-score:{version('rouge-score')}"


def test_every_language_scores_its_own_text():
    """The plain library drops all that is not a-z and 0-9; here a text in any script equals itself, and others not."""
    texts = {"Cyrl": "Дом большой и старый.", "Grek": "Το σπίτι είναι μεγάλο.", "Arab": "البيت كبير وقديم", "Deva": "यह घर बड़ा है।",
             "Thai": "บ้านหลังนี้ใหญ่มาก", "Khmr": "ផ្ទះនេះធំ", "Hang": "이 집은 크고 오래되었다.", "Hans": "这座房子又大又旧。",
             "Jpan": "この家は大きくて古い。", "Latn": "Äiti näki öljyä, được!"}
    for lang, row in LANGUAGES.items():
        for order in "12L":
            assert Rouge(lang, order).per_example([texts[row.script]], [[texts[row.script]]]) == [1], (lang, order)
        assert Rouge(lang, "1").per_example(["", texts[row.script]], [[texts[row.script]], ["zzz"]]) == [0, 0], lang


def test_words_of_scripts_other_than_latin():
    assert Words("ukr").tokenize("«Дім», 2-й поверх; 15кг №5") == ["дім", "2", "й", "поверх", "15", "кг", "№", "5"]
    # ड़ is a letter with a mark, the danda is punctuation; endings ों, ी, ा go from words of more than three characters
    assert Words("hin").tokenize("लड़कों ने बड़ी किताब पढ़ी।") == ["लड़क", "ने", "बड़", "किताब", "पढ़"]
    assert Words("kor").tokenize("서울은 크다! 2020년") == ["서울은", "크다", "2020", "년"]
    assert Words("vie").tokenize("Hà Nội 東京") == ["hà", "nội", "東", "京"]
    assert Words("khm").tokenize("ធំ ១") == ["ធ", "ំ", "១"]
    assert Words("zho").tokenize("我们喜欢北京。") == ["我们", "喜欢", "北京"]
    assert Words("tha").tokenize("ผมรักประเทศไทย") == ["ผม", "รัก", "ประเทศ", "ไทย"] or version("pythainlp") != "5.4.0"
    assert Words("jpn").tokenize("東京へ行く。") == ["東京", "へ", "行く"]
    assert Words("deu").tokenize("Für Häuser") == ["für", "haus"] and Words("ces").tokenize("Domy") == ["domy"]
    assert Words("tur").tokenize("kitaplarımızdan") == ["kitap"]


def test_values_by_hand():
    # дім стоїть на горі / дім на старій горі: 3 words of 4 and 4, no common pair, дім на горі in order
    one, two = "Дім стоїть на горі.", "Дім на старій горі!"
    assert [Rouge("ukr", o).per_example([one], [[two]])[0] for o in "12L"] == pytest.approx([f(3, 4, 4), 0, f(3, 4, 4)])
    # 我们 喜欢 北京 / 他们 喜欢 北京: two words, one pair of two
    got = [Rouge("zho", o).per_example(["我们喜欢北京"], [["他们喜欢北京"]])[0] for o in "12L"]
    assert got == pytest.approx([f(2, 3, 3), f(1, 2, 2), f(2, 3, 3)])
    # बच्चों and बच्चा have one stem
    assert Rouge("hin", "1").per_example(["बच्चों ने"], [["बच्चा है"]]) == pytest.approx([f(1, 2, 2)])
    # the better of two references; order matters to L alone
    assert Rouge("ell").per_example(["ένα δύο τρία"], [["τρία δύο ένα", "ένα τρία"]]) == pytest.approx([f(2, 3, 2)])
    score = Rouge("ell").score(["ένα", "δύο"], [["ένα"], ["τρία"]], clusters=["a", "b"])
    assert (score.value, score.se, score.n) == (0.5, pytest.approx(0.5), 2)


def test_arabic_stems_do_not_depend_on_what_came_before():
    words = ["أبلغته", "اتجهوا", "بورو", "تدعو", "والمدرسة"]
    alone = [Words("ara").tokenize(w)[0] for w in words]
    together = Words("ara")
    assert [together.tokenize(w)[0] for w in words] == alone and together.tokenize(" ".join(words[::-1])) == alone[::-1]


def test_a_missing_library_shows_in_the_signature(monkeypatch):
    found = {lang: Words(lang).recipe for lang in ("zho", "tha", "jpn", "tur", "khm")}
    assert found["zho"].startswith("tok:jieba-") and found["tha"].startswith("tok:newmm-")
    assert found["tur"].startswith("tok:words|stem:turkish-")
    assert found["jpn"].startswith("tok:mecab-") and found["khm"] == "tok:char|stem:no"
    real = importlib.util.find_spec
    hidden = ("jieba", "pythainlp", "fugashi", "MeCab", "TurkishStemmer")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in hidden else real(name))
    assert [Words(lang).recipe for lang in ("zho", "tha", "jpn")] == ["tok:char|stem:no"] * 3
    assert Words("tur").recipe == "tok:words|stem:no" and Words("zho").tokenize("北京 2") == ["北", "京", "2"]
    assert "|stopwords:" in Words("fin").recipe
