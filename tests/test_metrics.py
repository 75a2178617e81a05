"""Every metric against arithmetic that stands in the test, or against sacrebleu itself."""
from __future__ import annotations

import math

import pytest

from xalign.config import XalignError
from xalign.languages import CONFUSABLE, LANGUAGES
from xalign.metrics.answers import F1, Containment, ExactMatch, normalise
from xalign.metrics.base import Score
from xalign.metrics.offtarget import OffTarget
from xalign.metrics.ranking import MRR, Accuracy
from xalign.metrics.statistics import value_of
from xalign.metrics.translation import BLEU, BLEU4, ChrF, bleu_tokenizer


def test_accuracy_shares_a_tie():
    assert Accuracy().per_example([[1, 3, 2, 0], [3, 1, 2, 0], [2, 2, 1, 0], [1, 1, 1, 1]], [1, 1, 0, 2]) == [1, 0, 1 / 2, 1 / 4]


def test_mrr_takes_the_mean_rank_of_a_tie():
    # ranks: 1; 3; tied for 1 and 2: 1.5; all four tied: 2.5; tied for 2 and 3: 2.5
    rows = [[9, 1, 2, 3], [1, 3, 2, 0], [2, 2, 1, 0], [1, 1, 1, 1], [5, 4, 4, 0]]
    assert MRR().per_example(rows, [0, 0, 0, 3, 2]) == pytest.approx([1, 1 / 3, 1 / 1.5, 1 / 2.5, 1 / 2.5])


def test_the_standard_error_is_the_textbook_one():
    got = Accuracy("pmi").aggregate([1, 0, 1, 1])
    sd = math.sqrt((3 * 0.25**2 + 0.75**2) / 3)
    assert (got.value, got.n) == (0.75, 4) and got.se == pytest.approx(sd / math.sqrt(4))
    assert got.signature == "options:pmi|shots:0|ties:shared"


def test_clusters_make_the_error_honest():
    """Two copies of each example say no more than one: the error is that of the single examples."""
    single = Accuracy().aggregate([1, 0, 1, 1])
    double = Accuracy().aggregate([1, 1, 0, 0, 1, 1, 1, 1], ["a", "a", "b", "b", "c", "c", "d", "d"])
    assert double.se == pytest.approx(single.se) and double.n == 8


def test_nothing_to_score_is_absent_with_a_reason():
    assert Accuracy().aggregate([]) == Score(None, None, 0, "options:raw|shots:0|ties:shared", "no examples")
    assert OffTarget().aggregate([None, None]).reason == "no example could be judged"
    assert Accuracy().aggregate([1.0]).se is None
    assert BLEU("fin").score([], []).value is None


def test_answers_are_normalised_before_they_are_compared():
    assert normalise(" «Helsinki». ") == "helsinki" and normalise("ﾄｳｷｮｳ") == "トウキョウ"
    assert normalise("Euro", cased=True) == "Euro"
    right = [["Helsinki"], ["Helsinki"], ["dollar", "euro"]]
    assert ExactMatch().per_example(["helsinki.", "Helsinki is it", "Euro"], right) == [1, 0, 1]
    assert ExactMatch(cased=True).per_example(["Euro", "euro."], [["euro"], ["euro"]]) == [0, 1]
    assert Containment().per_example(["The capital is HELSINKI.", "Oslo"], [["Helsinki"], ["Helsinki"]]) == [1, 0]


def test_f1_counts_words_or_characters():
    # given 4 words, right 2, both found: P = 2/4, R = 2/2, F1 = 2/3
    assert F1("eng").per_example(["the city of Oslo"], [["Oslo city"]])[0] == pytest.approx(2 / 3)
    # 東京都 and 東京: P = 2/3, R = 1, F1 = 4/5
    assert F1("jpn").per_example(["東京都。"], [["東京"]])[0] == pytest.approx(4 / 5)
    assert F1("eng").per_example([""], [["Oslo"]]) == [0]
    assert "character" in F1("tha").signature and "word" in F1("kor").signature


HYPS = ["The cat sat on the mat", "a dog barked at me", "He goes home ."]
REFS = [["the cat is on the mat", "There is a cat on the mat"], ["the dog barked at me loudly"],
        ["he went home.", "He goes home", "He is gone"]]


def test_bleu_and_chrf_are_sacrebleu_s(monkeypatch, tmp_path):
    import sacrebleu

    monkeypatch.setenv("SACREBLEU", str(tmp_path))
    first = [r[0] for r in REFS]
    for metric, value in ((BLEU("fin"), sacrebleu.corpus_bleu(HYPS, [first])), (ChrF("fin"), sacrebleu.corpus_chrf(HYPS, [first])),
                          (ChrF("fin", 2), sacrebleu.corpus_chrf(HYPS, [first], word_order=2)),
                          (BLEU4("fin"), sacrebleu.corpus_bleu(HYPS, [first], lowercase=True))):
        got = metric.score(HYPS, [[r] for r in first])
        assert got.value == pytest.approx(value.score) and got.se > 0 and got.n == 3, metric.name
        assert metric.score(HYPS, first) == got  # plain strings are lists of one
    bleu = BLEU("fin").score(HYPS, first)
    assert bleu.signature == f"bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|lang:fin|v:{sacrebleu.__version__}"
    single = [sacrebleu.sentence_chrf(h, r).score for h, r in zip(HYPS, REFS, strict=True)]
    assert ChrF("fin").per_example(HYPS, REFS) == pytest.approx(single)
    assert BLEU("fin").score(HYPS[:1], REFS[:1]).se is None
    assert ChrF("fin", 2).name == "chrf++" and "|nw:2|" in ChrF("fin", 2).signature and "|case:lc|" in BLEU4("deu").signature


