"""Training as a cached stage: rows and weights in, a model folder out. No torch at import."""
from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import Artifact, Stage
from xalign.config import XalignError
from xalign.data.examples import Example, read_examples
from xalign.data.packing import Row, split_groups

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.training.node import TrainerNode

Log = Callable[[dict[str, Any]], None]

on_log: Log | None = None
"""Set by the pipeline: receives each record of ``log.jsonl`` as it is written, e.g. for the tracker."""


@dataclass(frozen=True)
class TrainJob:
    """All that one training needs; sent to every process.

    Attributes:
        folder: the stage's folder: checkpoints, ``log.jsonl``, and in the end the model.
        model: a folder that `load_backbone` opens.
        rows: ``rows.jsonl`` with Examples.
    """

    folder: Path
    model: Path
    rows: Path
    backbone: Any
    method: Any
    trainer: TrainerNode
    seed: int


def train_stage(run: Run, method: Any, rows: Stage, weights: Stage, name: str = "train", seconds: float = 240.0,
                **overrides: Any) -> Stage:
    """The stage that trains `weights` on `rows` with `method`'s loss.

    Args:
        method: gives ``loss(model, batch) -> LossOut``, ``row_weights(rows) -> list[float]``,
            ``loss_params() -> dict`` (what the key must know about the first two) and ``name``.
        rows: its artifact holds ``rows.jsonl``.
        weights: its artifact is a model folder; another `train_stage` will do.
        name: folder name in the cache.
        seconds: estimated cost, for the plan.
        overrides: changed fields of ``run.trainer``, e.g. ``epochs=1``.
    Returns:
        A resumable stage whose artifact is the model in the hub's format and ``log.jsonl``.
    """
    trainer = dataclasses.replace(run.trainer, **overrides)
    trainer.check("trainer")
    params = {"trainer": dataclasses.asdict(trainer), "loss": method.loss_params(), "backbone": run.backbone.params(),
              "seed": run.seed}

    def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
        from xalign.training.ranks import share

        job = TrainJob(folder.resolve(), inputs[1].path.resolve(), inputs[0].file("rows.jsonl").resolve(), run.backbone, method,
                       trainer, run.seed)
        share(job)
        return run_job(job)

    return Stage(name, 1, params, work, (rows, weights), seconds, f"{name} {method.name}", resumable=True)


def run_job(job: TrainJob) -> dict[str, Any]:
    """Train and save; called in every process. Returns the facts for the receipt.

    Raises:
        XalignError: when no row is left to train on, or the loss is not finite.
    """
    from xalign.backbones.load import load_backbone
    from xalign.training.ranks import join
    from xalign.training.trainer import Trainer, load_weights

    rank, _ = join()
    backbone = load_backbone(job.model, job.backbone, train=True)
    rows, dropped = tokenise(read_examples(job.rows), backbone.encode_pair, job.trainer.max_length)
    if not rows:
        raise XalignError(f"{job.method.name}: none of {dropped} rows fits trainer.max_length={job.trainer.max_length}; raise it")
    train, valid = (weigh(job.method, part) for part in split_groups(rows, job.trainer.valid_share, job.seed))
    log = on_log if rank == 0 else None
    facts = Trainer(backbone.model, job.method, job.trainer, train, valid, job.folder, job.seed, log).fit()
    del backbone
    gc.collect()  # the engine holds itself in cycles: let go of optimiser and gradients before loading again
    if rank == 0:
        best = load_backbone(job.model, job.backbone, train=True)
        load_weights(best.model, job.folder)
        best.save(job.folder)
        shutil.rmtree(job.folder / "checkpoints")
    return {"rows": len(rows), "rows_dropped_too_long": dropped, **facts}


def tokenise(examples: list[Example], encode_pair: Callable[[str, str], tuple[list[int], int]],
             max_length: int) -> tuple[list[Row], int]:
    """Rows of at most `max_length` tokens with at least one supervised one, and how many were dropped."""
    rows = []
    for e in examples:
        ids, n_prompt = encode_pair(e.prompt, e.response)
        if n_prompt < len(ids) <= max_length:
            rows.append(Row(e.id, tuple(ids), n_prompt, e.subset, e.group, e.weight))
    return rows, len(examples) - len(rows)


def weigh(method: Any, rows: list[Row]) -> list[Row]:
    """The rows with the method's weight for each of their supervised tokens."""
    return [dataclasses.replace(r, weight=w) for r, w in zip(rows, method.row_weights(rows), strict=True)] if rows else []
