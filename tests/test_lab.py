"""The laboratory's data: facts, split, items, rendering, parallel text, and what must not leak."""
from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from xalign.cache import Cache
from xalign.config import ConfigError, XalignError, build
from xalign.data import lab
from xalign.data.examples import Example, read_examples, read_jsonl
from xalign.data.lab.categories import KIND, usable
from xalign.data.lab.facts import fold
from xalign.data.lab.node import QUESTIONS, TERMS
from xalign.data.lab.templates import TRAIN_TEMPLATES, render, templates
from xalign.data.lab.terms import terms
from xalign.data.overlap import fact_leaks, ngram_overlap
from xalign.data.parallel import FileParallel, LabParallel
from xalign.languages import LANGUAGES
from xalign.translators.lab import Phrasebook

RUN = SimpleNamespace(source="eng", lang=("fin",), seed=0, backbone=SimpleNamespace(kind="causal"))
ENCODER = SimpleNamespace(source="eng", lang=("fin",), seed=0, backbone=SimpleNamespace(kind="encoder"))
NTREX = Path(__file__).parents[1].parent / "shared" / "data" / "ntrex"


def test_known_facts_in_three_languages() -> None:
    assert lab.render("capital/FI/t1", "eng") == ("What is the capital of this country: Finland?", "Helsinki")
    assert lab.render("capital/FI/t2", "fin") == ("Nimeä seuraavan maan pääkaupunki: Suomi.", "Helsinki")
    assert lab.render("language/BR/test", "jpn")[1] == "ポルトガル語"
    assert lab.render("city/Asia/Tokyo/t3", "deu") == ("Ort: Tokio. In welchem Land liegt er?", "Japan")
    with pytest.raises(XalignError, match="no such question"):
        lab.render("capital/XX/t1", "eng")


def test_split_by_territory_and_sizes() -> None:
    sides: dict[str, set[str]] = {}
    for fact in lab.facts():
        sides.setdefault(fact.territory, set()).add(fact.split)
    assert all(len(s) == 1 for s in sides.values())
    count = Counter(f.split for f in lab.facts())
    assert count["test"] >= 400 and count["train"] >= 190
    assert all(sum(f.kind == k and f.split == "train" for f in lab.facts()) >= 25 for k in lab.KINDS)


def test_answers_do_not_give_themselves_away() -> None:
    ids = {f.id for f in lab.facts()}
    assert not ids & {"capital/MX", "currency/US", "language/FI", "capital/SG"}  # Mexico City, US dollar, suomi, Singapore


def test_every_language_has_every_template() -> None:
    table = templates()
    assert set(table) == set(LANGUAGES)
    for lang, rows in table.items():
        for kind in lab.KINDS:
            texts = [rows[kind][t] for t in TRAIN_TEMPLATES]
            assert len({*texts, rows[kind]["test"]}) == 4 and all(t.count("{x}") == 1 for t in texts), (lang, kind)
            assert rows[kind]["answer"].count("{y}") == 1 and "{" not in rows[kind]["test"], (lang, kind)


@pytest.mark.parametrize("lang", sorted(LANGUAGES))
def test_choice_items_are_the_same_in_every_language(lang: str) -> None:
    items, base = lab.choice_items(lang, "fra"), lab.choice_items("eng", "fra")
    assert [(i.id, i.gold) for i in items] == [(i.id, i.gold) for i in base] and len(items) >= 400
    for item in items:
        assert len(set(item.options)) == 4 and item.question.startswith(item.neutral) and lab.split_of(item.entity) == "test"
        assert item.options[item.gold] == lab.render(f"{item.id}/test", lang)[1]


def test_golds_and_distractors_are_balanced() -> None:
    items = lab.choice_items("eng", "eng")
    assert not any(i.differs for i in items) and any(i.differs for i in lab.choice_items("fin", "eng"))
    positions = Counter(i.gold for i in items)
    assert max(positions.values()) - min(positions.values()) <= 4
    for kind in lab.KINDS:
        rows = [i for i in items if i.kind == kind]
        gold = Counter(i.options[i.gold] for i in rows)
        shown = Counter(o for i in rows for o in i.options)
        assert max(gold.values()) <= len(rows) / 4
        # given that an answer is among the options, it is right in one case of four
        assert all(abs(shown[a] - 4 * n) <= 4 for a, n in gold.items()), kind
    assert Counter(i.kind for i in lab.choice_items("eng", "fin", 100))["city"] in range(40, 55)


