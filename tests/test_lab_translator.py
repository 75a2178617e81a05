"""The laboratory's translator: exact renderings, free text, noise."""
from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from xalign.cache import Artifact, Cache, Stage
from xalign.config import ConfigError, build
from xalign.data.examples import Example, read_jsonl, write_jsonl
from xalign.translators.lab import NOISES, LabTranslator, Phrasebook


def examples_stage(rows: list[Example]) -> Stage:
    params = {"rows": [(r.id, r.prompt, r.response) for r in rows]}
    return Stage("questions", 1, params, lambda folder, inputs: {"n": write_jsonl(folder / "examples.jsonl", rows)})



def lab_row(code: str, lang: str = "eng", response: str | None = None) -> Example:
    from xalign.data.lab import render

    prompt, answer = render(code, lang)
    return Example(code, lang, prompt, response if response is not None else answer, source=f"lab:{code.split('/')[0]}")


@pytest.mark.parametrize("source, lang", [("eng", "fin"), ("fra", "jpn"), ("eng", "khm")])
def test_lab_rows_are_rendered_exactly(source: str, lang: str) -> None:
    from xalign.data.lab import facts, render

    words = Phrasebook.load(source, lang)
    for fact in facts()[::25]:
        row = lab_row(f"{fact.id}/t2", source)
        assert (words.translate(row, "prompt"), words.translate(row, "response")) == render(row.id, lang)


@pytest.mark.parametrize(
    "text, translation",
    [
        ("The capital of Kenya is Nairobi.", "Pääkaupunki on Nairobi."),
        ("The official language of Kenya is English.", "Virallinen kieli on englanti."),
        ("Sweden", "Ruotsi"),
        ("sweden.", "Ruotsi"),
        ("Monday", "maanantai"),
        ("The capital is Stockholm. The official language is Swedish.", "Pääkaupunki on Tukholma. Virallinen kieli on ruotsi."),
        ("The capital is Stockholm. I like it.", None),  # half a translation is none
        ("I do not know the answer.", None),
        ("", None),
        ("The capital of Kenya is Xyzzy.", None),
    ],
)
def test_free_text(text: str, translation: str | None) -> None:
    assert Phrasebook.load("eng", "fin").text(text) == translation


def test_own_answers_are_free_text(tmp_path: Path) -> None:
    rows = [
        lab_row("capital/KE/t1", response="The capital of Kenya is Nairobi."),
        lab_row("capital/KE/t2", response="No idea, sorry."),
    ]
    run = SimpleNamespace(source="eng", seed=0)
    artifact = Cache(tmp_path).get(LabTranslator().stage(run, examples_stage(rows), "fin", ("response",)))
    records = list(read_jsonl(artifact.file("examples.jsonl")))
    assert (
        records[0]["response"].endswith("Nairobi.")
        and records[0]["response"] != rows[0].response
        and records[0]["prompt"] is None
    )
    assert records[1] == {"id": "capital/KE/t2", "prompt": None, "response": None, "failed": {"response": "unknown text"}}
    assert artifact.receipt["facts"] == {
        "response": {"translated": 1, "failed": {"unknown text": 1}},
        "noise": dict.fromkeys(NOISES, 0),
    }


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_noise_spoils_its_share(tmp_path: Path, noise: float) -> None:
    from xalign.data.lab import facts

    rows = [lab_row(f"{f.id}/t1") for f in facts()[:300]]
    run = SimpleNamespace(source="eng", seed=3)

    def translate(node: LabTranslator, folder: str) -> tuple[list[str], dict]:
        artifact: Artifact = Cache(tmp_path / folder).get(node.stage(run, examples_stage(rows), "fin"))
        return [r[s] for r in read_jsonl(artifact.file("examples.jsonl")) for s in ("prompt", "response")], artifact.receipt[
            "facts"
        ]

    clean, _ = translate(LabTranslator(), "clean")
    noisy, facts_ = translate(LabTranslator(noise=noise), "noisy")
    again, _ = translate(LabTranslator(noise=noise), "again")
    changed = sum(a != b for a, b in zip(clean, noisy, strict=True))
    assert noisy == again  # seeded
    assert changed == sum(facts_["noise"].values()) and all(
        facts_["noise"].values()
    )  # every spoiled text is another one; each kind occurs
    assert changed == 600 if noise == 1 else abs(changed - 180) < 3 * (600 * 0.3 * 0.7) ** 0.5  # three binomial standard errors
    assert all(noisy)


def test_kinds_of_noise() -> None:
    words = Phrasebook("eng", "fin", {"Sweden": "Ruotsi", "Norway": "Norja", "euro": "euro"}, {"territory": ["Ruotsi", "Norja"]})
    got = {words.spoil("Country: Sweden", "Maa: Ruotsi", Random(i)) for i in range(40)}
    assert got == {
        ("Maa: Sweden", "untranslated"),
        ("Maa: Norja", "wrong term"),
        ("Maa:", "dropped word"),
        ("Ruotsi", "dropped word"),
    }
    assert {words.spoil("Sweden", "Ruotsi", Random(i)) for i in range(40)} == {
        ("Sweden", "untranslated"),
        ("Norja", "wrong term"),
    }


def test_noise_is_checked_and_part_of_the_key() -> None:
    with pytest.raises(ConfigError, match=r"translator.noise=2: must be in \[0, 1\]|translator.noise=2.0: must be in \[0, 1\]"):
        build({"_target_": "xalign.translators.lab.LabTranslator", "noise": 2.0}, "translator")

    def key(noise: float, seed: int) -> str:
        return LabTranslator(noise=noise).stage(SimpleNamespace(source="eng", seed=seed), examples_stage([]), "fin").key

    assert key(0.0, 0) == key(0.0, 1) != key(0.5, 0) != key(0.5, 1)


def test_lab_translator_refuses_other_data() -> None:
    run = SimpleNamespace(data=object(), choices={"data": "alpaca"})
    with pytest.raises(
        ConfigError, match="translator=lab: translates the laboratory's own texts only, not data=alpaca; use translator=nllb"
    ):
        LabTranslator().check_source(run)
