"""Every reader of users' files against every way in which a file can be wrong: refused by file and line, or read as the clean file is."""
from __future__ import annotations

import gzip
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from readers import ARTICLE, MKQA, PREMISE, QUESTION, READERS, SQUAD, XNLI, Reader, lines, run_of

from xalign.cache import Cache
from xalign.config import XalignError
from xalign.data.alpaca import AlpacaData
from xalign.data.codeswitch import Dictionary
from xalign.data.parallel import FileParallel
from xalign.tasks.flores import FloresTask, NtrexTask
from xalign.tasks.learned import answers
from xalign.tasks.pawsx import PawsXTask
from xalign.tasks.trainrows import XnliRows


def inside(reader: Reader, insert: bytes) -> bytes:
    """The file with something put into its last record's text."""
    at = reader.clean.rindex(reader.spot) if reader.spot else max(m.start() for m in re.finditer(b"[a-z]", reader.clean))
    return reader.clean[:at] + insert + reader.clean[at:]


def last_line(data: bytes) -> int:
    return len(data.rstrip(b"\n").split(b"\n"))


ALL = list(READERS)
JSONL = [n for n, r in READERS.items() if r.kind == "jsonl"]
JSON = [n for n, r in READERS.items() if r.kind in ("jsonl", "json")]


def refused(reader: Reader, folder: Path, content: bytes | None, *words: str) -> str:
    path = reader.put(folder, content)
    with pytest.raises(XalignError) as e:
        reader.read(folder)
    said = str(e.value)
    assert path.name in said and "\n" not in said and len(said) < 700, said
    assert ";" in said, f"no remedy: {said}"
    for word in words:
        assert word in said, said
    return said


@pytest.mark.parametrize("name", ALL)
def test_other_encodings_and_binary_files_are_refused_by_line(tmp_path, name):
    reader = READERS[name]
    data = reader.clean
    refused(reader, tmp_path, inside(reader, b"\xe4"), f":{last_line(data)}" if reader.kind in ("text", "jsonl") else "", "UTF-8")
    refused(reader, tmp_path, data.decode().encode("utf-16"), "UTF-8")
    refused(reader, tmp_path, data.decode().encode("utf-16-le"), "UTF-8")
    refused(reader, tmp_path, gzip.compress(data), "gzip")
    refused(reader, tmp_path, b"PAR1\x15\x00" + data, "Parquet")
    refused(reader, tmp_path, b"PK\x03\x04" + data, "zip")
    refused(reader, tmp_path, inside(reader, b"\0"), f":{last_line(data)}" if reader.kind in ("text", "jsonl") else "", "NUL")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"], ids=["nothing", "blank lines", "a byte order mark"])
def test_a_file_that_holds_nothing_is_refused(tmp_path, name, content):
    if READERS[name].kind == "own":
        pytest.skip("no answers: the row says so")
    refused(READERS[name], tmp_path, content)


@pytest.mark.parametrize("name", ALL)
def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path, name):
    reader = READERS[name]
    reader.put(tmp_path)
    clean = reader.read(tmp_path)
    for data in (b"\xef\xbb\xbf" + reader.clean, reader.clean.replace(b"\n", b"\r\n"), reader.clean.replace(b"\n", b"\r"),
                 reader.clean.rstrip(b"\n")):
        reader.put(tmp_path, data)
        assert reader.read(tmp_path) == clean


@pytest.mark.parametrize("name", ALL)
def test_signs_that_end_no_line_stay_in_the_text(tmp_path, name):
    """Python's str.splitlines would cut a record in two at each of them."""
    reader = READERS[name]
    if reader.kind in ("yaml", "own"):
        pytest.skip("YAML has line ends of its own")
    reader.put(tmp_path)
    clean = reader.read(tmp_path)
    reader.put(tmp_path, inside(reader, "\u2028\u2029\x85".encode() + (b"" if "json" in reader.kind else b"\x0b\x0c\x1c\x1e\r")))
    odd = reader.read(tmp_path)
    assert size(odd) == size(clean) and odd != clean


