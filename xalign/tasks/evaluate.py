"""One model on one task in one language, as two cached stages: predictions, then scores."""
from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import Artifact, Stage
from xalign.config import Run
from xalign.data.examples import read_jsonl, write_jsonl
from xalign.tasks.base import Evaluation, Task

if TYPE_CHECKING:
    from xalign.data.prompts import Frame

_opened: dict[str, Any] = {}  # the backbone that was loaded last, under its key


def opened(folder: Path, backbone: Any) -> Any:
    """The backbone of `folder`; the one loaded last is kept for the next task or language."""
    from xalign.backbones.load import load_backbone

    key = json.dumps([str(folder), backbone.params()])
    if key not in _opened:
        forget()
        _opened[key] = load_backbone(folder, backbone)
    return _opened[key]


def forget() -> None:
    """Give the memory of the kept backbone back, before training takes it."""
    _opened.clear()


def evaluation(run: Run, model: Stage, task: Task, lang: str, baselines: bool, frame: Frame | None = None,
               opponent: Stage | None = None) -> Stage:
    """The scores of `model` on `task` in `lang`: shared by every run that asks the same of the same weights.

    The stage's first input makes the predictions, ``predictions.<name>.jsonl`` with one item a line. The scores'
    artifact holds ``scores.jsonl`` (one metric of the model or a baseline a line) and ``examples.jsonl``
    (per-example scores for paired tests).

    Args:
        baselines: also what needs no training beside the scores: only for the untrained model.
        frame: the prompts that the model was trained with; None asks the bare question.
        opponent: the untrained model's scores on the same, for a judge that compares the two.
    """
    backbone, source = run.backbone, run.source
    when = "untrained" if baselines else "trained"
    inputs, more = task.inputs(run, lang), task.score_inputs(run, lang)

    def begin(folder: Path, found: list[Artifact], load: Any) -> Evaluation:
        ev = Evaluation(folder, load, found, lang, source, baselines, kind=backbone.kind, metric=run.metric,
                        recipe=params["task"])
        if frame:
            ev.frame = lambda task, text, categories=(): frame(task, lang, text, categories)
        return ev

    def predict(folder: Path, found: list[Artifact]) -> Mapping[str, Any]:
        def load() -> Any:
            model = opened(found[0].path, backbone)
            model.truncated = 0
            return model

        began = time.perf_counter()
        ev = begin(folder, found[1:], load)
        task.predict(ev)
        cut = ev.model.truncated if "model" in vars(ev) else 0
        return {**ev.facts, "prompts_cut": cut, "predict_seconds": round(time.perf_counter() - began, 1)}

    def score(folder: Path, found: list[Artifact]) -> Mapping[str, Any]:
        ev = begin(found[0].path, found[1:1 + len(inputs) + len(more)], _no_model)
        ev.out, ev.opponent = folder, found[-1].path if opponent else None
        task.score(ev)
        write_jsonl(folder / "scores.jsonl", ev.scores)
        write_jsonl(folder / "examples.jsonl", ev.examples)
        return ev.facts

    params = {"task": task.recipe(run, lang), "backbone": backbone.params(), "lang": lang, "baselines": baselines,
              **({"frame": frame.params()} if frame else {})}
    predictions = Stage("predict", 1, params, predict, (model, *inputs), task.seconds(run, lang, baselines),
                        f"predict {task.name} {lang}, {when} model", resumable=True)
    return Stage("score", 1, {"task": task.name, **task.scoring(run, lang)}, score,
                 (predictions, *inputs, *more, *([opponent.inputs[0]] if opponent else [])), 1,
                 f"score {task.name} {lang}, {when} model", resumable=True)


def _no_model() -> Any:
    raise RuntimeError("scoring asked for the model: a prediction is missing")


def per_example(artifact: Artifact) -> dict[tuple[str, str], dict[str, list[Any]]]:
    """(task, metric) → item id → [value, cluster(, statistics)] of an evaluation's model, for paired tests."""
    return {(row["task"], row["metric"]): {i: [value, cluster, *more] for i, cluster, value, *more in row["examples"]}
            for row in read_jsonl(artifact.file("examples.jsonl"))}
