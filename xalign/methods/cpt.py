"""Continued pre-training on text of the target language in place of translation data (x-LLM Figure 7 and section 6)."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import XalignError, within
from xalign.data.examples import Example, read_jsonl
from xalign.data.reading import check_file, text_lines, unchanged
from xalign.digests import file_sha256
from xalign.methods.base import Method, Objective
from xalign.methods.coit import CoIT
from xalign.methods.supervised import write_rows
from xalign.training.stage import train_stage

if TYPE_CHECKING:
    from xalign.config import Run


@dataclass(frozen=True)
class CPT(Method):
    """Stage 1: every token of monolingual text in L. Stage 2: CoIT's rows without translation instructions, D and (T(x), T(y)).

    Attributes:
        path: UTF-8 file with one text a line; null takes the target side of the parallel text (``parallel``).
        lines: texts, picked by the seed; 0 takes all.
        text_epochs: passes over the text, in place of trainer.epochs.
    """

    name: ClassVar[str] = "cpt"
    effort: ClassVar[float] = 0.7
    translates: ClassVar[bool] = True

    path: str | None = None
    lines: int = within(0, low=0)
    text_epochs: int = within(1, low=1)

    def check_run(self, run: Run) -> None:
        """Also refuse a file that is not there, or is no text."""
        super().check_run(run)
        if self.path is not None:
            read_texts(check_file("method.path", self.path, f"give one text a line in {run.target}, or null for the target side of the "
                                                            "parallel text"))

    def text_rows(self, run: Run) -> Stage:
        """The texts as rows without a prompt, subset ``text``; each different text once."""
        path, target, seed, lines = Path(self.path).expanduser() if self.path else None, run.target, run.seed, self.lines

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            found = read_texts(path) if path else [p["tgt"] for p in read_jsonl(inputs[0].file("pairs.jsonl"))]
            if path:
                unchanged([(path, params["sha256"])])
            texts = list(dict.fromkeys(found))
            Random(f"texts {seed}").shuffle(texts)
            rows = [Example(f"text/{i}", target, "", text, source="text", subset="text", group=f"text/{i}")
                    for i, text in enumerate(texts[:lines or None], 1)]
            return write_rows(folder, rows, {"texts": len(texts)}, required=("text",))

        params: dict[str, Any] = {"method": "text", "lang": target, "lines": lines, "seed": seed,
                                  "sha256": file_sha256(path) if path else None}
        return Stage("rows", 1, params, work, () if path else (run.parallel.stage(run, target),), label=f"rows text {target}")

    def rows(self, run: Run) -> Stage:
        """Stage 2's rows: those of CoIT with the subsets D and T."""
        return CoIT(subsets=["D", "T"]).rows(run)

    def training_rows(self, run: Run) -> tuple[Stage, ...]:
        """The rows of both stages."""
        return self.text_rows(run), self.rows(run)

    def model_stage(self, run: Run) -> Stage:
        """The backbone after the text, then after the instructions."""
        read = train_stage(run, Reading(), self.text_rows(run), run.backbone.weights(run), name="pretrain", epochs=self.text_epochs)
        return train_stage(run, self, self.rows(run), read)


class Reading(Objective):
    """Stage 1: cross-entropy of every token."""

    name: ClassVar[str] = "text"
    effort: ClassVar[float] = 0.5


def read_texts(path: Path) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        XalignError: if it is not UTF-8 text, or has none.
    """
    texts = [text for _, line in text_lines(path) if (text := line.strip())]
    if not texts:
        raise XalignError(f"{path}: holds no text; give one text a line")
    return texts