def test_several_references_and_summed_statistics_give_the_library_s_score(monkeypatch, tmp_path):
    import sacrebleu

    monkeypatch.setenv("SACREBLEU", str(tmp_path))
    columns = [[r[i] if i < len(r) else None for r in REFS] for i in range(3)]
    for metric, value in ((BLEU("eng"), sacrebleu.corpus_bleu(HYPS, columns)), (ChrF("eng"), sacrebleu.corpus_chrf(HYPS, columns)),
                          (ChrF("eng", 2), sacrebleu.corpus_chrf(HYPS, columns, word_order=2)),
                          (BLEU4("eng"), sacrebleu.corpus_bleu(HYPS, columns, lowercase=True))):
        assert "|nrefs:1|" in metric.signature
        rows = metric.statistics(HYPS, REFS)
        assert value_of(metric.name, [sum(column) for column in zip(*rows, strict=True)]) == pytest.approx(value.score), metric.name
        got = metric.score(HYPS, REFS)
        assert got.value == pytest.approx(value.score) and "|nrefs:var|" in got.signature
        assert metric.score(HYPS, REFS, clusters=["a", "a", "a"]).se is None
        twice = metric.score(HYPS * 2, REFS * 2, clusters=[0, 1, 2, 0, 1, 2])
        if metric.name.startswith("chrf"):  # a ratio of sums: two copies say no more than one
            assert twice.se == pytest.approx(got.se)
        with pytest.raises(ValueError, match="each needs one or more"):
            metric.score(["a"], [[]])


def test_flores200_comes_from_a_local_file(monkeypatch, tmp_path):
    import sacrebleu
    import sentencepiece

    monkeypatch.setenv("SACREBLEU", str(tmp_path / "none"))
    text = tmp_path / "text"
    text.write_text("the cat is on the mat\na dog barked at me\nthe house is big and old\n" * 20)
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(tmp_path / "spm"), vocab_size=28, minloglevel=2)
    model, first = tmp_path / "spm.model", [r[0] for r in REFS]
    spm = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = [[" ".join(spm.encode(t, out_type=str)) for t in column] for column in (HYPS, first)]
    got = BLEU("tha", str(model)).score(HYPS, first)
    assert got.value == pytest.approx(sacrebleu.corpus_bleu(pieces[0], [pieces[1]], tokenize="none").score)
    assert "|tok:flores200:" in got.signature and bleu_tokenizer("tha", str(model)) == "flores200"
    assert "|tok:char|" in BLEU("tha").signature and not (tmp_path / "none").exists()
    with pytest.raises(XalignError, match=r"metric\.flores200=nowhere: no such file"):
        bleu_tokenizer("tha", "nowhere")
    with pytest.raises(XalignError, match="not a sentencepiece model"):
        BLEU("tha", str(text))
    home = tmp_path / "none" / "models"
    home.mkdir(parents=True)
    (home / "flores200sacrebleuspm").write_bytes(model.read_bytes())
    assert BLEU("tha").score(HYPS, first).value == got.value


def test_each_language_gets_its_own_tokenizer(monkeypatch, tmp_path):
    monkeypatch.setenv("SACREBLEU", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [bleu_tokenizer(lang) for lang in ("fin", "zho", "tha", "jpn", "kor")] == ["13a", "zh", "char", "char", "13a"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert [bleu_tokenizer(lang) for lang in ("jpn", "kor")] == ["ja-mecab", "ko-mecab"]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "flores200sacrebleuspm").touch()
    assert bleu_tokenizer("jpn") == bleu_tokenizer("fin") == "flores200"


def test_off_target_judges_long_texts_and_other_scripts_and_leaves_the_rest():
    fin, eng = "Keittiön lamppu on päällä ja ovi on kiinni.", "The lamp in the kitchen is on and the door is closed."
    texts = [fin, eng, "Helsinki", "Helsinki", "東京", eng, "42", "Хельсинки"]
    langs = ["fin", "fin", "fin", "jpn", "jpn", "jpn", "jpn", "fin"]
    assert OffTarget().per_example(texts, langs) == [0, 1, None, 1, 0, 1, None, None]
    got = OffTarget().score(texts, langs)
    assert (got.value, got.n) == (3 / 5, 5)
    assert LANGUAGES["nob"].cld3 == LANGUAGES["dan"].cld3 == ("no", "nb", "nn", "da") and LANGUAGES["ind"].cld3 == ("id", "ms")
    assert ("hr", "sr", "bs") in CONFUSABLE and LANGUAGES["slv"].cld3 == ("sl",) and LANGUAGES["zho"].cld3 == ("zh",)
    danish = "Jeg har ikke haft tid til at læse bogen endnu, men jeg gør det i morgen."
    croatian = "Nisam imao vremena pročitati knjigu, ali učinit ću to sutra ujutro kada se probudim."
    assert OffTarget().per_example([danish, danish, croatian], ["nob", "deu", "slv"]) == [0, 1, 1]
    malay = "Lampu di dapur masih menyala dan pintu rumah sudah ditutup."
    assert OffTarget().per_example([malay], ["ind"]) == [0]


def test_a_resample_without_any_match_has_an_error_all_the_same():
    right = ["the house is big and old", "a cat sat on the red mat"]
    for metric in (BLEU("eng"), ChrF("eng")):  # half of the resamples hold the hopeless one alone or twice
        got = metric.score([right[0], "zzz"], right)
        assert got.value > 0 and got.se > 0, metric.name
        assert metric.score(right, right).value == pytest.approx(100)