def size(found: Any) -> list[int] | int:
    return [len(x) for x in found] if isinstance(found, tuple) else len(found)


@pytest.fixture
def impatient() -> Iterator[None]:
    """An alarm fails the test."""
    def waiting(*_: Any) -> None:
        pytest.fail("the reader waits for a pipe, or reads a device without end")

    before = signal.signal(signal.SIGALRM, waiting)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ALL)
def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path, impatient, name):
    reader = READERS[name]
    if reader.kind == "own":
        pytest.skip("may be a run's folder; what is not there has no answers")
    for make in (Path.mkdir, os.mkfifo, lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to("gone"),
                 lambda p: p.symlink_to(p.name)):
        path = reader.put(tmp_path)
        path.unlink()
        make(path)
        signal.alarm(5)
        with pytest.raises(XalignError) as e:
            reader.read(tmp_path)
        signal.alarm(0)
        assert path.name in str(e.value) and "\n" not in str(e.value)
        path.rmdir() if path.is_dir() else path.unlink()


def more(reader: Reader, member: str) -> bytes:
    """The file with one more member in its last record's object (of a JSON file: in its first object)."""
    text = reader.clean.decode()
    at = text.rindex("\n{") + 1 if reader.kind in ("jsonl", "own") else text.index("{")
    return f"{text[:at + 1]}{member}, {text[at + 1:]}".encode()


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize(("member", "word"), [
    ('"zz": NaN', "NaN"), ('"zz": -Infinity', "-Infinity"), (r'"zz": "a\ud83d"', r"\ud83d"), (r'"zz": "\udE00\uD83D"', r"\udE00"),
    (r'"zz": {"\udfff": 1}', r"\udfff"), (r'"zz": "\u0000"', "NUL"), ('"zz": 1, "zz": 2', "'zz' twice"), (f'"zz": {"9" * 5000}', "digits"),
    (f'"zz": {"[" * 100_000}{"]" * 100_000}', "nested too deeply"), ('"zz": 01', "not valid JSON"), ("'zz': 1", "not valid JSON"),
    ('"zz": "a\tb"', "not valid JSON"),
], ids=["NaN", "infinity", "half a pair", "a pair turned round", "half a pair in a key", "NUL", "twice", "digits", "deep", "zero",
        "quotes", "tab"])
def test_json_that_is_not_what_it_seems_is_refused(tmp_path, name, member, word):
    reader = READERS[name]
    refused(reader, tmp_path, more(reader, member), word, f":{last_line(reader.clean)}: " if reader.kind == "jsonl" else "")


@pytest.mark.parametrize("name", JSON)
def test_json_that_only_looks_odd_is_taken(tmp_path, name):
    reader = READERS[name]
    reader.put(tmp_path)
    clean = reader.read(tmp_path)
    for member in (r'"zz": "\ud83d\ude00 \\ud800 \\u0000"', f'"zz": {"[" * 50}{"]" * 50}', '"zz": 1e999', f'"zz": {"9" * 4000}',
                   '"zz": "\u2028\u0085\U0001f600e\u0301"'):
        reader.put(tmp_path, more(reader, member))
        assert reader.read(tmp_path) == clean


def test_what_the_program_wrote_itself_may_hold_nan_and_nul(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(lines(r'{"id": "a", "prediction": "\u0000", "logp": [NaN, -Infinity]}'))
    assert [r["prediction"] for r in answers(path, "mi_eval", "deu")] == ["\0"]
    path.write_bytes(lines({"id": "a", "prediction": "b"}, r'{"id": "b", "prediction": "\ud800"}'))
    with pytest.raises(XalignError, match=r"predictions\.jsonl:2: holds half a surrogate pair"):
        answers(path, "mi_eval", "deu")


@pytest.mark.parametrize("name", JSON)
def test_a_cut_file_and_the_wrong_kind_of_json_are_refused(tmp_path, name):
    reader = READERS[name]
    refused(reader, tmp_path, reader.clean[:-9], "not valid JSON")
    refused(reader, tmp_path, b"3\n")
    refused(reader, tmp_path, b'"text"\n')
    refused(reader, tmp_path, b"null\n")
    refused(reader, tmp_path, b'["a", "b"]\n')
    if name not in ("alpaca lines", "alpaca array"):  # which may be both
        rows = [json.loads(line) for line in reader.clean.splitlines()] if reader.kind == "jsonl" else [SQUAD]
        refused(reader, tmp_path, json.dumps(rows, indent=1).encode())
        refused(reader, tmp_path, lines(*rows, *rows) if reader.kind == "json" else json.dumps(rows[0], indent=1).encode())


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for key, part in inner for p in places(part, (*at, key)))] if at else [p for key, part in inner
                                                                                            for p in places(part, (key,))]


