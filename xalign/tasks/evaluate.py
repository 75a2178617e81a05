"""One model on one language, as a cached stage: predictions, per-example scores, scores with their errors."""
from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import Artifact, Stage
from xalign.config import Run
from xalign.data.examples import read_jsonl, write_jsonl
from xalign.tasks.base import Evaluation

if TYPE_CHECKING:
    from xalign.data.prompts import Frame


def evaluation(run: Run, model: Stage, lang: str, baselines: bool, frame: Frame | None = None) -> Stage:
    """The evaluation of `model` on `lang`: shared by every run that asks the same of the same weights.

    The artifact holds ``predictions.<task>.jsonl`` (one item a line), ``scores.jsonl`` (one metric of the
    model or a baseline a line) and ``examples.jsonl`` (per-example scores for paired tests).

    Args:
        baselines: also print what needs no training beside the scores: only for the untrained model.
        frame: the prompts that the model was trained with; None asks the bare question.
    """
    task, backbone, source = run.task, run.backbone, run.source

    def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
        def load() -> Any:
            from xalign.backbones.load import load_backbone

            return load_backbone(inputs[0].path, backbone)

        began = time.perf_counter()
        ev = Evaluation(folder, load, inputs[1:], lang, source, baselines, kind=backbone.kind)
        if frame:
            ev.frame = lambda task, text, categories=(): frame(task, lang, text, categories)
        task.evaluate(ev)
        write_jsonl(folder / "scores.jsonl", ev.scores)
        write_jsonl(folder / "examples.jsonl", ev.examples)
        cut = ev.model.truncated if "model" in vars(ev) else 0
        return {**ev.facts, "prompts_cut": cut, "evaluate_seconds": round(time.perf_counter() - began, 1)}

    params = {"task": task.recipe(run, lang), "backbone": backbone.params(), "lang": lang, "baselines": baselines,
              **({"frame": frame.params()} if frame else {})}
    when = "untrained" if baselines else "trained"
    return Stage("evaluate", 1, params, work, (model, *task.inputs(run, lang)), task.seconds(run, lang, baselines),
                 f"evaluate {lang}, {when} model", resumable=True)


def per_example(artifact: Artifact) -> dict[tuple[str, str], dict[str, tuple[float, str]]]:
    """(task, metric) → item id → (value, cluster) of an evaluation's model, for paired tests."""
    return {(row["task"], row["metric"]): {i: (value, cluster) for i, cluster, value in row["examples"]}
            for row in read_jsonl(artifact.file("examples.jsonl"))}
