"""Parallel text for SDRRL's D_mt and D_comp: ``pairs.jsonl`` with {id, src, tgt, kind}, training split only."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from xalign.assets import home_assistant_stage
from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, Node, Run, XalignError, within
from xalign.data.examples import write_jsonl
from xalign.data.lab.pairs import Pair, name_lists, phrases, sentences
from xalign.data.reading import MISSING, text_lines, trouble, unchanged
from xalign.digests import file_sha256


def _write(folder: Path, pairs: list[Pair]) -> Mapping[str, Any]:
    write_jsonl(folder / "pairs.jsonl", pairs)
    return {"pairs": len(pairs), **Counter(p.kind for p in pairs)}


@dataclass(frozen=True)
class LabParallel(Node):
    """Translated sentences, CLDR phrases and lists of the entities' names (names of test entities too, never their facts)."""

    sentences: int = within(20, 0)
    phrases: int = within(10, 0, 20_000)
    name_passes: float = within(1.25, 0, 100)

    def check_run(self, run: Run) -> None:
        """Raise ConfigError if nothing is asked for."""
        if not (self.sentences or self.phrases or self.name_passes):
            raise ConfigError("parallel: sentences, phrases and name_passes are all 0; "
                              "to train without parallel text set method.parallel=false")

    def stage(self, run: Run, lang: str) -> Stage:
        """Pairs source-`lang`; the seed picks the sentences and phrases and shuffles the lists."""
        from xalign.data.lab.facts import versions

        source, seed = run.source, run.seed

        def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
            rows: list[Pair] = []
            if inputs:
                rows = sentences(inputs[0].path, source, lang, "train")
                Random(f"sentences {seed}").shuffle(rows)
            rows = rows[: self.sentences]
            rows += phrases(source, lang, "train", self.phrases, seed) + name_lists(source, lang, self.name_passes, seed)
            return _write(folder, rows)

        params = {"parallel": "lab", "source": source, "lang": lang, "sentences": self.sentences, "phrases": self.phrases,
                  "name_passes": self.name_passes, "seed": seed, **versions()}
        return Stage("parallel", 1, params, work, inputs=(home_assistant_stage(),) if self.sentences else (), seconds=3,
                     label=f"lab parallel text {source}-{lang}")


@dataclass(frozen=True)
class FileParallel(Node):
    """A folder with one ``<iso3>.txt`` a language, aligned line by line (NTREX's shape), or with one folder ``eng-fin`` a pair of
    languages that holds two such files (OPUS' corpora, which have other sentences for every pair).

    Attributes:
        path: the folder.
        pairs: aligned lines, picked by the seed; 0 takes all.
    """

    path: str = ""
    pairs: int = within(1000, 0)

    def check_run(self, run: Run) -> None:
        """Raise ConfigError unless the files of the source and of every target language are there, XalignError unless they are aligned."""
        if not self.path:
            raise ConfigError("parallel.path: names no folder; give the folder with <iso3>.txt files as parallel.path=DIR")
        for lang in run.lang:
            _aligned(*self._files(run.source, lang))

    def _files(self, source: str, lang: str) -> tuple[Path, Path]:
        """The two aligned files."""
        root, pair = Path(self.path).expanduser(), f"{source}-{lang}"
        folder = root / pair if (root / pair).is_dir() else root
        for code in (source, lang):
            why = trouble(folder / f"{code}.txt")
            if why == MISSING:
                raise ConfigError(f"parallel.path={self.path}: has no {code}.txt; it needs one aligned file a language, or a folder "
                                  f"{pair} with the two")
            if why:
                raise ConfigError(f"parallel.path={self.path}: {code}.txt {why}; put the text file there")
        return folder / f"{source}.txt", folder / f"{lang}.txt"

    def stage(self, run: Run, lang: str) -> Stage:
        """`pairs` aligned lines, picked by the seed; lines that are empty on either side are left out."""
        paths, source, seed = self._files(run.source, lang), run.source, run.seed

        def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
            rows = _aligned(*paths)
            unchanged(zip(paths, params["sha256"], strict=True))
            Random(f"lines {seed}").shuffle(rows)
            return _write(folder, rows[:self.pairs or None])

        params: dict[str, Any] = {"parallel": "files", "source": source, "lang": lang, "sha256": [file_sha256(p) for p in paths],
                  "pairs": self.pairs, "seed": seed}
        return Stage("parallel", 1, params, work, seconds=1, label=f"parallel text {source}-{lang}")


def _aligned(source: Path, target: Path) -> list[Pair]:
    """The lines that are filled on both sides.

    Raises:
        XalignError: for files of other lengths, or without such a line.
    """
    left, right = ([line.strip() for _, line in text_lines(path)] for path in (source, target))
    if len(left) != len(right):
        raise XalignError(f"{target}: has {len(right)} lines but {source.name} has {len(left)}; the files must be aligned line by line")
    rows = [Pair(f"line/{i}", a, b, "sentence") for i, (a, b) in enumerate(zip(left, right, strict=True), 1) if a and b]
    if not rows:
        raise XalignError(f"{target}: holds no line that is filled on both sides; {source.name} and it must be aligned line by line")
    return rows