@pytest.mark.parametrize("name", JSON)
def test_no_value_of_another_type_gets_past_the_reader_as_an_error_of_ours(tmp_path, name):
    """Each value of the last record replaced by one of every other type, and left out: refused by file, or read."""
    reader = READERS[name]
    rows = [json.loads(line) for line in reader.clean.splitlines()] if reader.kind == "jsonl" else json.loads(reader.clean)
    root = rows[-1] if isinstance(rows, list) else rows
    refusals = 0
    for place in places(root):
        for value in (None, "x" * 2000, 5, -1, 1.5, True, "", "  ", "text", [], ["a"], {}, {"a": 1}, [[]], [None], ...):
            changed = json.loads(json.dumps(rows))
            holder = changed[-1] if isinstance(rows, list) else changed
            for key in place[:-1]:
                holder = holder[key]
            if value is ...:
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
            path = reader.put(tmp_path, lines(*changed) if reader.kind == "jsonl" else json.dumps(changed).encode())
            try:
                found = reader.read(tmp_path)
                assert all_text(found), (place, value)
            except XalignError as e:
                refusals += 1
                assert path.name in str(e) and len(str(e)) < 700, (place, value, str(e))
                assert reader.kind == "json" or f"{path}:{len(rows)}: " in str(e), (place, value, str(e))
    assert refusals >= 8


def all_text(found: Any) -> bool:
    """No prompt, option or reference that a tokenizer would choke on."""
    if isinstance(found, (tuple, list)):
        return all(all_text(x) for x in found)
    if isinstance(found, (str, int, dict)):
        return True
    texts = [getattr(found, k) for k in ("prompt", "response", "text", "question") if hasattr(found, k)]
    return all(isinstance(t, str) for t in [*texts, *getattr(found, "options", ()), *getattr(found, "references", ())])


@pytest.mark.parametrize(("name", "row", "words"), [
    ("alpaca lines", {"instruction": "a"}, ("has no 'output'", "Alpaca records have")),
    ("alpaca lines", {"instruction": "a", "input": None, "output": "b"}, ("'input' must be text, found null", "write it in quotes")),
    ("alpaca lines", {"instruction": " ", "output": "b"}, ("'instruction' is empty", "remove the record")),
    ("belebele", {**QUESTION, "correct_answer_num": 0}, ("correct_answer_num=0", "must be 1, 2, 3 or 4")),
    ("belebele", {**QUESTION, "correct_answer_num": "5"}, ("correct_answer_num=5", "official file")),
    ("belebele", {**QUESTION, "correct_answer_num": 1.0}, ("correct_answer_num=1.0",)),
    ("belebele", {k: v for k, v in QUESTION.items() if k != "correct_answer_num"}, ("correct_answer_num=null",)),
    ("belebele", {k: v for k, v in QUESTION.items() if k != "mc_answer4"}, ("'mc_answer4' is missing or empty",)),
    ("belebele", {**QUESTION, "flores_passage": ["a"]}, ("'flores_passage' must be text, found a list",)),
    ("xcopa", {**PREMISE, "label": 2}, ("label=2: must be 0 or 1",)),
    ("xcopa", {**PREMISE, "label": -1}, ("label=-1: must be 0 or 1",)),
    ("xcopa", {**PREMISE, "label": None}, ("label=null: must be 0 or 1",)),
    ("xcopa", {**PREMISE, "idx": 7}, ("idx=7: occurs a second time", "official file")),
    ("xcopa", {**PREMISE, "idx": None}, ("'idx' must be text or a whole number, found null",)),
    ("mkqa", MKQA, ("example_id=5: is here a second time", "official file")),
    ("mkqa", {**MKQA, "example_id": [5]}, ("'example_id' must be text or a whole number, found a list",)),
    ("mkqa", {**MKQA, "answers": {"de": [{"type": "date", "text": ["9"]}]}}, ("answers.de: needs a text", "official file")),
    ("mkqa", {**MKQA, "answers": {"de": [{"type": "date", "text": "9", "aliases": "neun"}]}}, ("a list of texts as aliases",)),
    ("mkqa", {**MKQA, "answers": {"en": MKQA["answers"]["de"]}}, ("'de' is missing",)),
    ("mi_eval", {"instruction": "Was?", "id": {}}, ("'id' must be text or a whole number, found an object",)),
    ("mi_eval", {"instruction": "Was?", "lang": "fin"}, ("lang=fin: is not German",)),
    ("mi_eval", {"instruction": "Was?", "input": 3}, ("'input' must be text, found a number",)),
    ("xlsum", {**ARTICLE, "text": None}, ("'text' is missing or empty",)),
])
def test_a_bad_record_is_named_by_its_line(tmp_path, name, row, words):
    reader = READERS[name]
    first = reader.clean.splitlines(keepends=True)[0]
    refused(reader, tmp_path, first + b"\n" + lines(row), f"{reader.name}:3: ", *words)


