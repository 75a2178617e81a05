"""What a run sends to its tracker: configuration, curves, scores, tables, pictures, and the files it made and used."""
from __future__ import annotations

import io
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import Cache, locked
from xalign.config import Run, XalignError
from xalign.data.examples import read_jsonl
from xalign.digests import write_json
from xalign.rows import arrow
from xalign.tables import is_number
from xalign.tracking import Package, Say, Start, Tracker, chosen, one_line, start

if TYPE_CHECKING:
    from xalign.plan import Plan
    from xalign.studies.base import Study

MARK = "tracker.json"  # in the run's folder: what is recorded where
SCORES = ["lang", "task", "metric", "when", "value", "se", "n", "diff", "p", "signature"]
COSTS = ["kind", "stage", "seconds", "devices", "device", "device_hours", "tokens", "flops", "mfu", "peak_gib", "energy_kwh", "reused",
         "key"]
RESULTS = ("rows.jsonl", "cost.jsonl", "run.json", "config.yaml", "receipts.json", "log.jsonl", "samples.jsonl")
LANGS = 6  # more languages than these are one tag
KINDS = {"weights": "model", "questions": "dataset", "parallel": "dataset", "answers": "answers", "translate": "translations"}


def settings(run: Run) -> dict[str, Any]:
    """The resolved configuration as dotted keys, as the command line writes them; a group's own key is its choice.

    ``method`` is ``sdrrl``, ``method.code_switch`` 0.15, ``lang`` ``fin``: the keys of a sweep agent's parameters too.
    """
    from xalign.plan import plain

    def flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for name, part in value.items():
                yield from flat(part, f"{prefix}.{name}" if prefix else name)
        else:
            yield prefix, value

    values = {k: v for k, v in plain(run).items() if k not in ("choices", "tasks", "runs", "cache", "tracker")}
    values["task"] = {node.name: settings for node, settings in zip(run.tasks, plain(run)["tasks"], strict=True)}
    found = dict(flat(values, ""))
    return {**found, "lang": ",".join(run.lang), **{group: run.choices[group] for group in Run.NODES if run.choices.get(group)}}