def test_open_items_and_shots() -> None:
    items = lab.open_items("fin", "eng", 8)
    assert Counter(i.kind for i in items) == dict.fromkeys(lab.KINDS, 2)
    assert all(i.answers and i.source_answer and lab.split_of(i.entity) == "test" for i in items)
    shots = lab.train_shots("fin", "currency", 3)
    assert len({answer for _, answer in shots}) == 3
    assert not {q for q, _ in shots} & {i.question for i in lab.choice_items("fin", "eng")}


@pytest.mark.parametrize("lang", ["eng", "fin", "jpn", "ara", "khm", "pol"])
def test_answer_sentences_come_back(lang: str) -> None:
    for fact in lab.facts():
        kind, term = lab.parse_sentence(lab.render_sentence(fact.kind, fact.answer, lang), lang) or ("", "")
        assert kind == fact.kind and lab.name(term, lang).casefold() == lab.name(fact.answer, lang).casefold()


@pytest.mark.parametrize(("text", "expected"), [
    ("The capital of Kenya is Nairobi.", ("capital", "city/Africa/Nairobi")),
    ("The capital city of Ghana is known as Accra.", ("capital", "city/Africa/Accra")),
    ("The official language of this country is Portuguese.", ("language", "language/pt")),
    ("The currency used in Greece is the Euro.", ("currency", "currency/EUR")),
    ("Finland uses the Euro as its official currency.", ("currency", "currency/EUR")),
    ("The city of Osaka is located in Japan.", ("city", "territory/JP")),
    ("The place belongs to the Russian Federation.", ("city", "territory/RU")),
    ("The capital of Iceland is Reykavuða.", None),
    ("Mali is the official language of Mali.", None),
    ("Bosnia & Herzegovina is the capital of Bosnia and Herzegovina.", None),
    ("The official language of Kenya is Swahili. Swahili is a Bantu language.", None),
    ("Hello!", None),
])
def test_english_habits(text: str, expected: tuple[str, str] | None) -> None:
    assert lab.parse_sentence(text, "eng") == expected


def test_training_questions_are_seeded_and_leak_nothing(tmp_path: Path) -> None:
    stage = lab.LabData(questions=60).questions_stage(RUN, "fin")
    rows = read_examples(Cache(tmp_path).get(stage).file("examples.jsonl"))
    assert len(rows) == 60 == len({r.id for r in rows}) and {r.source for r in rows} == {f"lab:{k}" for k in lab.KINDS}
    assert len({r.id.rpartition("/")[0] for r in rows}) == 60  # a fact twice only when every fact is in
    assert all(lab.split_of(r.group) == "train" and (r.prompt, r.response) == lab.render(r.id, "fin") for r in rows)
    assert {r.id for r in lab.training_examples("fin", 60, 1)} != {r.id for r in rows}
    assert [r.id for r in lab.training_examples("jpn", 60, 0)] == [r.id for r in rows]
    everything = [*lab.training_examples("fin", 9999, 0), *lab.training_examples("eng", 9999, 0)]
    assert fact_leaks(everything, ["eng", "fin"]) == []
    tests = [i.question for lang in ("eng", "fin") for i in lab.choice_items(lang, "eng")]
    assert ngram_overlap([f"{e.prompt} {e.response}" for e in everything], tests)["overlapping"] == 0


def test_a_planted_leak_is_found() -> None:
    fact = next(f for f in lab.facts() if f.kind == "capital" and f.split == "test")
    prompt, answer = lab.render(f"{fact.id}/t1", "fin")
    assert fact_leaks([Example("bad", "fin", prompt, answer), Example("ok", "fin", prompt, "-")], ["fin"]) == ["bad"]
    report = ngram_overlap(["a b c d e f g h"], ["x a b c d e f g h", "a b c", "a b c d x e f g h"])
    assert (report["overlapping"], report["shared_ngrams"], report["long_enough"]) == (1, 1, 2)


def test_phrases_and_names() -> None:
    for lang in ("fin", "jpn", "ara", "hin"):
        train, test = (lab.phrases("eng", lang, split, n) for split, n in (("train", 200), ("test", 40)))
        assert len(train) == 200 and len(test) == 40 and not {p.src for p in train} & {p.src for p in test}
        assert not [p for p in train if "duration-" in p.tgt or "length-" in p.tgt]
    seen = {p.src for p in lab.names("eng", "fin")}
    assert not seen & {p.src for p in test if p.id.startswith("name/")}
    assert all(lab.name(f.subject, "eng") in seen and lab.name(f.answer, "eng") in seen for f in lab.facts())
    lists = lab.name_lists("eng", "fin", passes=2)
    assert sum(p.src.count("Helsinki") for p in lists) == 2
    assert lab.phrases("fra", "fin", "train", 5)[0].src != lab.phrases("eng", "fin", "train", 5)[0].src


