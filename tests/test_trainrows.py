"""XNLI's training and validation files as instruction data."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xalign.cache import Cache
from xalign.config import ConfigError, XalignError
from xalign.data.examples import read_examples
from xalign.tasks.trainrows import XnliRows
from xalign.tasks.xglue import XglueXnliTask

LABELS = ("entailment", "neutral", "contradiction")
RUN: Any = SimpleNamespace(source="eng", lang=("deu", "fra"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "XNLI").mkdir()
    train = [f"Dog {i // 2} barks.\tCat {i} barks.\t{(*LABELS[:2], 'contradictory')[i % 3]}" for i in range(6)]
    (tmp_path / "XNLI/multinli.train.en.tsv").write_text("premise\thypo\tlabel\n" + "\n".join(train) + "\n", encoding="utf-8")
    for code in ("en", "de", "fr"):
        dev = [f"{code} premise {i}.\t{code} hypothesis {i}.\t{LABELS[i % 3]}" for i in range(4)]
        (tmp_path / f"XNLI/{code}.dev").write_text("\n".join(dev) + "\n", encoding="utf-8")
    return tmp_path


def rows(folder: Path, lang: str, **settings: Any) -> list[Any]:
    node = XnliRows(path=str(folder), **settings)
    node.check_run(RUN)
    return read_examples(Cache(folder / "cache").get(node.questions_stage(RUN, lang)).file("examples.jsonl"))


def test_rows(folder: Path) -> None:
    english, german = rows(folder, "eng"), rows(folder, "deu")
    assert [r.id for r in english] == [f"xnli/train/{i}" for i in range(1, 7)] + [f"xnli/dev/{i}" for i in range(1, 5)]
    assert [r.response for r in english] == ["yes", "maybe", "no", "yes", "maybe", "no", "yes", "maybe", "no", "yes"]
    assert english[0].group == english[1].group != english[2].group  # pairs of one premise stay together
    assert {r.options for r in english} == {("yes", "maybe", "no")} and "Cat 0 barks." in english[0].prompt
    assert [r.id for r in german] == [f"xnli/dev/{i}" for i in range(1, 5)]
    assert [r.response for r in german] == ["ja", "vielleicht", "nein", "ja"]
    assert [r.id for r in rows(folder, "eng", limit=2)] == ["xnli/train/1", "xnli/train/2", *(r.id for r in german)]


def test_they_are_asked_as_the_test_is(folder: Path) -> None:
    path = folder / "XNLI/de.dev"
    asked = XglueXnliTask().read(path, "deu", "eng")[0]
    assert [(q.text, q.options, q.options[q.gold]) for q in asked] == [(r.prompt, r.options, r.response) for r in rows(folder, "deu")]


def test_what_cannot_be_used(folder: Path) -> None:
    for run, message in ((SimpleNamespace(source="fra", lang=("deu",)), "source=fra: data=xnli is MultiNLI, in English"),
                         (SimpleNamespace(source="eng", lang=("fin",)), "lang=fin: XNLI has no Finnish"),
                         (SimpleNamespace(source="eng", lang=("spa",)), "has no XNLI/es.dev; use xglue_full_dataset")):
        with pytest.raises(ConfigError, match=message):
            XnliRows(path=str(folder)).check_run(run)
    with pytest.raises(ConfigError, match="data.path: names no folder"):
        XnliRows().check_run(RUN)
    dev = folder / "XNLI/de.dev"
    good = dev.read_text(encoding="utf-8")
    dev.write_text(good.replace("1.\tneutral", "1.\tentailment"), encoding="utf-8")
    with pytest.raises(XalignError, match=r"de.dev: pair 2 has another label than in en.dev"):
        rows(folder, "deu")
    dev.write_text(good + good.splitlines()[0] + "\n", encoding="utf-8")
    with pytest.raises(XalignError, match=r"de.dev: holds 5 pairs, not 4 as in en.dev"):
        rows(folder, "deu")
    dev.write_text(good.replace("neutral", "perhaps"), encoding="utf-8")
    with pytest.raises(XalignError, match=r"de.dev:2: label 'perhaps': must be one of"):
        rows(folder, "deu")
