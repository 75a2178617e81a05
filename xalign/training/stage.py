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
"""Set by the pipeline: receives each record of ``log.jsonl`` as it is written, with the ``stage`` it is of; e.g. for the tracker."""


@dataclass(frozen=True)
class TrainJob:
    """All that one training needs; sent to every process.

    Attributes:
        folder: the stage's folder: checkpoints, ``log.jsonl``, and in the end the model.
        model: a folder that `load_backbone` opens.
        rows: ``rows.jsonl`` with Examples.
        objective: gives loss, row weights and modules of its own (`xalign.methods.base.Objective`).
        teacher: a folder that `load_backbone` opens, for objectives that compare; None for the others.
        title: the stage's, told with each record of the log.
        languages: the source language and the targets, for the probe; empty without one.
    """

    folder: Path
    model: Path
    rows: Path
    backbone: Any
    objective: Any
    trainer: TrainerNode
    seed: int
    teacher: Path | None = None
    lr_factor: float = 1.0
    title: str = ""
    languages: tuple[str, ...] = ()

    def run(self) -> dict[str, Any]:
        """See `run_job`."""
        return run_job(self)


def train_stage(run: Run, objective: Any, rows: Stage, weights: Stage, name: str = "train",
                teacher: Stage | None = None, lr_factor: float = 1.0, **overrides: Any) -> Stage:
    """The stage that trains `weights` on `rows` with the objective's loss.

    Args:
        objective: a method, or one stage of it (`xalign.methods.base.Objective`).
        rows: its artifact holds ``rows.jsonl``.
        weights: its artifact is a model folder; another `train_stage` will do.
        name: folder name in the cache.
        teacher: its artifact is the model folder of the frozen model that the loss finds in `xalign.training.losses.aids`.
        lr_factor: multiplies the learning rate.
        overrides: changed fields of ``run.trainer``, e.g. ``epochs=1``.
    Returns:
        A resumable stage whose artifact is the model in the hub's format, ``log.jsonl`` and, with a probe, ``samples.jsonl``.
    """
    trainer = dataclasses.replace(run.trainer, **overrides)
    trainer.check("trainer")
    params = {"trainer": trainer.params(), "loss": objective.loss_params(), "backbone": run.backbone.params(),
              "seed": run.seed, **({"lr_factor": lr_factor} if lr_factor != 1 else {})}

    title = f"{name} {objective.name}"
    languages = (run.source, *run.lang) if trainer.probe_prompts else ()  # not in the key: the rows decide which are asked

    def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
        from xalign.training.ranks import perform

        paths = [a.path.resolve() for a in inputs]
        job = TrainJob(folder.resolve(), paths[1], paths[0] / "rows.jsonl", run.backbone, objective, trainer, run.seed,
                       paths[2] if teacher else None, lr_factor, title, languages)
        return perform(job)

    inputs = (rows, weights, teacher) if teacher else (rows, weights)
    seconds = 60 * objective.effort * trainer.epochs
    return Stage(name, 2, params, work, inputs, seconds, title, resumable=True)


def run_job(job: TrainJob) -> dict[str, Any]:
    """Train and save; called in every process. Returns the facts for the receipt.

    Raises:
        XalignError: when no row is left to train on, or the loss is not finite.
    """
    from xalign.training.ranks import join
    from xalign.training.trainer import Trainer, load_weights

    rank, _ = join()
    backbone = open_backbone(job)
    examples = read_examples(job.rows)
    rows, dropped = tokenise(examples, backbone, job.trainer.max_length)
    if not rows:
        raise XalignError(f"{job.objective.name}: none of {sum(dropped.values())} rows fits trainer.max_length="
                          f"{job.trainer.max_length}; raise it")
    train, valid = (weigh(job.objective, part) for part in split_groups(rows, job.trainer.valid_share, job.seed))
    probe = None
    if job.trainer.probe_prompts:
        from xalign.training.probe import Probe, questions

        node = job.trainer
        probe = Probe(backbone, questions(examples, train, valid, node.probe_prompts, job.seed, job.languages,
                                          backbone.max_length - node.probe_tokens), node.probe_tokens)
    log = _titled(job.title) if rank == 0 else None
    facts = Trainer(backbone.model, job.objective, job.trainer, train, valid, job.folder, job.seed, log, job.lr_factor, probe).fit()
    facts |= probe.facts() if probe else {}
    del backbone, probe
    gc.collect()  # the engine holds itself in cycles: let go of optimiser and gradients before loading again
    if rank == 0:
        best = open_backbone(job, teacher=False)
        load_weights(best.model, job.folder)
        if job.trainer.adapter == "lora":
            from xalign.training.adapter import merge

            merge(best.model)
        best.detach()
        best.save(job.folder)
        (job.folder / "checkpoints" / "latest.json").unlink(missing_ok=True)  # a kill in what follows must not leave it naming half
        shutil.rmtree(job.folder / "checkpoints")
    return {"rows": len(rows), **{f"rows_dropped_{why}": n for why, n in dropped.items()}, **facts}


def _titled(title: str) -> Log | None:
    """`on_log`, told of which stage each record is."""
    told = on_log
    return told and (lambda record: told({**record, "stage": title}))


def open_backbone(job: TrainJob, teacher: bool = True) -> Any:
    """The backbone as it is trained: adapter and the objective's modules in place, the teacher beside it if asked for."""
    from xalign.backbones.load import load_backbone
    from xalign.training.losses import Aids

    backbone = load_backbone(job.model, job.backbone, train=True)
    if job.trainer.adapter == "lora":
        from xalign.training.adapter import add_lora

        add_lora(backbone.model, job.trainer, job.seed)
    job.objective.extend(backbone)
    backbone.model.aids = Aids(backbone, load_backbone(job.teacher, job.backbone) if teacher and job.teacher else None)
    return backbone


def tokenise(examples: list[Example], backbone: Any, max_length: int) -> tuple[list[Row], dict[str, int]]:
    """Rows of at most `max_length` tokens with at least one target, and how many were dropped for which reason."""
    rows, dropped = [], {"too_long": 0}
    for e in examples:
        row = backbone.paired_row(e)
        if row is None:
            dropped["answer_split_differently"] = dropped.get("answer_split_differently", 0) + 1
        elif row.targets and max(_longest(row), _longest(row.twin) if row.twin else 0) <= max_length:
            rows.append(row)
        else:
            dropped["too_long"] += 1
    return rows, dropped


def _longest(row: Row) -> int:
    """Tokens of the longest sequence that the model reads for the row."""
    return max(row.parts) if row.parts else len(row.ids)


def weigh(objective: Any, rows: list[Row]) -> list[Row]:
    """The rows with the objective's weight for each of their targets."""
    return [dataclasses.replace(r, weight=w) for r, w in zip(rows, objective.row_weights(rows), strict=True)] if rows else []