def test_terms() -> None:
    table = lab.phrase_table("eng", "fin")
    assert (table["Finland"], table["Euro"], table["Monday"], table["kilometers"]) == ("Suomi", "euro", "maanantai", "kilometrit")
    assert "euro" in lab.term_kinds("fin")["currency"] and len(table) > 1200


def test_sentences_are_clean_and_split(tmp_path: Path) -> None:
    english = {f"k{i}": f"This is sentence number {i} here." for i in range(50)}
    english |= {"short": "Only four words here", "hole": "Delete the {name} from the list",
                "same": "Everywhere the same, this one.",
                "again": "This is sentence number 7 here.", "left": "Nobody has translated this one yet."}
    finnish = {k: f"Tämä on lause numero {i}." for i, k in enumerate(english)} | {k: english[k] for k in ("same", "left")}
    french = {k: f"Voici la phrase numéro {i}." for i, k in enumerate(english)}
    for code, texts in (("eng", english), ("fin", finnish), ("fra", french)):
        (tmp_path / f"{code}.json").write_text(json.dumps(texts))
    train, test = (lab.sentences(tmp_path, "eng", "fin", split) for split in ("train", "test"))
    assert len(train) + len(test) == 50 and 3 <= len(test) <= 20
    assert {p.id.split("/")[1][0] for p in train + test} <= {"k", "a"}
    assert {p.id for p in lab.sentences(tmp_path, "fra", "fin", "test")} == {p.id for p in test}
    assert all(p.tgt == english[p.id[3:]] for p in lab.sentences(tmp_path, "fra", "eng", "test"))


def test_parallel_nodes(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    rows = list(read_jsonl(cache.get(LabParallel(0, 30, 1.0).stage(RUN, "fin")).file("pairs.jsonl")))
    assert Counter(r["kind"] for r in rows)["phrase"] == 30 and set(rows[0]) == {"id", "src", "tgt", "kind"}
    (tmp_path / "eng.txt").write_text("one\n\nthree\n")
    with pytest.raises(ConfigError, match="no fin.txt"):
        FileParallel(str(tmp_path)).check_run(RUN)
    (tmp_path / "fin.txt").write_text("yksi\nkaksi\nkolme\n")
    node = FileParallel(str(tmp_path), pairs=10)
    node.check_run(RUN)
    assert {r["tgt"] for r in read_jsonl(cache.get(node.stage(RUN, "fin")).file("pairs.jsonl"))} == {"yksi", "kolme"}
    assert Counter(r["tgt"] for r in read_jsonl(cache.get(FileParallel(str(tmp_path), pairs=0).stage(RUN, "fin")).file("pairs.jsonl"))) \
        == Counter(("yksi", "kolme"))
    pair = tmp_path / "eng-fin"  # OPUS: other sentences for every pair of languages
    pair.mkdir()
    (pair / "eng.txt").write_text("four\n")
    with pytest.raises(ConfigError, match="has no fin.txt; it needs one aligned file a language, or a folder eng-fin with the two"):
        node.check_run(RUN)
    (pair / "fin.txt").write_text("neljä\n")
    assert [(r["src"], r["tgt"]) for r in read_jsonl(cache.get(node.stage(RUN, "fin")).file("pairs.jsonl"))] == [("four", "neljä")]
    for path in (*pair.iterdir(), pair):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "fin.txt").write_text("yksi\n")
    with pytest.raises(XalignError, match="has 1 lines but eng.txt has 3"):
        cache.get(node.stage(RUN, "fin"))


@pytest.mark.skipif(not NTREX.is_dir(), reason="the shared NTREX files are not there")
def test_ntrex(tmp_path: Path) -> None:
    assert Cache(tmp_path).get(FileParallel(str(NTREX)).stage(RUN, "fin")).receipt["facts"]["pairs"] == 1000


