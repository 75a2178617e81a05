"""One run carried out: stages, training, evaluation before and after, results."""
from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from xalign.cache import Artifact, Cache, disk_error, locked
from xalign.config import Run
from xalign.data.examples import write_jsonl
from xalign.digests import remove, write_json
from xalign.plan import Plan, clock, console, finished, make_plan, plain, print_plan, run_folder
from xalign.runfiles import FACTS, write_facts


def execute(run: Run) -> Path:
    """Print the plan of `run` and, unless ``plan=true``, carry it out.

    Returns:
        The run's folder with rows.jsonl, predictions/, config.yaml, receipts.json and model/.
    Raises:
        XalignError: for anything the user can mend; finished stages stay in the cache.
    """
    began = time.perf_counter()
    out = console()
    cache = Cache(run.cache, say=lambda line: out.print(f"[dim]{time.perf_counter() - began:6.0f} s[/]  {escape(line)}"))
    plan = make_plan(run)
    folder = run_folder(run, plan)
    print_plan(run, plan, cache, folder)
    if run.plan:
        return folder

    def say(line: str) -> None:
        out.print(line, soft_wrap=True, markup=False)

    def wait() -> None:
        say(f"another job writes {folder}; waiting …")

    if not finished(plan, cache, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise disk_error(e, folder) from e
        with locked(folder / ".lock", wait):
            if not finished(plan, cache, folder):
                perform(run, plan, cache, folder, out, began)
                return folder
    from xalign.report.run import print_run
    from xalign.tracking import record

    out.print("finished earlier; nothing to do")
    record.publish(run, plan, cache, folder, say)
    print_run(folder)
    return folder


def perform(run: Run, plan: Plan, cache: Cache, folder: Path, out: Console, began: float) -> None:
    """Carry out the plan, with its tracker, and print the scores and what they cost."""
    from xalign.report.cost import print_cost
    from xalign.report.run import print_run
    from xalign.tracking import record

    def say(line: str) -> None:
        out.print(line, soft_wrap=True, markup=False)

    tracker = record.begin(run, folder, say)
    try:
        carry_out(run, plan, cache, folder, tracker, out, began)
        print_run(folder)
        print_cost(folder)
        record.results(tracker, run, plan, cache, folder, say)
    except BaseException:
        record.end(tracker, folder, failed=True)
        raise
    record.end(tracker, folder)
    model = f"model    {folder / 'model'}\n" if plan.model else ""
    out.print(f"\nresults  {folder}\n{model}took     {clock(time.perf_counter() - began)}", soft_wrap=True, markup=False)


def speed(facts: dict[str, Any]) -> str:
    """One line on how fast a training ran and what it needed."""
    parts = [f"{facts['tokens_per_second']:.0f} tokens/s on {facts['world']} process{'es' if facts['world'] > 1 else ''} in "
             f"{facts['precision']}"]
    if "mfu" in facts:
        parts.append(f"{facts['mfu']:.0%} of the device's peak")
    if "peak_gib" in facts:
        parts.append(f"peak memory {facts['peak_gib']:.1f} GiB")
    return ", ".join(parts)


def carry_out(run: Run, plan: Plan, cache: Cache, folder: Path, tracker: Any, out: Console,
              began: float) -> None:
    """Run every stage and write the run's files."""
    from omegaconf import OmegaConf

    from xalign.cost import cost_rows, totals
    from xalign.data.overlap import overlap_lines
    from xalign.modelcard import versions
    from xalign.results import collect_rows, export_model, export_predictions, export_studied
    from xalign.tables import show
    from xalign.tasks.evaluate import forget
    from xalign.training import ranks
    from xalign.training.repeatable import repeatable

    cached = {s.key for s in plan.stages() if cache.has(s)}
    config = OmegaConf.to_yaml(OmegaConf.create(plain(run)))
    if not (folder / FACTS).exists():  # says whose folder this is, should the run not end
        (folder / "config.yaml").write_text(config, encoding="utf-8")
    before = {key: cache.get(stage) for key, stage in plan.before.items()}
    forget()
    overlap = model = None
    if plan.overlap and plan.model:
        overlap = cache.get(plan.overlap).receipt["facts"]
        line, grid = overlap_lines(overlap)
        out.print(f"         {line}", soft_wrap=True, markup=False)
        if grid:
            show([grid])
        model = train(plan, cache, tracker, out)
    after = {key: cache.get(stage) for key, stage in plan.after.items()}
    forget()
    studied = {when: cache.get(stage) for when, stage in plan.studied.items()}
    rows = collect_rows(run, plan, folder, before, after, studied)
    receipts = [dict(cache.get(s).receipt, cached=s.key in cached - cache.made) for s in plan.stages()]
    spent = cost_rows(receipts, {"run": folder.name, "method": "none" if run.mode != "train" else run.choices["method"],
                                 "lang": ",".join(run.lang), "source": run.source, "backbone": run.choices["backbone"], "seed": run.seed})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cost = {**totals(spent), "peak_gib": round(max([peak, *(r["peak_gib"] for r in spent if "peak_gib" in r)]), 2),
            "seconds_this_run": round(time.perf_counter() - began, 1),
            "train_seconds": round(sum(r["seconds"] for r in spent if r["kind"] == "train"), 1),
            "stages": [{k: r[k] for k in ("label", "key", "seconds", "cached", "facts")} for r in receipts]}
    for name in (FACTS, "rows.jsonl"):  # killed from here on, the run is not finished; nothing above takes away what stood here
        remove(folder / name)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    write_jsonl(folder / "cost.jsonl", spent)
    write_json(folder / "receipts.json", receipts)
    export_predictions(folder, plan, cache)
    export_studied(folder, studied, lambda line: out.print(line, soft_wrap=True, markup=False))
    if model:
        export_model(run, plan, cache, folder, rows, cost)
    write_jsonl(folder / "rows.jsonl", rows)
    write_facts(folder, {"name": folder.name, "mode": run.mode, "choices": run.choices, "lang": list(run.lang), "source": run.source,
                         "seed": run.seed, "model": (plan.model or plan.weights).key, "overlap": overlap, "versions": versions(),
                         "repeatable": repeatable(run, ranks.place()[1]), "cost": cost})


def train(plan: Plan, cache: Cache, tracker: Any, out: Console) -> Artifact:
    """The trained model, its curves sent to the tracker and its course printed."""
    import xalign.training.stage as training
    from xalign.tracking.record import Curves, recorded

    assert plan.model
    curves = Curves(tracker)
    for record in recorded(plan, cache):  # the curves of cached stages belong to this run too
        curves(record)
    training.on_log = curves
    try:
        model = cache.get(plan.model)
    finally:
        training.on_log = None
    for stage in plan.stages():
        if cache.has(stage) and (ends := cache.get(stage).receipt["facts"].get("course")):
            shown = ", ".join(f"{name} {a:.3f} → {b:.3f}" for name, (a, b) in ends.items())
            out.print(f"         [dim]{escape(stage.title)}:[/] {escape(shown)}", soft_wrap=True)
            out.print(f"         [dim]{escape(stage.title)}:[/] {speed(cache.get(stage).receipt['facts'])}", soft_wrap=True)
    return model
