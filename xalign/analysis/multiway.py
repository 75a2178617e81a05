"""Multi-way parallel texts: the same sentences in every language, from the laboratory or from NTREX's or FLORES' files."""
from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from xalign.cache import Artifact, Stage, file_sha256
from xalign.config import ConfigError, XalignError
from xalign.data.examples import read_jsonl, write_jsonl

if TYPE_CHECKING:
    from xalign.config import Run

KINDS = ("sentences", "questions", "files")
FILE = "texts.jsonl"
FEWEST = 10  # texts that all languages must share: below, one hit more or less moves retrieval@1 by over ten points
TOO_FEW = {"khm": 0, "hin": 5}  # held-out sentences of the laboratory's pinned corpus; every other language has more than FEWEST
TITLE = "the corpus"  # in the messages about its files


def check_texts(run: Run, langs: Sequence[str], kind: str, path: str = "") -> None:
    """Raise ConfigError when there are no texts of this kind in these languages; needs no network.

    Args:
        kind: one of `KINDS`.
        path: the folder of ``files``.
    """
    if kind not in KINDS:
        raise ConfigError(f"study.text={kind}: must be one of {', '.join(KINDS)}")
    if len(set(langs)) < 2:
        raise ConfigError(f"lang={','.join(langs)}: is the source language, and texts are compared between two or more; name others in lang")
    if path and kind != "files":
        raise ConfigError(f"study.path={path}: only study.text=files reads a folder; set it, or leave study.path out")
    if kind == "files":
        for texts in _files(path, langs).values():
            _lines(texts)  # the first unusable line now, not after a training
        aligned_lines(_files(path, langs))
    few = [lang for lang in langs if lang in TOO_FEW]
    if kind == "sentences" and few:
        raise ConfigError(f"study.text=sentences: the laboratory holds out {TOO_FEW[few[0]]} sentences in {few[0]}, and {FEWEST} are needed; "
                          f"leave {few[0]} out, or set study.text=questions, or study.text=files study.path=DIR with NTREX's or FLORES' files")


def _names(lang: str) -> tuple[str, ...]:
    """The names that a language's file goes by, relative to the corpus' folder: NTREX's, then FLORES' devtest."""
    from xalign.tasks.flores import FloresTask, NtrexTask

    return tuple(dict.fromkeys((*NtrexTask().names(lang, "test"), *FloresTask().names(lang, "devtest"),
                                *(Path(name).name for name in FloresTask().names(lang, "devtest")))))


def _files(path: str, langs: Sequence[str]) -> dict[str, Path]:
    """The file of each language in the folder `path`."""
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise ConfigError(f"study.path={path}: {'no such folder' if path else 'is empty'}; with study.text=files name the one with "
                          "NTREX's or FLORES' files, or one <iso3>.txt a language")
    found = {}
    for lang in langs:
        names = _names(lang)
        hits = [root / name for name in names if (root / name).is_file()]
        if not hits:
            raise ConfigError(f"study.path={path}: has no file for {lang} ({', '.join(names[:3])} or {names[-2]}); put it there, or leave "
                              f"{lang} out")
        found[lang] = hits[0]
    return found