def marks(folder: Path) -> dict[str, dict[str, Any]]:
    """What `MARK` says: tracker → id, where, complete; empty where nothing was recorded."""
    try:
        return dict(json.loads((folder / MARK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def begin(run: Run, folder: Path, say: Say, only: tuple[str, ...] = ("wandb", "comet")) -> Tracker:
    """Start the chosen trackers; notes what they call the run in the run's folder."""
    known, pick = marks(folder), run.choices.get
    langs = run.lang if len(run.lang) <= LANGS else (f"{len(run.lang)} languages",)
    method = () if run.mode != "train" else (pick("method") or "",)
    told = Start(config=settings(run), name=folder.name,
                 group=Path(os.environ["XALIGN_SWEEP"]).name if "XALIGN_SWEEP" in os.environ else None, folder=folder,
                 tags=tuple(filter(None, (*method, *langs, pick("backbone")))), kind=run.mode,
                 key=known.get("comet", {}).get("id") or uuid.uuid4().hex)
    tracker = start(run.tracker, told, say, only)
    for name, line in tracker.lines.items():
        if not line.over:
            known[name] = {"id": line.id, "where": line.where, "complete": False}
    _note(folder, known)
    return tracker


def end(tracker: Tracker, folder: Path, failed: bool = False) -> None:
    """Finish the record and note that it is complete."""
    tracker.finish(failed)
    known = marks(folder)
    for name, line in tracker.lines.items():
        if line.complete and not failed:
            known[name] = {"id": line.id, "where": line.where, "complete": True}
    _note(folder, known)


def _note(folder: Path, known: dict[str, Any]) -> None:
    if known:
        with suppress(OSError):  # a full disk stops the run elsewhere, with a better message
            write_json(folder / MARK, known)


def missing(run: Run, folder: Path) -> tuple[str, ...]:
    """The chosen trackers that have no complete record of a finished run (of a sweep agent's run, no record under its id)."""
    known, agent = marks(folder), os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return tuple(name for name in chosen(run.tracker) if not known.get(name, {}).get("complete")
                 or name == "wandb" and agent and known[name].get("id") != agent)


class Curves:
    """Training records on one axis: a second stage goes on where the first ended; what was sent is not sent again."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self.stage, self.number, self.offset, self.last = tracker, None, 0, 0, 0
        self.sent: set[tuple[Any, ...]] = set()

    def __call__(self, record: dict[str, Any]) -> None:
        stage, step = record.get("stage"), record.get("step")
        if not isinstance(step, int):
            return
        if self.stage is not None and stage != self.stage:
            self.offset, self.number, self.last = self.offset + self.last, self.number + 1, 0
        self.stage, self.last = stage, max(self.last, step)
        if (mark := (self.number, step, *sorted(record))) not in self.sent:
            self.sent.add(mark)
            self.tracker.log({**record, **({"stage": self.number} if self.number else {})}, self.offset + step)


def recorded(plan: Plan, cache: Cache) -> Iterator[dict[str, Any]]:
    """The records that finished and unfinished training stages have written so far, each with its ``stage``."""
    for stage in plan.model.all() if plan.model else ():
        folder = cache.folder(stage)
        for path in (folder / "log.jsonl", folder.with_name(folder.name + ".partial") / "log.jsonl"):
            if path.is_file():
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                    record = None
                    with suppress(ValueError):  # the last line of a killed run
                        record = json.loads(line)
                    if isinstance(record, dict):
                        yield {**record, "stage": stage.title}
                break


def summary(folder: Path) -> dict[str, Any]:
    """The run's final numbers by name.

    ``after/fin/choice/accuracy_pmi`` (before/... too) for every score; ``target/choice/accuracy_pmi`` the mean over the target
    languages after training (of an evaluated model, as it is), ``source/...`` the source language, ``gain/...`` the mean difference to
    the untrained model: the same names for every language. ``cost/...`` in seconds, hours, GiB.
    """
    rows, facts = list(read_jsonl(folder / "rows.jsonl")), json.loads((folder / "run.json").read_text(encoding="utf-8"))
    found = {f"{r['when']}/{r['lang']}/{r['task']}/{r['metric']}": r["value"] for r in rows
             if r["value"] is not None and r["when"] in ("before", "after")}
    final = "before" if facts["mode"] == "evaluate" else "after"
    roles: dict[str, dict[str, Any]] = {}
    for row in (r for r in rows if r["when"] == final):
        role = "target" if row["lang"] in facts["lang"] else "source"
        name = f"{role}/{same_task(row['task'], row['lang'], row['source'])}/{row['metric']}"
        roles.setdefault(name, {})[row["lang"]] = row
    for name, by_lang in roles.items():
        values = [r["value"] for r in by_lang.values()]
        if all(map(is_number, values)) and (name.startswith("source") or len(values) == len(facts["lang"])):  # else a mean of others
            found[name] = sum(values) / len(values)
            before = [found.get(f"before/{lang}/{r['task']}/{r['metric']}") for lang, r in by_lang.items()]
            if final == "after" and all(map(is_number, before)):
                found[f"gain/{name}"] = found[name] - sum(before) / len(before)
    return found | {f"cost/{k}": v for k, v in facts["cost"].items() if is_number(v)}


def same_task(task: str, lang: str, source: str) -> str:
    """The task's name without the language: ``sentences:source-target`` for ``sentences:eng-fin``."""
    roles = {lang: "target", source: "source"} if lang != source else {}
    return re.sub(r":(\w{3})-(\w{3})$", lambda m: f":{roles.get(m[1], m[1])}-{roles.get(m[2], m[2])}", task)


def pictures(folder: Path, say: Say, study: Study | None = None) -> Iterator[tuple[str, bytes, str]]:
    """(name, PNG, caption) of the run's pictures, those of its study first; one that cannot be drawn is left out."""
    from xalign.report import plots
    from xalign.report.examples import HEADLINES
    from xalign.report.pivot import pivots
    from xalign.report.runs import load_runs

    runs = load_runs([folder])
    drawn: list[tuple[str, Callable[[], Any]]] = []
    if study and study.name and not study.sweeps:
        with suppress(XalignError):  # nothing to draw; the run itself says why
            drawn += [(f"study/{plot.name}", lambda p=plot: p) for plot in study.findings(runs).plots]  # type: ignore[misc]
    drawn += [("learning_curves", lambda: plots.learning_curves(runs)), ("off_target_curves", lambda: plots.off_target_curves(runs))]
    scored = {r["metric"] for r in runs[0].rows}
    main = [m for m in HEADLINES if m in scored]
    for pivot in _headlines(pivots(runs, by=("method",), metrics=main) if main else []):
        place = re.sub(r"\W+", "_", f"{pivot.role}_{pivot.task}_{pivot.metric}")
        drawn.append((f"bars/{place}", lambda p=pivot: plots.language_bars(p)))
        if len(pivot.columns) > 1:
            drawn.append((f"heat_map/{place}", lambda p=pivot: plots.heat_map(p)))
    for name, draw in drawn:
        try:
            figure, png = draw(), io.BytesIO()
            figure.savefig(png, format="png", dpi=120)
            yield name, png.getvalue(), getattr(figure, "caption", "")
        except XalignError:  # there is nothing to draw
            continue
        except Exception as e:
            say(f"tracker: picture {name} left out: {one_line(e)}")
            return


def _headlines(found: Iterable[Any]) -> list[Any]:
    """One metric of each task and role: the first in `HEADLINES`."""
    from xalign.report.examples import HEADLINES

    order = sorted(found, key=lambda p: HEADLINES.index(p.metric))
    return list({(p.role, p.task): p for p in reversed(order)}.values())[::-1]


def examples(folder: Path) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the before/after table: a few items of every task."""
    from xalign.report.examples import example_groups
    from xalign.report.runs import load_runs

    groups, _ = example_groups(load_runs([folder]))
    return (["lang", "task", "id", "chosen", "prompt", "reference", "before", "after"],
            [[g.lang, arrow(g.task), e.id, e.why, e.prompt, e.reference, e.before, e.after] for g in groups for e in g.examples])


def used(plan: Plan, cache: Cache) -> Iterator[Package]:
    """The stages a run is made from, each named by its key: runs that share one share it in the tracker."""
    for stage in plan.stages():
        if stage.name in KINDS and (artifact := cache.find(stage)):
            receipt = artifact.receipt
            shown = {k: receipt[k] for k in ("name", "label", "key", "params", "inputs", "files")}
            text = json.dumps(shown, indent=1, sort_keys=True, ensure_ascii=False)
            facts = {k: v for k, v in receipt["facts"].items() if is_number(v)}
            yield Package(f"{stage.name}-{stage.key}", KINDS[stage.name], {"receipt.json": text}, {"label": stage.title, **facts}, True)


def made(folder: Path, weights: bool) -> Iterator[Package]:
    """What the run leaves: its results with the model's card and, with `weights`, the model."""
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    files = {name: folder / name for name in RESULTS if (folder / name).is_file()}
    files |= {str(p.relative_to(folder)): p for p in sorted((folder / "predictions").rglob("*.jsonl"))}
    files |= {"model/README.md": card} if (card := folder / "model" / "README.md").is_file() else {}
    known = {"run": folder.name, "method": facts["choices"].get("method"), **{k: facts[k] for k in ("lang", "seed", "model")}}
    yield Package(f"results-{folder.name}", "results", files, known)
    if weights and card.is_file():
        model = {str(p.relative_to(folder / "model")): p for p in sorted((folder / "model").rglob("*")) if p.is_file()}
        yield Package(f"model-{folder.name}", "model", model, known)


def results(tracker: Tracker, run: Run, plan: Plan, cache: Cache, folder: Path, say: Say) -> None:
    """Send a finished run's scores, tables, pictures and files; what cannot be made is left out with one line."""
    wanted = {name: part.artifacts for name, part in chosen(run.tracker).items()}

    def scores() -> None:
        tracker.summary(summary(folder))
        rows = [r for r in read_jsonl(folder / "rows.jsonl") if r["value"] is not None]
        tracker.table("scores", SCORES, [[r.get(c) for c in SCORES] for r in rows])

    def costs() -> None:
        if (folder / "cost.jsonl").is_file():
            tracker.table("cost", COSTS, [[r.get(c) for c in COSTS] for r in read_jsonl(folder / "cost.jsonl")])

    def shown() -> None:
        tracker.table("examples", *examples(folder))

    def drawn() -> None:
        for picture in pictures(folder, say, run.study):
            tracker.image(*picture)

    def packages() -> None:
        for package in (*used(plan, cache), *made(folder, "all" in wanted.values())):
            level = ("all",) if package.kind == "model" and not package.used else ("results", "all")
            tracker.package(package, [name for name, value in wanted.items() if value in level])

    for part in (scores, costs, shown, drawn, packages) if tracker.active else ():
        try:
            part()
        except Exception as e:  # whatever it is, the run is finished and its files are there
            say(f"tracker: {part.__name__} left out: {one_line(e)}")


def publish(run: Run, plan: Plan, cache: Cache, folder: Path, say: Say) -> None:
    """Record a run that finished earlier in the chosen trackers that have no complete record of it."""
    if not missing(run, folder):
        return
    with locked(folder / ".lock", lambda: say(f"another job writes {folder}; waiting …")):
        if not (lacking := missing(run, folder)):
            return
        tracker = begin(run, folder, say, lacking)
        curves = Curves(tracker)
        for record in recorded(plan, cache):
            curves(record)
        results(tracker, run, plan, cache, folder, say)
        end(tracker, folder)
