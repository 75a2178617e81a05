"""Multi-way parallel texts: the same sentences in every language, from the laboratory or from NTREX's or FLORES' files."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from xalign.assets import home_assistant_stage
from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, XalignError
from xalign.data.examples import read_jsonl, write_jsonl
from xalign.data.reading import unchanged
from xalign.digests import file_sha256

if TYPE_CHECKING:
    from xalign.config import Run

KINDS = ("sentences", "questions", "files")
FILE = "texts.jsonl"
FEWEST = 10  # texts that all languages must share: below, one hit moves retrieval@1 by more than ten points
TOO_FEW = {"khm": 0, "hin": 5}  # held-out sentences of the laboratory's pinned corpus; every other language has more than FEWEST
FILES = "put NTREX's or FLORES' files, or one <iso3>.txt a language, into a folder and name it: study.text=files study.path=DIR"


def check_texts(run: Run, langs: Sequence[str], kind: str, path: str = "") -> None:
    """Raise before torch, without network, when there are no texts of this kind in these languages.

    Args:
        langs: ISO 639-3 codes, two or more.
        kind: one of `KINDS`.
        path: the folder of ``files``.
    Raises:
        ConfigError: no such kind, folder or file, too few sentences.
        XalignError: for an unusable line of a file.
    """
    if kind not in KINDS:
        raise ConfigError(f"study.text={kind}: must be one of {', '.join(KINDS)}")
    if len(set(langs)) < 2:
        raise ConfigError(f"lang={','.join(run.lang)}: is the source language, and texts are compared between languages; name others")
    if kind == "files":
        _aligned(_files(path, langs))
        return
    if path:
        raise ConfigError(f"study.path={path}: only study.text=files reads a folder, and it is {kind}; set that, or leave study.path out")
    few = [lang for lang in langs if lang in TOO_FEW and kind == "sentences"]
    if few:
        raise ConfigError(f"study.text=sentences: the laboratory holds out {TOO_FEW[few[0]]} sentences in {few[0]}, {FEWEST} are needed; "
                          f"leave {few[0]} out of lang, set study.text=questions, or {FILES}")


def texts_stage(run: Run, langs: Sequence[str], kind: str, path: str = "", count: int = 0) -> Stage:
    """``texts.jsonl``: {"id", "texts": {lang: text}} a line, the same ids in every language.

    Args:
        langs: ISO 639-3 codes; their order does not matter.
        kind: ``sentences``: the laboratory's held-out translated sentences, those that all `langs` have. ``questions``: its
            questions about held-out territories. ``files``: the aligned files in `path`.
        count: how many texts, picked by the run's seed; 0 takes all there are.
    Raises (when run):
        XalignError: when the languages share fewer than ten texts.
    """
    from xalign.data.lab.facts import versions

    langs, seed = sorted(set(langs)), run.seed
    files = _files(path, langs) if kind == "files" else {}

    def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
        rows = _aligned(files) if files else _questions(langs) if kind == "questions" else _sentences(inputs[0].path, langs)
        unchanged((p, params["sha256"][lang]) for lang, p in files.items())
        shared = len(rows)
        if shared < FEWEST:
            raise XalignError(f"study.text={kind}: {', '.join(langs)} share only {shared} texts, {FEWEST} are needed; name fewer "
                              f"languages, or {FILES}")
        if count:
            rows = sorted(Random(f"multiway {seed}").sample(rows, min(count, shared)), key=rows.index)
        write_jsonl(folder / FILE, [{"id": code, "texts": texts} for code, texts in rows])
        return {"texts": len(rows), "shared": shared}

    params: dict[str, Any] = {"kind": kind, "langs": langs, "count": count, **({"seed": seed} if count else {})}
    params |= {"sha256": {lang: file_sha256(p) for lang, p in files.items()}} if files else versions()
    return Stage("multiway", 1, params, work, (home_assistant_stage(),) if kind == "sentences" else (), 2,
                 f"{count or 'all'} {'texts of files' if files else kind} in {len(langs)} languages")


def read_texts(artifact: Artifact) -> dict[str, list[str]]:
    """Language → texts of a `texts_stage`, aligned by index."""
    rows = [row["texts"] for row in read_jsonl(artifact.file(FILE))]
    return {lang: [row[lang] for row in rows] for lang in rows[0]}


Rows = list[tuple[str, dict[str, str]]]  # id, language → text


def _sentences(folder: Path, langs: Sequence[str]) -> Rows:
    """Held-out sentences of the Home Assistant artifact in `folder`."""
    from xalign.data.lab import sentences

    found: dict[str, dict[str, str]] = {}
    for lang in langs:
        if lang != "eng":
            pairs = sentences(folder, "eng", lang, "test")
            found[lang] = {p.id: p.tgt for p in pairs}
            found.setdefault("eng", {}).update({p.id: p.src for p in pairs})
    return [(code, {lang: found[lang][code] for lang in langs}) for code in sorted(found["eng"])
            if all(code in found[lang] for lang in langs)]


def _questions(langs: Sequence[str]) -> Rows:
    """The open questions about held-out territories."""
    from xalign.data.lab import open_items

    items = {lang: open_items(lang, lang) for lang in langs}
    return [(same[0].id, {i.lang: i.question for i in same}) for same in zip(*items.values(), strict=True)]


def _names(lang: str) -> tuple[str, ...]:
    """The names that a language's file goes by: NTREX's, then FLORES' devtest, in its folder or without it."""
    from xalign.tasks.flores import FloresTask, NtrexTask

    flores = FloresTask().names(lang, "devtest")
    return tuple(dict.fromkeys((*NtrexTask().names(lang, "test"), *flores, *(Path(name).name for name in flores))))


def _files(path: str, langs: Sequence[str]) -> dict[str, Path]:
    """The file of each language in the folder `path`."""
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise ConfigError(f"study.path={path}: {'no such folder' if path else 'is empty'}; {FILES}")
    found = {}
    for lang in langs:
        hit = next((root / name for name in _names(lang) if (root / name).is_file()), None)
        if not hit:
            raise ConfigError(f"study.path={path}: has no file for {lang} (such as {lang}.txt or {_names(lang)[0]}); put it there, or "
                              f"leave {lang} out of lang")
        found[lang] = hit
    return found


def _aligned(files: dict[str, Path]) -> Rows:
    """The lines of files that are aligned by line."""
    from xalign.tasks.flores import aligned

    (first, path), *others = files.items()
    columns: dict[str, list[str]] = {}
    for lang, other in others:
        here, there = zip(*aligned(path, other, "the corpus"), strict=True)
        columns |= {first: list(here), lang: list(there)}
    return [(f"line/{n}", dict(zip(columns, texts, strict=True))) for n, texts in enumerate(zip(*columns.values(), strict=True), 1)]
