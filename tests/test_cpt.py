"""Continued pre-training on target text: which rows, what they look like to the model, the two stages, and a run."""
from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import TINY, xalign
from test_methods import CONF, Fakes

from xalign.config import ConfigError, XalignError, build
from xalign.data.examples import Example, read_examples, read_jsonl
from xalign.methods.coit import CoIT
from xalign.methods.cpt import CPT


def texts(run: Fakes) -> list[Example]:
    return read_examples(run.cache.get(run.method.text_rows(run)).file("rows.jsonl"))


def test_the_target_side_of_the_parallel_text(tmp_path: Path) -> None:
    rows = texts(Fakes(tmp_path, CPT()))
    assert {(r.prompt, r.response, r.subset, r.lang) for r in rows} == {
        ("", "Lamppu on päällä.", "text", "fin"), ("", "Kenia, Peru", "text", "fin")}
    assert len({r.group for r in rows}) == len(rows) == 2
    assert Fakes(tmp_path, CPT()).make() == Fakes(tmp_path, CoIT(subsets=["D", "T"])).make()  # stage 2, shared with CoIT


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fin.txt"
    path.write_bytes("\ufeff".encode() + "".join(f"Rivi {i}.\n\n" for i in range(50)).encode() + b"Rivi 3.")
    run = Fakes(tmp_path, CPT(path=str(path)))
    run.method.check_run(run)
    every = [r.response for r in texts(run)]
    assert sorted(every) == sorted(f"Rivi {i}." for i in range(50)) and every != sorted(every)  # each once, shuffled
    few = [r.response for r in texts(Fakes(tmp_path, CPT(path=str(path), lines=10)))]
    assert few == every[:10]  # more lines add to fewer
    keys = {CPT(path=str(path), lines=n).text_rows(run).key for n in (0, 10)}
    path.write_text("Toinen.\n", encoding="utf-8")
    assert len(keys | {CPT(path=str(path)).text_rows(run).key}) == 3
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(XalignError, match="fin.txt: holds no text; give one text a line"):
        texts(Fakes(tmp_path, CPT(path=str(path))))
    path.write_bytes(b"\xe4\xe4")
    with pytest.raises(XalignError, match="fin.txt:1: not UTF-8"):
        texts(Fakes(tmp_path, CPT(path=str(path))))
    with pytest.raises(ConfigError, match="method.path=nowhere: no such file; give one text a line in fin"):
        CPT(path="nowhere").check_run(run)
    values = yaml.safe_load((CONF / "cpt.yaml").read_text(encoding="utf-8"))
    assert build(values, "method") == CPT()


def test_text_is_read_without_a_template(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from xalign.backbones.causal import CausalBackbone
    from xalign.backbones.load import load_backbone
    from xalign.backbones.node import Tiny
    from xalign.backbones.tiny import make_tiny

    node = Tiny(width=16, layers=1, vocab=400)
    make_tiny(tmp_path, 16, 1, 400, 0)
    backbone = load_backbone(tmp_path, node)
    assert isinstance(backbone, CausalBackbone)
    row = backbone.row(Example("a", "fin", "", "Lamppu on päällä."))
    inside = backbone.tokenizer("Lamppu on päällä.", add_special_tokens=False).input_ids
    end = backbone.tokenizer.eos_token_id
    assert row.n_prompt == 1 and list(row.ids)[-len(inside) - 1:] == [*inside, end] and len(row.ids) - len(inside) <= 2
    asked = backbone.row(Example("a", "fin", "Mikä?", "Lamppu on päällä."))
    assert len(asked.ids) > len(row.ids) and asked.n_prompt > 1


def test_a_run(tmp_path: Path, cache: Path, parallel_files: Path) -> None:
    """Two trainings, the second from the first's weights, and a model at the end."""
    pytest.importorskip("torch")
    done = xalign("method=cpt", "lang=fin", *TINY, f"parallel.path={parallel_files}", f"cache={cache}", "task.shots=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = next((tmp_path / "runs").glob("cpt-fin-tiny-*"))
    stages = yaml.safe_load((run / "receipts.json").read_text(encoding="utf-8"))
    trained = [s for s in stages if "course" in s["facts"]]
    assert [s["label"] for s in trained] == ["pretrain text", "train cpt"] and (run / "model" / "model.safetensors").is_file()
    assert trained[0]["key"] in str(trained[1]["inputs"]) and trained[0]["facts"]["rows"] == 40
    assert {r["task"] for r in read_jsonl(run / "rows.jsonl")}