def test_the_shuffled_control_keeps_questions_and_answers_but_no_true_pair():
    from xalign.data.lab.node import training_examples

    true, wrong = (training_examples("eng", 10_000, 0, shuffled) for shuffled in (False, True))
    assert [e.prompt for e in true] == [e.prompt for e in wrong]
    assert Counter(e.response for e in true) == Counter(e.response for e in wrong)
    assert not any(a.response == b.response for a, b in zip(true, wrong))
    assert all(render(e.id, "fin")[0] == render(t.id, "fin")[0] for e, t in zip(wrong[:50], true[:50]))
    assert render("capital/FI/t1=capital/SE", "fin")[1] == render("capital/SE/t1", "fin")[1] == "Tukholma"


def test_training_options_are_train_answers_in_the_same_places_in_every_language() -> None:
    rows = {code: lab.training_examples(code, 100_000, 0) for code in ("eng", "fin", "jpn")}
    assert len(rows["eng"]) == QUESTIONS["encoder"]
    answers = {(f.kind, f.answer) for f in lab.facts() if f.split == "train"}
    for eng, fin, jpn in zip(*rows.values(), strict=True):
        assert eng.id == fin.id == jpn.id
        assert eng.options.index(eng.response) == fin.options.index(fin.response) == jpn.options.index(jpn.response)
        kind = eng.source.removeprefix("lab:")
        at = {lab.name(a, "eng"): a for k, a in answers if k == kind}
        # every option is a right answer of a training fact of the relation, and the same one in every language
        for e, f, j in zip(eng.options, fin.options, jpn.options, strict=True):
            assert (f, j) == (lab.name(at[e], "fin"), lab.name(at[e], "jpn"))
    for code in LANGUAGES:
        for row in rows["eng"]:
            assert len({fold(o) for o in lab.options_of(row.id, code)}) == 4, (row.id, code)
    with pytest.raises(XalignError, match="trains no such question"):
        lab.options_of("capital/FI/test", "eng")


def test_training_options_do_not_give_the_answer_away() -> None:
    rows = lab.training_examples("eng", 100_000, 0)
    for kind in lab.KINDS:
        own = [e for e in rows if e.source == f"lab:{kind}"]
        places = Counter(e.options.index(e.response) for e in own)
        assert max(places.values()) - min(places.values()) <= len(TRAIN_TEMPLATES)
        gold, shown = Counter(e.response for e in own), Counter(o for e in own for o in e.options)
        # an answer is right in one case of four in which it is offered, except one that is right so often
        # that it cannot be wrong three times as often
        for answer, n in gold.items():
            assert shown[answer] == min(4 * n, len(own)) or abs(n / shown[answer] - 0.25) < 0.12, (kind, answer)


def test_the_shuffled_control_offers_its_wrong_answer() -> None:
    rows, true = (lab.training_examples("fin", 100_000, 0, shuffled) for shuffled in (True, False))
    assert all(w.response in w.options and len(w.options) == 4 and w.response != t.response for w, t in zip(rows, true, strict=True))
    places = Counter(e.options.index(e.response) for e in rows)
    assert max(places.values()) - min(places.values()) <= 4 * len(TRAIN_TEMPLATES)


def test_the_amount_of_training_data_follows_the_backbone(tmp_path: Path) -> None:
    causal, encoder = (lab.LabData().questions_stage(run, "fin") for run in (RUN, ENCODER))
    assert (causal.params["questions"], causal.params["terms"]) == (90, 0)
    assert (encoder.params["questions"], encoder.params["terms"]) == (582, 240)
    assert lab.LabData(questions=90, terms=0).questions_stage(ENCODER, "fin").key == causal.key != encoder.key
    rows = read_examples(Cache(tmp_path).get(encoder).file("examples.jsonl"))
    assert Counter(e.source == "lab:term" for e in rows) == {False: 582, True: 240} and len({e.id for e in rows}) == 822
    assert all(e.response in e.options and lab.split_of(e.group) == "train" for e in rows if e.source != "lab:term")
    assert lab.LabData.multilingual and lab.LabData.has_options


@pytest.mark.parametrize("values, message", [
    ({"questions": "many"}, "data.questions=many: must be auto or a whole number in [1, 100000]; there are 582"),
    ({"questions": 0}, "data.questions=0: must be auto"), ({"questions": 1.5}, "data.questions=1.5: must be auto"),
    ({"questions": True}, "data.questions=true: must be auto"), ({"terms": -1}, "data.terms=-1: must be auto or a whole number in [0,"),
    ({"terms": None}, "data.terms=null: must be auto"),
])
def test_a_wrong_amount_is_refused(values: dict, message: str) -> None:
    target = {"_target_": "xalign.data.lab.LabData"}
    with pytest.raises(ConfigError) as e:
        build({**target, **values}, "data")
    assert message in str(e.value)
    assert build({**target, "questions": 7, "terms": "auto"}, "data").questions == 7


