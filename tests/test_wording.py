"""The words of the benchmarks' prompts in every language, and the answers to such prompts."""
from __future__ import annotations

import re

import pytest
import yaml

from xalign.langid import judge, script_share
from xalign.languages import LANGUAGES
from xalign.tasks.qa import short_answer
from xalign.tasks.wording import FILE, language_name, say, words

PLACES = {"context": "text", "question": "text", "article": "text", "title": "text", "query": "text", "ad": "text", "page": "text",
          "sentence": "n text", "topic_question": "options",
          **{key: "language" for key in ("qa", "closed", "summary", "title_question", "write_question")}}
LISTS = {"nli_options", "yes_also", "no_also"}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_words_of_every_language_are_whole_and_in_that_language(lang):
    block = words(lang)
    assert block.keys() == words("eng").keys() and len(block) == 24
    for key, value in block.items():
        texts = value if key in LISTS else [value]
        assert isinstance(value, list) == (key in LISTS) and all(isinstance(t, str) and (t.strip() or key in LISTS) for t in texts)
        for text in texts:
            assert set(re.findall(r"\{(\w*)\}", text)) == set(PLACES.get(key, "").split()), f"{lang} {key}"
            filled = re.sub(r"\{(text|n|options)\}", "", text).replace("{language}", language_name(lang, lang))
            assert script_share(filled, lang) == 1, f"{lang} {key}: {filled}"
            assert key in LISTS or judge(filled, lang) is not False, f"{lang} {key}: {filled}"
            assert key not in ("qa", "closed", "summary") or judge(filled, lang), f"{lang} {key}: {filled}"
    options = block["nli_options"]
    assert len(options) == 3 and options[0] == block["yes"] and options[2] == block["no"]
    # each option is offered in the question, and none begins another: the longer one could never win by raw log-likelihood
    assert all(option in block["nli_question"] for option in options)
    assert not any(a != b and a.startswith(b) for a in options for b in options)
    assert re.search(r"[:：៖]$", block["answer"]) and block["yes"] != block["no"]
    assert not {*block["yes_also"], block["yes"]} & {*block["no_also"], block["no"]}


def test_only_the_languages_have_words():
    assert list(yaml.safe_load(FILE.read_text(encoding="utf-8"))) == list(LANGUAGES)


def test_a_template_is_filled_once_and_names_languages_in_its_own():
    assert say("deu", "question", text="Was ist {text}?") == "Frage: Was ist {text}?"
    assert say("deu", "qa", language="fin").endswith("Antworte auf Finnisch.")
    assert say("jpn", "closed", language="jpn").endswith("日本語で答えてください。")
    assert say("hun", "sentence", n=2, text="Jó.") == "2. mondat: Jó."


@pytest.mark.parametrize("raw, langs, answer", [
    ("1902.", ["eng"], "1902."), (" Answer: 1902\nBecause it says so.", ["deu", "eng"], "1902"),
    ("ANTWORT : „im Jahr 1902“", ["deu"], "im Jahr 1902"), ("回答：「富士山」", ["jpn"], "富士山"),
    ("ចម្លើយ៖ ភ្នំពេញ", ["khm"], "ភ្នំពេញ"),
    ("Réponse : «Paris»", ["fra"], "Paris"),
    ('"A" and "B"', ["eng"], '"A" and "B"'), ("the answer: 3", ["eng"], "the answer: 3"), ("Answers", ["eng"], "Answers"),
    ("", ["eng"], ""),
])
def test_the_answer_is_taken_out_of_what_was_generated(raw, langs, answer):
    assert short_answer(raw, langs) == answer
