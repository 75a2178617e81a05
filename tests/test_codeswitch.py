"""Dictionaries and code-switching (SDRRL equation 5)."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from xalign.cache import Cache
from xalign.config import ConfigError, XalignError, build
from xalign.data.codeswitch import Dictionary, boundary, code_switch, read_dictionary, read_muse

ENG = {
    "Finland": ("Suomi",),
    "United States": ("Yhdysvallat",),
    "States": ("Osavaltiot",),
    "capital": ("pääkaupunki",),
    "the": ("se",),
}


def always(text: str, mapping: dict, spaced: bool = True) -> str:
    return code_switch(text, mapping, 1.0, Random(0), spaced)


@pytest.mark.parametrize(
    "text, switched",
    [
        ("What is the capital of Finland?", "What is se pääkaupunki of Suomi?"),
        ("Country: (Finland), please", "Country: (Suomi), please"),
        ("The United States, again", "se Yhdysvallat, again"),  # "The" found in lower case; the longest term wins
        ("United, States", "United, Osavaltiot"),  # a comma inside is no multi-word term
        ("  Finland\n\nFinland ", "  Suomi\n\nSuomi "),  # whitespace stays
        ("Finlandia", "Finlandia"),  # never a part of a word
        ("", ""),
        ("?!", "?!"),
    ],
)
def test_spaced(text: str, switched: str) -> None:
    assert always(text, ENG) == switched


def test_a_final_vowel_sign_belongs_to_its_word() -> None:
    assert always("राजधानी: दिल्ली।", {"दिल्ली": ("Delhi",)}) == "राजधानी: Delhi।"


def test_term_with_punctuation_is_found_as_written() -> None:
    assert always("in St. John's, now", {"St. John's": ("Saint John",)}) == "in Saint John, now"


@pytest.mark.parametrize(
    "text, mapping, switched",
    [
        (
            "次の国の首都：南アフリカ",
            {"南アフリカ": ("South Africa",), "アフリカ": ("Africa",), "首都": ("capital",)},
            "次の国のcapital：South Africa",
        ),
        ("日本の日", {"日": ("day",), "日本": ("Japan",)}, "Japanの日"),  # one character is no term
        ("ประเทศไทยอยู่", {"ประเทศไทย": ("Thailand",)}, "Thailandอยู่"),
        ("ABC国", {"AB": ("x",), "C国": ("y",)}, "ABC国"),  # no cut inside a Latin word
    ],
)
def test_unspaced_longest_match(text: str, mapping: dict, switched: str) -> None:
    assert always(text, mapping, spaced=False) == switched


def test_boundary_keeps_graphemes_whole() -> None:
    assert not boundary("กี", 1) and boundary("กข", 1) and boundary("ab", 0) and boundary("ab", 2) and not boundary("ab", 1)


def test_probability_is_per_known_token() -> None:
    text = " ".join(["Finland x"] * 4000)
    switched = code_switch(text, ENG, 0.15, Random(1))
    share = switched.split().count("Suomi") / 4000
    assert abs(share - 0.15) < 3 * (0.15 * 0.85 / 4000) ** 0.5  # three binomial standard errors
    assert switched.split()[1::2] == ["x"] * 4000
    assert code_switch(text, ENG, 0.0, Random(1)) == text
    assert code_switch(text, ENG, 0.15, Random(1)) == switched  # the generator decides everything


def test_each_translation_is_drawn() -> None:
    assert set(code_switch("was " * 50, {"was": ("bylo", "byl")}, 1.0, Random(0)).split()) == {"bylo", "byl"}


def test_muse_file(tmp_path: Path) -> None:
    path = tmp_path / "en-cs.txt"
    path.write_text("\ufeffwas bylo\nwas byl\n\nNew York\tNový York\n", encoding="utf-8")
    assert read_muse(path) == [("was", "bylo"), ("was", "byl"), ("New York", "Nový York")]


@pytest.mark.parametrize("line", ["one", "one two three", "one\t", "a\tb\tc"])
def test_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(f"was bylo\n{line}\n", encoding="utf-8")
    with pytest.raises(XalignError, match=r"bad\.txt:2: expected 'word TAB translation'"):
        read_muse(path)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes("čas\tzeit\n".encode("cp1250"))
    with pytest.raises(XalignError, match="not UTF-8"):
        read_muse(path)


def test_stage_reads_a_file_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_text("was bylo\nwas byl\nis byl\nradio radio\n", encoding="utf-8")
    run = SimpleNamespace(source="eng", choices={})
    stage = Dictionary(path=str(path)).stage(run, "ces")
    artifact = Cache(tmp_path / "cache").get(stage)
    file = artifact.file("dictionary.tsv")
    assert read_dictionary(file) == {"was": ("bylo", "byl"), "is": ("byl",)}  # a word spelled the same switches nothing
    assert read_dictionary(file, inverse=True) == {"bylo": ("was",), "byl": ("was", "is")}
    assert artifact.receipt["facts"] == {"pairs": 3, "words": 2}
    path.write_text("was bylo\n", encoding="utf-8")
    assert Dictionary(path=str(path)).stage(run, "ces").key != stage.key  # the key follows the file's content


def test_missing_file_is_refused() -> None:
    node = build({"_target_": "xalign.data.codeswitch.Dictionary", "path": "/nowhere/d.txt"}, "dictionary")
    with pytest.raises(ConfigError, match="dictionary.path=/nowhere/d.txt: no such file"):
        node.check_run(SimpleNamespace())


def test_official_muse_file() -> None:
    path = Path(__file__).parents[1].parent / "shared" / "data" / "dictionaries" / "en-de.txt"
    if not path.is_file():
        pytest.skip("the MUSE dictionary is not on this machine")
    pairs = read_muse(path)
    assert len(pairs) == 101931 and ("the", "die") in pairs
