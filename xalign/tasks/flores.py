"""FLORES-101/200 and NTREX-128 from their official files: translation from and into the source language."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import XalignError, within
from xalign.data.instructions import translation_prompt
from xalign.languages import LANGUAGES
from xalign.tasks.base import Evaluation
from xalign.tasks.columns import lines_of
from xalign.tasks.files import HubFile
from xalign.tasks.textfiles import TextFileTask, TextItem
from xalign.tasks.texts import add_off_target, add_translation, learned_params, tokenizers

if TYPE_CHECKING:
    from xalign.config import Run

FLORES_101 = {"zho": "zho_simpl"}  # codes that are not ISO 639-3
FLORES_PLUS = {"zho": "cmn_Hans"}  # codes that are not those of FLORES-200
NTREX = {"ara": "arb", "zho": "zho-CN"}


@dataclass(frozen=True)
class ParallelTask(TextFileTask):
    """Aligned sentences, one file a language, translated in both directions by the prompt that the methods train with.

    The scores' tasks are ``name:eng-fin`` and ``name:fin-eng``: BLEU, chrF, chrF++ and the learned metrics of `run.metric`.
    """

    task_name: ClassVar[str] = "translation"
    item_seconds: ClassVar[float] = 1.5

    max_new_tokens: int = within(256, low=1)

    def names(self, lang: str, split: str) -> tuple[str, ...]:
        """The names that the official file of one language and split goes by, the usual one first."""
        raise NotImplementedError

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        return {"test": self.names(lang, "devtest"), "source": self.names(source, "devtest")}

    def lacks(self, run: Run, lang: str) -> str:
        """Why `lang` cannot be evaluated; the source language has no translation of its own."""
        return f"task.{self.name}: {lang} is the source language; its translations are scored with each target" if lang == run.source else \
            super().lacks(run, lang)

    def read(self, folder: Path, lang: str, source: str) -> tuple[list[TextItem], list[TextItem]]:
        at = self.paths(folder, lang, source)
        solved = self._items(at["shots_source"], at["shots"], lang, source, "dev-") if "shots" in at else []
        return solved, self._items(at["source"], at["test"], lang, source)

    def _items(self, source_file: Path, target_file: Path, lang: str, source: str, prefix: str = "") -> list[TextItem]:
        pairs = aligned(source_file, target_file, self.title)
        return [TextItem(f"{self.name}/{prefix}{n}:{a}-{b}", f"{self.name}/{prefix}{n}", translation_prompt(text, a, b), b, (right,),
                         text, f"{a}-{b}")
                for a, b, at in ((source, lang, 0), (lang, source, 1))
                for n, pair in enumerate(pairs, 1) for text, right in ((pair[at], pair[1 - at]),)]

    def seconds(self, run: Run, lang: str, baselines: bool) -> float:
        return super().seconds(run, lang, baselines) * (2 if self.limit else 1)  # `items` counts both directions

    def metric_names(self) -> list[str]:
        return ["bleu", "chrf", "chrf++", "off_target"]

    def scoring(self, run: Run, lang: str) -> dict[str, Any]:
        return {**learned_params(run), **tokenizers(run, (run.source, lang))}

    def score_part(self, ev: Evaluation, task: str, records: Sequence[dict[str, Any]]) -> None:
        add_translation(ev, task, records, self.signed)
        add_off_target(ev, task, records)


@dataclass(frozen=True)
class FloresTask(ParallelTask):
    """FLORES-200 or FLORES-101, devtest; solved examples are the first of dev. Source: Goyal et al. 2022, NLLB team 2022."""

    name: ClassVar[str] = "flores"
    title: ClassVar[str] = "FLORES"
    origin: ClassVar[str] = "github.com/facebookresearch/flores"
    items: ClassVar[int] = 2 * 1012

    def names(self, lang: str, split: str) -> tuple[str, ...]:
        codes = (LANGUAGES[lang].flores, FLORES_101.get(lang, lang))
        return tuple(f"{split}/{code}.{split}" for code in codes)

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        solved = {"shots": self.names(lang, "dev"), "shots_source": self.names(source, "dev")}
        return super().files(lang, source) | (solved if self.shots else {})

    def hub(self, lang: str, source: str) -> list[HubFile]:
        """From FLORES+, which goes on correcting FLORES-200: access has to be asked for on its page."""
        return [HubFile(self.names(code, split)[0], "openlanguagedata/flores_plus",
                        FLORES_PLUS.get(code, LANGUAGES[code].flores), split, lambda rows: sentences(rows, "text"))
                for split in ("devtest", *(["dev"] if self.shots else [])) for code in (lang, source)]


@dataclass(frozen=True)
class NtrexTask(ParallelTask):
    """NTREX-128, 1,997 sentences of newstest2019; there is no dev, so solved examples are the test's first ones.

    Source: Federmann et al. 2022.
    """

    name: ClassVar[str] = "ntrex"
    title: ClassVar[str] = "NTREX-128"
    origin: ClassVar[str] = "github.com/MicrosoftTranslator/NTREX"
    items: ClassVar[int] = 2 * 1997

    def names(self, lang: str, split: str) -> tuple[str, ...]:
        file = "newstest2019-src.eng.txt" if lang == "eng" else f"newstest2019-ref.{NTREX.get(lang, lang)}.txt"
        return file, f"NTREX-128/{file}", f"{lang}.txt", f"test/{LANGUAGES[lang].flores}.test", f"test/{lang}.test"

    def hub(self, lang: str, source: str) -> list[HubFile]:
        return [HubFile(self.names(code, "test")[0], "mteb/NTREX", "default", "test",
                        lambda rows, column=LANGUAGES[code].flores: sentences(rows, column)) for code in (lang, source)]


def sentences(rows: Iterable[Mapping[str, Any]], column: str) -> str:
    """The column's texts, one a line, in the order of their ids where they have any: the files are aligned by line."""
    rows = list(rows)
    if rows and "id" in rows[0]:
        rows.sort(key=lambda r: r["id"])
    return "".join(" ".join(str(r[column]).splitlines()).strip() + "\n" for r in rows)


def aligned(source: Path, target: Path, title: str) -> list[tuple[str, str]]:
    """The sentence pairs of two files with one sentence a line.

    Raises:
        XalignError: for an empty line or another number of lines, naming file and line.
    """
    sides = []
    for path in (source, target):
        lines = lines_of(path, title)
        empty = next((number for number, text in lines if not text), None)
        if empty:
            raise XalignError(f"{path}:{empty}: is empty, and the files are aligned by line; use {title}'s official file")
        sides.append([text for _, text in lines])
    if len(sides[0]) != len(sides[1]):
        raise XalignError(f"{target}:{len(sides[1])}: ends here, but {source} has {len(sides[0])} lines, and the two are aligned by line; "
                          f"use files of one release of {title}")
    return list(zip(*sides, strict=True))
