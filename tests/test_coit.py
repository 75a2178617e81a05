"""CoIT and MuIT: rows one by one, the templates, and who gets how many translation instructions."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_methods import CONF, FIN, KENYA, PAIRS, PERU, Fakes

from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, XalignError, build
from xalign.data.examples import read_examples, write_jsonl
from xalign.data.instructions import TEMPLATES, coit_prompt
from xalign.data.overlap import fact_leaks
from xalign.methods.coit import CoIT, MuIT, instructions
from xalign.methods.supervised import SFT, TSFT

MORE = [{"id": f"l{i}", "src": f"Line {i}.", "tgt": f"Ligne {i}.", "kind": "sentence"} for i in range(40)]


class Many(Fakes):
    """As `Fakes`, with French beside Finnish: every text is known, and there are forty pairs."""

    def __init__(self, folder: Path, method: Any, lang: tuple[str, ...] = ("fin", "fra"), **more: Any) -> None:
        super().__init__(folder, method, lang=lang, **more)

    def stage(self, run: Any, *args: Any) -> Stage:
        if args == ("fra",):
            return Stage("pairs", 1, {"lang": "fra"}, lambda folder, _: {"n": write_jsonl(folder / "pairs.jsonl", MORE)})
        if "fra" not in args:
            return super().stage(run, *args)

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            rows = read_examples(inputs[0].file("examples.jsonl"))
            records = [{"id": e.id, "prompt": f"{e.prompt} (fr)", "response": f"{e.response} (fr)", "failed": {}} for e in rows]
            return {"n": write_jsonl(folder / "examples.jsonl", records)}

        return Stage("translate", 1, {"lang": "fra"}, work, inputs=(args[0],))


# templates


def test_templates() -> None:
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 33
    assert TEMPLATES[0] == "Translate the following sentences from {src} to {tgt}."
    for template in TEMPLATES:
        assert template.count("{src}") == template.count("{tgt}") == 1 and "\n" not in template and template.format(src="", tgt="")
    assert coit_prompt("Hi.", "eng", "fin") == "Translate the following sentences from English to Finnish.\nHi."
    assert coit_prompt("Hi.", "eng", "fin", 5) == TEMPLATES[5].format(src="English", tgt="Finnish") + "\nHi."
    assert coit_prompt("Hi.", "eng", "fin", 33 + 5) == coit_prompt("Hi.", "eng", "fin", 5) != coit_prompt("Hi.", "eng", "fin", 6)


def test_the_names_of_the_languages_state_no_fact() -> None:
    """"Finnish" and a name of the text are not "Finland speaks Finnish"."""
    from xalign.data.lab import facts, name

    fact = next(f for f in facts() if f.split == "test" and f.kind == "language" and name(f.answer, "eng") == "Spanish")
    pairs = [{"id": str(i), "src": name(fact.subject, "eng"), "tgt": name(fact.subject, "spa"), "kind": "phrase"} for i in range(33)]
    rows = instructions(pairs, "eng", "spa", "target")
    assert fact_leaks(rows, ["eng", "spa"]) == []
    assert fact_leaks([rows[0].with_(response="Spanish")], ["eng", "spa"]) == [rows[0].id]  # it would be found


# CoIT


def test_coit_rows(tmp_path: Path) -> None:
    rows, facts = Fakes(tmp_path, CoIT()).make()
    assert [(r.id, r.subset, r.lang, r.prompt, r.response, r.source, r.group) for r in rows] == [
        ("capital/KE/t1/D", "D", "eng", "Capital of Kenya?", "Nairobi", "lab:capital", "KE"),
        ("capital/PE/t1/D", "D", "eng", "Capital of Peru?", "Lima", "lab:capital", "PE"),
        ("capital/KE/t1/T/fin", "T", "fin", "Kenian pääkaupunki?", "Nairobi (fi)", "lab:capital", "KE"),
        ("capital/PE/t1/T/fin", "T", "fin", "Perun pääkaupunki?", "Lima (fi)", "lab:capital", "PE"),
        ("mt/s1/eng-fin", "mt", "eng", "Translate the following sentences from English to Finnish.\nThe lamp is on.", "Lamppu on päällä.",
         "parallel:sentence", "pair/s1"),
        ("mt/n1/eng-fin", "mt", "eng", TEMPLATES[1].format(src="English", tgt="Finnish") + "\nKenya, Peru", "Kenia, Peru",
         "parallel:names", "pair/n1"),
    ]
    assert facts["subsets"] == {"D": 2, "T": 2, "mt": 2} and facts["translation instructions"] == {"fin": 2}


def test_directions(tmp_path: Path) -> None:
    def translated(direction: str) -> list[tuple[str, str]]:
        rows = Fakes(tmp_path, CoIT(direction=direction)).make()[0]
        return [(r.prompt.split("\n")[1], r.response) for r in rows if r.subset == "mt"]

    there = [("The lamp is on.", "Lamppu on päällä."), ("Kenya, Peru", "Kenia, Peru")]
    back = [(b, a) for a, b in there]
    assert translated("target") == there and translated("source") == back and translated("both") == there + back
    assert coit_prompt("Kenia", "fin", "eng") in {r.prompt for r in instructions([{**PAIRS[0], "tgt": "Kenia"}], "eng", "fin", "source")}


def test_coit_shares_the_translations_and_the_loss(tmp_path: Path) -> None:
    run = Fakes(tmp_path, CoIT())
    keys = {s.key for s in CoIT().rows(run).all()}
    assert {s.key for s in TSFT().rows(run).all()} - {TSFT().rows(run).key} <= keys
    assert CoIT().loss_params() == SFT().loss_params() and CoIT(direction="both").rows(run).key not in keys


def test_missing_translations_are_counted_and_none_at_all_is_refused(tmp_path: Path) -> None:
    rows, facts = Fakes(tmp_path, CoIT(), lost=("Lima",)).make()
    assert facts["subsets"] == {"D": 2, "T": 1, "mt": 2} and facts["not translated"] == {"fin response: unknown text": 1}
    with pytest.raises(XalignError, match=r"no question and answer were translated into fin \(2 x fin prompt: unknown text, 2 x fin resp"):
        Fakes(tmp_path, CoIT(), lost=tuple(FIN)).make()


@pytest.mark.parametrize("subsets, inputs", [(["D"], 1), (["T"], 2), (["mt"], 1), (["mt", "D"], 2), (["D", "T"], 2), (["D", "T", "mt"], 3)])
def test_subsets_of_figure_6(tmp_path: Path, subsets: list[str], inputs: int) -> None:
    """Fewer subsets are the same rows without the others, and nothing is made that they do not need."""
    whole = Fakes(tmp_path, CoIT()).make()[0]
    run = Fakes(tmp_path, CoIT(subsets=subsets))
    assert run.make()[0] == [r for r in whole if r.subset in subsets]
    stage = run.method.rows(run)
    assert len(stage.inputs) == inputs and run.method.translates == ("T" in subsets)
    assert (stage.key == CoIT().rows(run).key) == (len(subsets) == 3)
    turned = CoIT(subsets=subsets, direction="source").rows(run).key
    assert (turned == stage.key) == ("mt" not in subsets)  # no direction without translation instructions


def test_subsets_of_many_languages(tmp_path: Path) -> None:
    rows, facts = Many(tmp_path, MuIT(subsets=["T", "mt"], budget=10)).make()
    assert facts["subsets"] == {"T": 4, "mt": 10} and {r.lang for r in rows if r.subset == "T"} == {"fin", "fra"}


# MuIT


def test_muit_is_the_union_over_languages(tmp_path: Path) -> None:
    rows, facts = Many(tmp_path, MuIT()).make()
    fin, fra = (Many(tmp_path, CoIT(), lang=(lang,)).make()[0] for lang in ("fin", "fra"))
    assert sorted(r.id for r in rows) == sorted({r.id for r in fin + fra})
    assert {r.id: r for r in rows} == {r.id: r for r in fin + fra}  # D once, nothing else changed
    assert facts["subsets"] == {"D": 2, "T": 4, "mt": 42} and facts["translation instructions"] == {"fin": 2, "fra": 40}
    asked = (KENYA.prompt, PERU.prompt)
    assert [r.prompt for r in rows if r.subset == "T"] == [FIN[x] for x in asked] + [f"{x} (fr)" for x in asked]
    one = Fakes(tmp_path, MuIT())
    assert MuIT().rows(one).key == CoIT().rows(one).key


def shares(tmp_path: Path, **settings: Any) -> dict[str, int]:
    run = Many(tmp_path, MuIT(**settings))
    run.method.check_run(run)
    rows, facts = run.make()
    found = {lang: sum(r.subset == "mt" and lang in r.id for r in rows) for lang in ("fin", "fra")}
    assert found == facts["translation instructions"] and facts["subsets"]["mt"] == sum(found.values())
    return found


def test_a_budget_is_shared(tmp_path: Path) -> None:
    assert shares(tmp_path, budget=3) == {"fin": 2, "fra": 1}  # 1.5 each, the first one rounded up
    assert shares(tmp_path, budget=20) == {"fin": 2, "fra": 18}  # Finnish has no more
    assert shares(tmp_path, budget=21, allocation="proportional") == {"fin": 1, "fra": 20}
    assert shares(tmp_path, budget=21, direction="both") == {"fin": 4, "fra": 17}  # each direction of a pair counts
    law = tmp_path / "law.json"
    laws = {"fin": {"alpha": 100, "beta": -0.5}, "fra": {"alpha": 100, "beta": -0.5, "gamma": 0.25}, "tha": 1}
    law.write_text(json.dumps(laws))
    # a is 100 and 200, so X is as 1 : 2^(2/3), 1 : 1.587
    assert shares(tmp_path, budget=3, allocation="optimised", law=str(law)) == {"fin": 1, "fra": 2}
    assert shares(tmp_path, budget=3, allocation="optimised", law=laws) == {"fin": 1, "fra": 2}  # as an experiment's YAML has them


def test_the_budgets_rows_are_picked_by_the_seed_and_grow(tmp_path: Path) -> None:
    def ids(budget: int, seed: int = 0) -> list[str]:
        run = Many(tmp_path, MuIT(budget=budget))
        run.seed = seed
        return [r.id for r in run.make()[0] if r.subset == "mt" and r.id.endswith("fra")]

    whole = [r.id for r in instructions(MORE, "eng", "fra", "target")]
    assert set(ids(12)) < set(ids(22)) < set(whole) and ids(22) == [i for i in whole if i in ids(22)]
    assert ids(12) != ids(12, seed=1) and ids(12) != whole[:10]
    run = Many(tmp_path, MuIT(budget=12))
    full = {r.id: r for r in Many(tmp_path, MuIT()).make()[0]}
    assert all(full[r.id] == r for r in run.make()[0])  # a row keeps its template


def test_an_allocation_file(tmp_path: Path) -> None:
    path = tmp_path / "shares.yaml"
    path.write_text("fin: 2\nfra: 7\n")
    assert shares(tmp_path, allocation_file=str(path)) == shares(tmp_path, allocation_file=str(path), budget=9) == {"fin": 2, "fra": 7}
    path.write_text("fra: 0.9\nfin: 0.1\n")
    assert shares(tmp_path, allocation_file=str(path), budget=11) == {"fin": 1, "fra": 10}
    path.write_text("fin: 3\nfra: 7\n")
    with pytest.raises(XalignError, match="method.allocation_file: asks for 3 translation rows in fin, and there are 2"):
        shares(tmp_path, allocation_file=str(path))
    with pytest.raises(XalignError, match=r"method.budget=43: there are 42 translation rows \(fin 2, fra 40\); lower it"):
        shares(tmp_path, budget=43)


def test_files_are_part_of_the_key(tmp_path: Path) -> None:
    path, run = tmp_path / "shares.yaml", Many(tmp_path, None)
    keys = []
    for text in ("fin: 2\nfra: 7\n", "fin: 2\nfra: 8\n", "fra: 7\nfin: 2\ntha: 5\n"):
        path.write_text(text)
        keys.append(MuIT(allocation_file=str(path)).rows(run).key)
    assert keys[0] == keys[2] != keys[1]


FILES = {"law.yaml": "fin: {alpha: 300, beta: -0.3}\n", "sum.yaml": "fin: 2\nfra: 2\n", "shares.yaml": "fin: 0.5\nfra: 0.2\n",
         "list.yaml": "- 1\n", "broken.json": "{", "words.yaml": "fin: many\nfra: 1\n",
         "range.yaml": "fin: {alpha: 300, beta: -0.3, gamma: 2}\nfra: {alpha: 300, beta: -0.3}\n",
         "lacks.yaml": "fin: {alpha: 300}\nfra: {alpha: 300, beta: -0.3}\n"}


@pytest.mark.parametrize("settings, message", [
    ({"allocation": "optimised", "law": "law.yaml"}, r"method.allocation=optimised: shares out method.budget, and that is 0"),
    ({"allocation": "optimised", "budget": 5}, "method.allocation=optimised: needs the languages' scaling laws; name their file"),
    ({"allocation": "optimised", "budget": 5, "law": "none.yaml"}, r"method.law=none.yaml: no such file"),
    ({"allocation": "optimised", "budget": 5, "law": "law.yaml"}, r"method.law=law.yaml: has nothing for fra; add .* lang=\[fin,fra\]"),
    ({"allocation": "optimised", "budget": 5, "law": "list.yaml"}, "method.law=list.yaml: must be a mapping"),
    ({"allocation": "optimised", "budget": 5, "law": "broken.json"}, "method.law=broken.json: is neither YAML nor JSON"),
    ({"allocation": "optimised", "budget": 5, "law": "sum.yaml"}, "method.law=sum.yaml: the law of fin must be like .*, found 2"),
    ({"allocation": "optimised", "budget": 5, "law": "lacks.yaml"}, "the law of fin must be like"),
    ({"allocation": "optimised", "budget": 5, "law": "range.yaml"}, r"gamma of fin is 2; it must be a number in \(0, 1\]"),
    ({"allocation": "optimised", "budget": 5, "law": {"fin": {"alpha": 300, "beta": -0.3}}}, r"method.law=\{fin\}: has nothing for fra"),
    ({"subsets": ["D", "T"], "budget": 5}, r"method.subsets=\['D', 'T'\]: has no translation instructions \(mt\) that method.budget"),
    ({"allocation": "proportional", "allocation_file": "sum.yaml"}, "takes the place of method.allocation=proportional"),
    ({"allocation_file": "sum.yaml", "budget": 5}, "its rows add up to 4, and method.budget=5"),
    ({"allocation_file": "shares.yaml"}, "gives shares, and method.budget=0 says of nothing"),
    ({"allocation_file": "shares.yaml", "budget": 5}, "its shares add up to 0.7 instead of 1"),
    ({"allocation_file": "words.yaml"}, "must give numbers of rows or shares, found"),
])
def test_what_does_not_go_together_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    with pytest.raises(ConfigError, match=message) as e:
        MuIT(**settings).check_run(Many(tmp_path, None))
    assert "\n" not in str(e.value)


def test_settings(tmp_path: Path) -> None:
    for name, cls in (("coit", CoIT), ("muit", MuIT)):
        values = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
        assert build(values, "method") == cls()
        with pytest.raises(ConfigError, match="method.direction=sideways: must be one of target, source, both"):
            build({**values, "direction": "sideways"}, "method")
        with pytest.raises(ConfigError, match=r"method.subsets=\[\]: must name some of D, T, mt"):
            build({**values, "subsets": []}, "method")
    with pytest.raises(ConfigError, match="method.allocation=optimized: must be one of .*; did you mean 'optimised'"):
        build({**values, "allocation": "optimized"}, "method")
    with pytest.raises(ConfigError, match="method coit trains for one target language"):
        CoIT().check_run(Many(tmp_path, None))
    MuIT().check_run(Many(tmp_path, None))


def test_training_reduces_the_loss(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from test_training import NODE, fit, make_rows

    steps = [r for r in fit(tmp_path, make_rows(), NODE, CoIT()) if "grad_norm" in r]
    assert len(steps) > 5 and steps[-1]["ce"] < steps[0]["ce"] - 0.3 and set(steps[0]) >= {"loss", "ce"}