@pytest.mark.parametrize(("name", "line", "words"), [
    ("data=xnli", "Er kam.\tEr ging.\tmaybe", ("label 'maybe'", "official file")),
    ("data=xnli", "Er kam.\tEr ging.", ("has 2 columns",)),
    ("dictionary", "house;Haus", ("expected 'word TAB translation'", "one pair a line")),
    ("dictionary", "house\t", ("expected 'word TAB translation'",)),
    ("dictionary", "\tHaus", ("expected 'word TAB translation'",)),
    ("dictionary", "# all words of the list", ("expected 'word TAB translation'",)),
    ("dictionary", "house\tHaus\tnoun", ("expected 'word TAB translation'",)),
    ("parallel", "Und noch eine.", ("has 4 lines but eng.txt has 3", "aligned")),
    ("flores", "Und noch eine.", (":4: ends here, but", "one release")),
    ("ntrex", "", (":4: is empty", "aligned by line")),
    ("pawsx", "3\t\"Das Haus\tEin Baum .\t2", ("label=2: must be 0 or 1",)),
    ("pawsx", "2\tDas Haus .\tEin Baum .\t1", ("id=2: occurs a second time",)),
    ("pawsx", "3\tDas\tHaus .\tEin Baum .\t1", ("has 5 columns", "id, sentence1, sentence2, label")),
    ("xnli", "de\tneutral\tEs regnet.\tEs ist kalt.", ("has 4 columns",)),
    ("xnli", "de\tmaybe\tEs regnet.\tEs ist kalt.\t3", ("label 'maybe'",)),
    ("xnli", "de\tneutral\tEs regnet.\tEs ist kalt.\t2", ("pairID=2: occurs a second time",)),
    ("xglue nc", "a\tb\tweather", ("category 'weather': must be one of", "official file")),
    ("xglue wpr", "a\tb\tc\t5", ("relevance label '5': must be one of 0, 1, 2, 3, 4",)),
    ("xglue ner", "Wien I-CITY", ("must be a word, a space and one of",)),
    ("xglue pos", "Wien", ("must be a word, a space and one of",)),
    ("xglue qg", "Und noch eine.", (":4: ends here, but", "aligned by line")),
])
def test_a_bad_line_is_named(tmp_path, name, line, words):
    reader = READERS[name]
    number = len(reader.clean.splitlines()) + 1
    refused(reader, tmp_path, reader.clean + lines(line), *words, f":{number}: " if name != "parallel" else "")


