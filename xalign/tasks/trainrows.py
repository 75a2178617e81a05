"""A benchmark's own training and validation files as instruction data: XGLUE's XNLI, worded as its test is."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, Node, Run, XalignError, within
from xalign.data.examples import Example, write_jsonl
from xalign.data.reading import MISSING, trouble, unchanged
from xalign.digests import file_sha256
from xalign.languages import LANGUAGES
from xalign.tasks import xnli
from xalign.tasks.columns import rows_of
from xalign.tasks.wording import words
from xalign.tasks.xglue import ORIGIN

COLUMNS = ("premise", "hypothesis", "label")
TRAIN = "XNLI/multinli.train.en.tsv"  # its third label is spelt "contradictory"


@dataclass(frozen=True)
class XnliRows(Node):
    """English: MultiNLI's training pairs and XNLI's validation pairs. Any other language: the validation pairs, 2,490 translations by
    people, under the ids of the English ones.

    Attributes:
        path: folder of xglue_full_dataset.
        limit: first pairs of MultiNLI; 0 takes all 392,702.
    """

    multilingual: ClassVar[bool] = True
    has_options: ClassVar[bool] = True

    path: str = ""
    limit: int = within(0, low=0)

    def check_run(self, run: Run) -> None:
        """Raise ConfigError for another source than English and for files that are not there, XalignError for an unusable line of
        those for validation; MultiNLI's, a hundred times as long, is read when it is needed."""
        if run.source != "eng":
            raise ConfigError(f"source={run.source}: data=xnli is MultiNLI, in English; set source=eng, or choose other data")
        if not self.path:
            raise ConfigError(f"data.path: names no folder; give that of {ORIGIN} as data.path=DIR")
        for lang in (run.source, *run.lang):
            if lang not in xnli.XnliTask.languages:
                raise ConfigError(f"lang={lang}: XNLI has no {LANGUAGES[lang].name}; it has {' '.join(xnli.XnliTask.languages)}")
        for path in (self._train, *(self._dev(lang) for lang in (run.source, *run.lang))):
            name = path.relative_to(Path(self.path).expanduser())
            if why := trouble(path):
                raise ConfigError(f"data.path={self.path}: {f'has no {name}' if why == MISSING else f'{name} {why}'}; use {ORIGIN}")
        source = read_pairs(self._dev(run.source), run.source, "dev")
        for lang in run.lang:
            check_twins(read_pairs(self._dev(lang), lang, "dev"), self._dev(lang), source, self._dev(run.source))

    @property
    def _train(self) -> Path:
        return Path(self.path).expanduser() / TRAIN

    def _dev(self, lang: str) -> Path:
        return Path(self.path).expanduser() / f"XNLI/{LANGUAGES[lang].iso1}.dev"

    def questions_stage(self, run: Run, lang: str) -> Stage:
        """``examples.jsonl``: pairs as questions with three options, in the words of `lang`."""
        limit, dev = self.limit, self._dev(lang)
        files = [dev, self._train] if lang == run.source else [dev, self._dev(run.source)]

        def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
            rows, second = read_pairs(dev, lang, "dev"), read_pairs(files[1], lang, "train", limit) if lang == run.source else []
            if lang != run.source:
                check_twins(rows, dev, read_pairs(files[1], run.source, "dev"), files[1])
            unchanged(zip(files, params["sha256"], strict=True))
            write_jsonl(folder / "examples.jsonl", second + rows)
            return {"examples": len(second) + len(rows), "validation pairs": len(rows)}

        block = words(lang)
        params: dict[str, Any] = {"data": "xnli", "lang": lang, "sha256": [file_sha256(p) for p in files], "limit": limit,
                  "words": {key: block[key] for key in xnli.XnliTask.keys}}
        return Stage("questions", 1, params, work, seconds=10, label=f"XNLI pairs {lang}")


def read_pairs(path: Path, lang: str, split: str, limit: int = 0) -> list[Example]:
    """The pairs of one file as training rows; pairs with one premise are one group.

    Args:
        split: ``train`` has a line of column names and "contradictory"; ``dev`` has neither.
    Raises:
        XalignError: for a line without three columns or with another label, naming file and line.
    """
    out: list[Example] = []
    for where, (premise, hypothesis, label) in rows_of(path, COLUMNS, "XGLUE XNLI"):
        if split == "train" and label == "label":
            continue
        label = "contradiction" if label == "contradictory" else label
        q = xnli.question(f"xnli/{split}/{len(out) + 1}", premise, hypothesis, label, lang, where)
        out.append(Example(q.id, lang, q.text, q.options[q.gold], source="xnli", group=f"xnli/{split}/{q.cluster}", options=q.options))
        if limit and len(out) == limit:
            break
    if not out:
        raise XalignError(f"{path}: holds no pairs; use {ORIGIN}")
    return out


def check_twins(rows: list[Example], path: Path, source: list[Example], other: Path) -> None:
    """Raise XalignError unless the two files have the same labels line by line: they are translations of each other."""
    found = next((i for i, (a, b) in enumerate(zip(rows, source, strict=False), 1)
                  if a.options.index(a.response) != b.options.index(b.response)), None)
    if len(rows) != len(source) or found:
        what = f"pair {found} has another label than" if found else f"holds {len(rows)} pairs, not {len(source)} as"
        raise XalignError(f"{path}: {what} in {other.name}; use {ORIGIN}, whose validation files are translations of each other")
