"""What a run leaves behind: rows, predictions, the model with its card, the tracker's summary."""
from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import RECEIPT, Artifact, Cache
from xalign.config import Run
from xalign.data.examples import read_jsonl, write_jsonl
from xalign.digests import LARGE, intact, read_sealed, remove
from xalign.rows import percent

if TYPE_CHECKING:
    from xalign.plan import Plan

Found = dict[tuple[str, str], Artifact]


def collect_rows(run: Run, plan: Plan, folder: Path, before: Found, after: Found, studied: dict[str, Artifact]) -> list[dict[str, Any]]:
    """Every score as a row in long format; rows after training carry the paired comparison with before."""
    from xalign.analysis.corpus import paired_examples
    from xalign.tasks.evaluate import per_example

    pick = run.choices.get
    method = "none" if run.mode != "train" else pick("method")
    shared = {"run": folder.name, "method": method, "source": run.source, "backbone": pick("backbone"), "seed": run.seed}
    rows = []
    for task, lang in before:
        for score in read_jsonl(before[task, lang].file("scores.jsonl")):
            when = "before" if score["name"] == "model" else f"baseline:{score['name']}"
            rows.append({**shared, **{k: v for k, v in score.items() if k != "name"}, "when": when})
        if (task, lang) not in after:
            continue
        old, new = per_example(before[task, lang]), per_example(after[task, lang])
        for score in read_jsonl(after[task, lang].file("scores.jsonl")):
            row = {**shared, **{k: v for k, v in score.items() if k != "name"}, "when": "after"}
            a, b = (values.get((score["task"], score["metric"]), {}) for values in (old, new))
            test = paired_examples(score["metric"], [a], [b]) if a and b else None
            if test:
                row |= {"diff": test.diff, "diff_se": test.se, "p": test.p_randomisation, "pairs": test.n,
                        "detectable": test.detectable(scale=100 if percent(row["metric"]) else 1)}
            rows.append(row)
    nothing = {"value": None, "se": None, "n": 0, "signature": ""}
    for task, lang, reason in plan.absent:
        rows += [{**shared, "task": task.name, "lang": lang, "metric": metric, **nothing, "reason": reason, "when": when}
                 for metric in task.metric_names() for when in ("before", "after")[:2 if after else 1]]
    return rows + [{**shared, "reason": None, **row} for row in run.study.rows(run, studied)]


def export(source: Path, target: Path) -> None:
    """Put an artifact's file into a run's folder: weights without a second copy where the file system allows it.

    Whatever people may open and edit is a copy: in a file shared with the cache an edit would cost them the artifact.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(target)
    if source.stat().st_size > LARGE:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def export_predictions(folder: Path, plan: Plan, cache: Cache) -> None:
    """predictions/<when>/<lang>/<name>.jsonl, each record with its scores, and the per-example scores of all tasks beside them."""
    from xalign.tasks.evaluate import per_example

    for when, stages in (("before", plan.before), ("after", plan.after)):
        remove(folder / "predictions" / when)
        for (_, lang), stage in stages.items():
            target = folder / "predictions" / when / lang
            target.mkdir(parents=True, exist_ok=True)
            scores = cache.get(stage)
            with open(target / "per_example_scores.jsonl", "a", encoding="utf-8") as f:
                f.write(scores.file("examples.jsonl").read_text(encoding="utf-8"))
            found: dict[str, dict[str, Any]] = {}
            for (task, metric), items in per_example(scores).items():
                for i, (value, *_) in items.items():
                    found.setdefault(i, {})[metric if "." not in metric else f"{task}:{metric}"] = value
            for path in sorted(cache.get(stage.inputs[0]).path.glob("predictions.*.jsonl")):
                write_jsonl(target / path.name.removeprefix("predictions."),
                            ({**record, "scores": found.get(record["id"], {})} for record in read_jsonl(path)))
            for path in sorted(scores.path.glob("*.jsonl")):  # what the scoring wrote down: a judge's verdicts
                if path.name not in ("scores.jsonl", "examples.jsonl"):
                    export(path, target / path.name)


def export_studied(folder: Path, studied: dict[str, Artifact], say: Callable[[str], None]) -> None:
    """study/<name>/<when>/: what the run's study computed, receipts included.

    What another study of the same run left there stays, if it is as its receipt says; else it is removed, with one line.
    """
    from xalign.studies.base import FOLDER, place

    own = {place(folder, artifact.receipt["name"], when): artifact for when, artifact in studied.items()}
    for other in sorted(set((folder / FOLDER).glob("*/*")) - own.keys()):
        receipt = read_sealed(other / RECEIPT) if (other / RECEIPT).is_file() else None
        if not receipt or not all(intact(other / name, fact) for name, fact in receipt["files"].items()):
            say(f"{other}: is damaged and removed; repeat the command with study={other.parent.name} to have it again")
            remove(other)
    for target, artifact in own.items():
        remove(target)
        for path in sorted(p for p in artifact.path.rglob("*") if p.is_file()):
            export(path, target / path.relative_to(artifact.path))


def training_records(plan: Plan, cache: Cache, name: str = "log.jsonl") -> Iterator[dict[str, Any]]:
    """What every finished training stage of `plan` wrote to its file `name`, in the order of the stages; ``stage`` is the stage's title.

    Steps begin again with each stage. A stage without the file has no records.
    """
    for stage in plan.stages():
        if "trainer" in stage.params and cache.has(stage) and (path := cache.get(stage).file(name)).is_file():
            for record in read_jsonl(path):
                yield {**record, "stage": stage.title}


def export_logs(plan: Plan, cache: Cache, folder: Path) -> None:
    """log.jsonl and samples.jsonl of all training stages; the stages' own files stay as they are."""
    for name in ("log.jsonl", "samples.jsonl"):
        remove(folder / name)  # an older version's file may be the stage's own, by a hard link
        if records := list(training_records(plan, cache, name)):
            write_jsonl(folder / name, records)


def export_model(run: Run, plan: Plan, cache: Cache, folder: Path, rows: list[dict[str, Any]], cost: dict[str, Any]) -> None:
    """The trained model in the hub's format with its card, and the course of its training."""
    from xalign.modelcard import write_card

    assert plan.model
    model, skip = cache.get(plan.model), {"receipt.json", "log.jsonl", "samples.jsonl"}
    for path in sorted(p for p in model.path.rglob("*") if p.is_file() and p.name not in skip):
        export(path, folder / "model" / path.relative_to(model.path))
    export_logs(plan, cache, folder)
    write_card(folder / "model", run, rows, cost)