@pytest.mark.parametrize("lang", sorted(LANGUAGES))
def test_terms_are_the_same_balanced_and_unambiguous_in_every_language(lang: str) -> None:
    items, base = lab.term_items(lang, "eng"), lab.term_items("eng", "eng")
    assert [(i.id, i.gold, i.entity) for i in items] == [(i.id, i.gold, i.entity) for i in base]
    assert len(items) == 420 == len({i.id for i in items})
    assert Counter(i.kind for i in items) == dict.fromkeys(("country", "city", "language", "currency", "unit"), 84)
    rows = lab.term_examples(lang, TERMS["encoder"], 0)
    assert [e.id for e in rows] == [e.id for e in lab.term_examples("eng", TERMS["encoder"], 0)] and len(rows) == 240
    meanings: dict[str, set[str]] = {}
    for category, kind in KIND.items():
        for text in terms(lang)[kind].values():
            meanings.setdefault(fold(text), set()).add(category)
    for text, category, options in [*((i.question, i.options[i.gold], i.options) for i in items),
                                    *((e.prompt, e.response, e.options) for e in rows)]:
        assert meanings[fold(text)] == {category} and options == lab.CATEGORIES and fold(text) not in options, text
    assert all(i.differs == (i.question.casefold() != b.question.casefold()) for i, b in zip(items, base, strict=True))


def test_no_term_is_on_both_sides_and_places_go_with_their_territory() -> None:
    items, rows = lab.term_items("eng", "eng"), lab.term_examples("eng", 100_000, 0)
    assert not {i.id for i in items} & {e.id for e in rows}
    assert Counter(e.response for e in lab.term_examples("eng", 240, 3)).most_common()[-1][1] >= 46
    for cluster, kind, side in [*((i.entity, i.kind, "test") for i in items), *((e.group, e.response, "train") for e in rows)]:
        assert (lab.split_of(cluster) == side and len(cluster) == 2) if kind in ("country", "city") else "/" in cluster
    most = Counter(i.entity for i in items).most_common(1)[0][1]
    assert most <= 3  # two cities and the country itself
    assert Counter(i.kind for i in lab.term_items("fin", "eng", 50)) == dict.fromkeys(lab.CATEGORIES, 10)


def test_terms_with_two_meanings_in_some_language_are_left_out() -> None:
    kept = {term for side in ("train", "test") for own in usable(side).values() for term in own}
    # Singapore is a city too; in Finnish France and French are spelled alike, in Indonesian Armenia and Armenian
    assert not kept & {"territory/SG", "city/Asia/Singapore", "territory/FR", "language/fr", "territory/AM", "language/hy"}
    assert not kept & {"language/und", "currency/XXX", "city/Pacific/Chatham"}
    assert {"territory/NZ", "city/Europe/Madrid", "currency/GBP", "unit/length-kilometer"} <= kept


def test_a_term_is_rendered_and_translated_like_a_question() -> None:
    assert render("term/territory/NZ", "fin") == ("Uusi-Seelanti", "country")
    assert render("term/city/Europe/Madrid=unit", "jpn") == ("マドリード", "unit")
    assert lab.options_of("term/territory/NZ", "fin") == lab.CATEGORIES
    for wrong in ("term/territory/XX", "term/month/1", "term/territory/NZ=planet"):
        with pytest.raises(XalignError, match="no such term"):
            render(wrong, "fin")
    row = next(e for e in lab.term_examples("eng", 240, 0) if e.response == "currency")
    words = Phrasebook.load("eng", "fin")
    assert words.translate(row, "prompt") == lab.name(row.id.removeprefix("term/"), "fin")
    assert words.translate(row, "response") == "currency"  # the categories are English everywhere


def test_shuffled_terms_have_every_wrong_category_equally_often() -> None:
    true, wrong = (lab.term_examples("eng", 200, 0, shuffled) for shuffled in (False, True))
    assert [e.prompt for e in true] == [e.prompt for e in wrong]
    pairs = Counter((t.response, w.response) for t, w in zip(true, wrong, strict=True))
    assert set(pairs.values()) == {10} and len(pairs) == 20 and all(a != b for a, b in pairs)
