"""Alpaca files: what is read, and how a bad one is reported."""
from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from xalign.cache import Cache
from xalign.config import ConfigError, XalignError
from xalign.data.alpaca import AlpacaData, read_alpaca
from xalign.data.examples import read_examples

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "alpaca" / "alpaca_subset_3111.json"
GOOD = [{"instruction": "Add.", "input": "1 and 2", "output": "3"}, {"instruction": "Greet me.", "input": "", "output": "Hello!"},
        {"instruction": "Say nothing.", "input": "", "output": ""}]
RUN = SimpleNamespace(source="eng", lang=("fin",), seed=0)


@pytest.mark.parametrize("text", [json.dumps(GOOD), "\ufeff" + json.dumps(GOOD), "\n".join(map(json.dumps, GOOD)) + "\n"])
def test_array_lines_and_bom_give_the_same_examples(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    rows = list(read_alpaca(path, "eng"))
    assert [(r.prompt, r.response) for r in rows] == [("Add.\n1 and 2", "3"), ("Greet me.", "Hello!"), ("Say nothing.", "")]
    artifact = Cache(tmp_path / "cache").get(AlpacaData(str(path), limit=5).questions_stage(RUN, "eng"))
    assert [e.id for e in read_examples(artifact.file("examples.jsonl"))] == ["alpaca/000001", "alpaca/000002"]


@pytest.mark.parametrize(("text", "place", "reason"), [
    ('[{"instruction": "a",\n "output": }]', "a.json:2", "not valid JSON"),
    ('{"instruction": "a", "output": "b"}\n{"instruction"', "a.json:2", "not valid JSON"),
    ('{"instruction": "a", "output": "b"}\n{"instruction": "c"}', "a.json:2", "no 'output'"),
    ('[{"instruction": "a", "output": "b"}, 7]', "record 2", "found a number"),
    ('[{"instruction": "a", "output": ["b"]}]', "record 1", "'output' must be text"),
    ('[{"instruction": " ", "output": "b"}]', "record 1", "empty"),
    ("[]", "a.json", "no records"),
])
def test_malformed_input_names_file_and_place(tmp_path: Path, text: str, place: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(XalignError) as caught:
        list(read_alpaca(path, "eng"))
    assert place in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_other_language_and_content_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        AlpacaData(str(tmp_path / "none.json")).check_run(RUN)
    with pytest.raises(ConfigError, match="names no file"):
        AlpacaData().check_run(RUN)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD))
    with pytest.raises(ConfigError, match="source language"):
        AlpacaData(str(path)).questions_stage(RUN, "fin")
    key = AlpacaData(str(path)).questions_stage(RUN, "eng").key
    path.write_text(json.dumps(GOOD[:1]))
    assert AlpacaData(str(path)).questions_stage(RUN, "eng").key != key


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared Alpaca subset is not there")
def test_the_released_format() -> None:
    rows = list(read_alpaca(SHARED, "eng"))
    assert len(rows) == 3111 and all(r.prompt for r in rows)
