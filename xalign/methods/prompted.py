"""What ML-IPD and its baselines share (METHODS.md section 3): labelled rows of every language, prompts, and E-IM."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import within
from xalign.data.examples import Example, read_examples, read_jsonl, write_jsonl
from xalign.data.prompts import Frame
from xalign.methods.base import Method, Objective
from xalign.methods.supervised import failures, filtered, labelled, translated_rows, write_rows

if TYPE_CHECKING:
    from xalign.config import Run


@dataclass(frozen=True)
class Multilingual(Method):
    """Base of the methods that train on labelled rows of the target languages, one model for all of them.

    Attributes:
        labelled: labelled rows of each target language, picked by the seed (k of section 3).
    """

    kinds: ClassVar[tuple[str, ...]] = ("encoder", "causal")
    many: ClassVar[bool] = True

    labelled: int = within(500, low=1, note="the paper's small amount of labelled data, k = 500")

    def check_run(self, run: Run) -> None:
        """Also refuse data that is in the source language only and that the translator cannot read."""
        super().check_run(run)
        if not run.data.multilingual:
            run.translator.check_source(run)

    def target_rows(self, run: Run, frame: Frame | None = None) -> Stage:
        """`labelled` rows of every target language, in `frame`."""
        inputs = tuple(questions(run, lang) for lang in run.lang)
        k, seed = self.labelled, run.seed

        def work(folder: Path, artifacts: list[Artifact]) -> dict[str, Any]:
            rows = [e for a in artifacts for e in pick(read_examples(a.file("examples.jsonl")), k, seed)]
            return write_rows(folder, framed(labelled(rows, "target"), frame), required=("target",))

        params = {"method": "labelled", "labelled": k, "seed": seed, "frame": frame.params() if frame else None}
        return Stage("rows", 1, params, work, inputs, label=f"rows labelled {', '.join(run.lang)}")


@dataclass(frozen=True)
class Prompted(Multilingual):
    """Base of the methods that start from E-IM and put TP and LP before every input."""

    def frame(self, run: Run) -> Frame:
        """TP, and LP in words."""
        return Frame("text", run.source)

    def eim_rows(self, run: Run) -> Stage:
        """The source language's instructions in the frame: stage 1's rows, the same for every target language."""
        frame = Frame("none" if self.frame(run).language == "none" else "text", run.source)  # LP of the source is never soft

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            rows = labelled(read_examples(inputs[0].file("examples.jsonl")), "source")
            return write_rows(folder, framed(rows, frame), required=("source",))

        return Stage("rows", 1, {"method": "e_im", "frame": frame.params()}, work, (questions(run, run.source),),
                     label=f"rows E-IM {run.source}")

    def eim_stage(self, run: Run) -> Stage:
        """E-IM: the backbone after CE on the source language's instructions; shared by all methods of this family."""
        from xalign.training.stage import train_stage

        return train_stage(run, EIM(), self.eim_rows(run), run.backbone.weights(run), name="e_im")


class EIM(Objective):
    """Stage 1: cross-entropy."""

    name: ClassVar[str] = "E-IM"
    effort: ClassVar[float] = 1.6


def questions(run: Run, lang: str) -> Stage:
    """``examples.jsonl``: the labelled rows in `lang`; from the data where it speaks that language, else translated."""
    if lang == run.source or run.data.multilingual:
        return run.data.questions_stage(run, lang)
    source = run.data.questions_stage(run, run.source)

    def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
        examples, records = read_examples(inputs[0].file("examples.jsonl")), list(read_jsonl(inputs[1].file("examples.jsonl")))
        rows = [e.with_(id=e.id.removesuffix("/T"), subset="") for e in translated_rows(examples, records, lang)]
        return {"examples": write_jsonl(folder / "examples.jsonl", rows), "not translated": failures(records)}

    return Stage("questions", 2, {"translated": lang}, work, (source, filtered(run, source, lang=lang)), 1,
                 f"translated questions {lang}")


def pick(rows: Sequence[Example], k: int, seed: int) -> list[Example]:
    """`k` of the rows in their order (all, if there are fewer); the same ids in every language."""
    def draw(e: Example) -> bytes:
        return hashlib.sha256(f"{seed}:{e.id}".encode()).digest()

    chosen = {e.id for e in sorted(rows, key=draw)[:k]}
    return [e for e in rows if e.id in chosen]


def framed(rows: Sequence[Example], frame: Frame | None) -> list[Example]:
    """The rows with their prompts and pivots in the frame; ids tell the languages apart."""
    return [(frame.example(e) if frame else e).with_(id=f"{e.id}/{e.lang}") for e in rows]