def test_a_dictionary_of_equal_words_switches_nothing_and_is_refused(tmp_path):
    refused(READERS["dictionary"], tmp_path, lines("taxi\ttaxi", "radio radio"), "no pair of different words")


def test_a_language_that_the_file_lacks_is_named(tmp_path):
    refused(READERS["xnli"], tmp_path, XNLI.replace(b"\nde\t", b"\nfr\t"), "without a line of language de")
    refused(READERS["pawsx"], tmp_path, lines("id\tsentence1\tsentence2\tlabel", "1\tNS\tNS\t0"), "holds no question for deu")


@pytest.mark.parametrize("name", ["alpaca lines", "data=xnli", "parallel", "dictionary"])
def test_a_file_edited_after_the_plan_is_not_stored_under_the_old_key(tmp_path, name):
    reader = READERS[name]
    path = reader.put(tmp_path)
    node = {"alpaca lines": AlpacaData, "data=xnli": XnliRows, "parallel": FileParallel, "dictionary": Dictionary}[name](
        str(path if name in ("alpaca lines", "dictionary") else tmp_path))

    def stage() -> Any:
        make = getattr(node, "stage", None) or node.questions_stage
        return make(run_of(), "eng" if name == "alpaca lines" else "deu")

    planned = stage()
    data = path.read_bytes()
    path.write_bytes(data.replace("ü".encode(), b"u") if "ü".encode() in data else data.replace(b"ging", b"gang").replace(b"Say", b"Tell"))
    assert stage().key != planned.key
    with pytest.raises(XalignError, match=f"{path}: was changed after this run was planned; repeat the command"):
        Cache(tmp_path / "cache").get(planned)
    assert not Cache(tmp_path / "cache").has(planned)
    path.write_bytes(data)
    assert Cache(tmp_path / "cache").get(planned).receipt["key"] == planned.key


@pytest.mark.parametrize("name", ["pawsx", "flores"])
def test_a_benchmark_edited_after_the_plan_is_not_stored_under_the_old_key(tmp_path, name):
    from xalign.tasks.evaluate import evaluation

    path = READERS[name].put(tmp_path)
    node = {"pawsx": PawsXTask, "flores": FloresTask}[name](path=str(tmp_path))
    run = run_of(node)
    planned = evaluation(run, run.backbone.weights(run), node, "deu", True)
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"u"))
    with pytest.raises(XalignError, match=f"{path}: was changed after this run was planned; repeat the command"):
        planned.inputs[0].work(tmp_path, [None])  # the model, which is not asked for anything
    assert not list(tmp_path.glob("predictions*"))


@pytest.mark.parametrize("name", ["alpaca lines", "parallel", "dictionary", "belebele", "xquad", "xglue pos", "prompts text"])
def test_a_line_of_10_mb_is_read_in_bounded_time(tmp_path, name):
    reader = READERS[name]
    reader.put(tmp_path, inside(reader, b"abcdefghi" * 1_100_000))
    began = time.process_time()
    reader.read(tmp_path)
    assert time.process_time() - began < 10


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_file_of_another_user_is_refused_by_name(tmp_path):
    path = READERS["alpaca lines"].put(tmp_path)
    path.chmod(0)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(XalignError, match=r"alpaca\.json: (is not readable by this user|cannot be read \(Permission denied\))"):
            AlpacaData(str(path)).check_run(run_of())
    finally:
        os.seteuid(0)


def test_an_empty_stop_that_would_end_every_answer_is_refused():
    with pytest.raises(XalignError, match=r"task\.flores\.stop=\[''\]: an empty text would end every answer at once; name texts"):
        FloresTask(stop=[""]).check("task.flores")


def test_hub_rows_of_another_shape_are_refused_by_name(tmp_path):
    from xalign.tasks.files import fetch

    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "test.jsonl").write_bytes(lines({"sentence": "Die Mühle"}))
    file = NtrexTask().hub("deu", "eng")[0]
    with pytest.raises(XalignError, match=r"rows.*: test is not as the benchmark's rows are \(KeyError.*name it in task\.path"):
        fetch(replace(file, repo=str(tmp_path / "rows")), "main", tmp_path / "deu.txt")
