"""One run from its checked configuration to rows: plan, stages, training, evaluation before and after, results."""
from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from xalign.cache import Artifact, Cache, Stage, digest_of, disk_error, write_json
from xalign.config import Run
from xalign.data.examples import read_jsonl, write_jsonl


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything one run will make.

    Attributes:
        weights, model: the untrained and the trained backbone.
        overlap: the check that no test fact or test n-gram stands in the training rows.
        before, after: language → evaluation of the untrained and of the trained model.
    """

    weights: Stage
    overlap: Stage
    model: Stage
    before: dict[str, Stage]
    after: dict[str, Stage]

    def stages(self) -> list[Stage]:
        """All stages in the order in which they run, each once."""
        seen: dict[str, Stage] = {}
        for last in (self.weights, *self.before.values(), self.overlap, self.model, *self.after.values()):
            for stage in last.all():
                seen.setdefault(stage.key, stage)
        return list(seen.values())


def make_plan(run: Run) -> Plan:
    """Describe the stages of `run`; imports nothing heavy and computes nothing."""
    from xalign.data.overlap import overlap_stage
    from xalign.tasks.evaluate import evaluation

    weights, model = run.backbone.weights(run), run.method.model_stage(run)
    languages, frame = (*run.lang, run.source), run.method.frame(run)
    before = {lang: evaluation(run, weights, lang, baselines=True) for lang in languages}
    overlap = overlap_stage(run, run.method.training_rows(run), list(before.values()))
    return Plan(weights, overlap, model, before,
                {lang: evaluation(run, model, lang, baselines=False, frame=frame) for lang in languages})


def run_folder(run: Run, plan: Plan) -> Path:
    """The run's folder: named by its choices and by what decides its content, never by the clock."""
    pick = run.choices.get
    identity = digest_of([plan.model.key, *sorted(s.key for s in (*plan.before.values(), *plan.after.values()))])[:8]
    origin = "" if run.source == "eng" else f"-from-{run.source}"
    langs = "_".join(run.lang) if len(run.lang) <= 6 else f"{len(run.lang)}langs"
    return Path(run.runs) / f"{pick('method')}-{langs}{origin}-{pick('backbone')}-s{run.seed}-{identity}"


def clock(seconds: float) -> str:
    """``4 s``, ``3 min 20 s``."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def console() -> Console:
    """The terminal; 120 columns where there is none."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=False)


def print_plan(run: Run, plan: Plan, cache: Cache, folder: Path) -> None:
    """The table of stages with key, state and estimated cost."""
    out, left = console(), 0.0
    pick = run.choices.get
    out.print(f"[bold]{pick('method')}[/] {run.source} → {', '.join(run.lang)} · backbone {pick('backbone')} · data {pick('data')} "
              f"· translator {pick('translator')} · trainer {pick('trainer')} · seed {run.seed}")
    table = Table(box=None, pad_edge=False)
    for column, justify in (("stage", "left"), ("key", "left"), ("state", "left"), ("estimate", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for stage in plan.stages():
        hit, started = cache.has(stage), cache.started(stage)
        left += 0 if hit else stage.seconds
        state = "[green]hit[/]" if hit else "[yellow]continue[/]" if started else "miss"
        table.add_row(stage.title, stage.key[:12], state, "" if hit else f"~{clock(stage.seconds)}")
    out.print(table)
    out.print(f"estimated {clock(left)} on two CPU cores · cache {cache.root} · results {folder}\n", soft_wrap=True)
    print_memory(run, plan, cache, out)


def print_memory(run: Run, plan: Plan, cache: Cache, out: Console) -> None:
    """What the run's largest training takes on each device: with ``plan=true`` part by part, else one line."""
    from xalign.training import memory

    trainings = [(dataclasses.replace(run.trainer, **s.params["trainer"]), len(s.inputs) > 2)
                 for s in plan.stages() if "trainer" in s.params]
    shape = run.backbone.shape(cache.folder(plan.weights) if cache.has(plan.weights) else None)
    if isinstance(shape, str) or not trainings:
        out.print(f"training memory unknown: {shape if trainings else 'the method trains in its own way'}\n", soft_wrap=True)
        return
    world = int(os.environ.get("WORLD_SIZE", "1"))
    node, teacher = max(trainings, key=lambda t: memory.estimate(shape, t[0], world, t[1]).total)
    found = {n: memory.estimate(shape, node, n, teacher) for n in dict.fromkeys((world, 8))}
    gpu, bf16, encoder = memory.on_gpu(node), memory.uses_bf16(node), shape.kind == "encoder"
    more = " + activations" if encoder else ""
    if not run.plan:
        out.print(f"training memory about {gib(found[world].total)} GiB a device{more}; plan=true shows the parts\n", soft_wrap=True)
        return
    tokens = dict.fromkeys(f"{memory.micro_batch(node, n)[0]:,}" for n in found)
    facts = (f"{shape.parameters:,} parameters", f"LoRA of rank {node.lora_rank}" if node.adapter == "lora" else "",
             "and a teacher" if teacher else "", "bf16" if bf16 else "fp32", f"ZeRO-{node.zero_stage(bf16)}",
             f"offload {node.offload}" if node.offload != "none" else "", node.optimizer, f"{' or '.join(tokens)} tokens at a time",
             "activations recomputed" if node.activation_checkpointing else "")
    out.print(f"training memory per device: {' · '.join(filter(None, facts))}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("GiB")
    for n in found:
        table.add_column(f"{n} GPU{'s' * (n > 1)}" if gpu else f"{n} process{'es' * (n > 1)}", justify="right")
    for part in ("parameters", "gradients", "optimizer", "activations", "buffers", "total", "host"):
        values = ("?" if encoder and part == "activations" else gib(getattr(m, part)) + " + ?" * (encoder and part == "total")
                  for m in found.values())
        table.add_row("host memory" if part == "host" else part, *values, style="bold" if part == "total" else None)
    out.print(table)
    left_out = "an encoder's activations (its texts are padded), " if encoder else ""
    out.print(f"arithmetic, not a measurement. Not in it: {left_out}a GPU's context, fragmentation. Logits are counted for all tokens, "
              "prompts have none.\nHost memory is that of process 0; the others keep no best weights", soft_wrap=True)
    if gpu and not encoder:
        for size in (24, 80):
            found_one = memory.smallest_change(shape, node, world, size, teacher)
            changed, needs = found_one or ({}, found[world])
            how = " ".join(f"trainer.{k}={str(v).lower()}" for k, v in changed.items()) or ("fits" if found_one else "needs more devices")
            out.print(f"{size} GB a GPU: {how}" + f" (GPU {gib(needs.total)}, host {gib(needs.host)} GiB)" * bool(changed), soft_wrap=True)
    out.print()


def gib(size: int) -> str:
    """Bytes in GiB, to two digits behind the point below ten."""
    return f"{size / 2**30:.2f}" if size < 10 * 2**30 else f"{size / 2**30:.1f}"


def execute(run: Run) -> Path:
    """Print the plan of `run` and, unless ``plan=true``, carry it out.

    Returns:
        The run's folder with rows.jsonl, predictions/, config.yaml, receipts.json and model/.
    Raises:
        XalignError: for anything the user can mend; finished stages stay in the cache.
    """
    began = time.perf_counter()
    out = console()
    cache = Cache(run.cache, say=lambda line: out.print(f"[dim]{time.perf_counter() - began:6.0f} s[/]  {line}"))
    plan = make_plan(run)
    folder = run_folder(run, plan)
    print_plan(run, plan, cache, folder)
    if run.plan:
        return folder
    from xalign.report import print_run

    if (folder / "run.json").is_file() and all(cache.has(s) for s in plan.stages()):
        out.print("finished earlier; nothing to do")
        print_run(folder)
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise disk_error(e, folder) from e
    tracker = start_tracker(run, folder, out)
    try:
        rows, cost = carry_out(run, plan, cache, folder, tracker, out, began)
        print_run(folder)
        finish_tracker(tracker, rows, cost)
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()
    out.print(f"\nresults  {folder}\nmodel    {folder / 'model'}\ntook     {clock(time.perf_counter() - began)}, "
              f"peak memory {cost['peak_gib']:.1f} GiB", soft_wrap=True)
    return folder


def speed(facts: dict[str, Any]) -> str:
    """One line on how fast a training ran and what it needed."""
    parts = [f"{facts['tokens_per_second']:.0f} tokens/s on {facts['world']} process{'es' if facts['world'] > 1 else ''} in "
             f"{facts['precision']}"]
    if "mfu" in facts:
        parts.append(f"{facts['mfu']:.0%} of the device's peak")
    if "peak_gib" in facts:
        parts.append(f"peak memory {facts['peak_gib']:.1f} GiB")
    return ", ".join(parts)


def start_tracker(run: Run, folder: Path, out: Console) -> Any:
    """The chosen tracker with the resolved configuration."""
    from xalign.tracking import start

    group = Path(os.environ["XALIGN_SWEEP"]).name if "XALIGN_SWEEP" in os.environ else None
    return start(run.tracker, config=plain(run), name=folder.name, group=group, folder=folder,
                 say=lambda line: out.print(line, soft_wrap=True, markup=False))


def plain(run: Run) -> dict[str, Any]:
    """The resolved configuration as a plain dict (no field ever holds a key or password)."""
    return {k: v for k, v in json.loads(json.dumps(dataclasses.asdict(run))).items() if k not in ("plan",)}


def carry_out(run: Run, plan: Plan, cache: Cache, folder: Path, tracker: Any, out: Console,
              began: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run every stage and write the run's files; returns (rows, cost)."""
    from omegaconf import OmegaConf

    import xalign.training.stage as training

    cached = {s.key for s in plan.stages() if cache.has(s)}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain(run))), encoding="utf-8")
    before = {lang: cache.get(stage) for lang, stage in plan.before.items()}
    overlap = cache.get(plan.overlap).receipt["facts"]
    out.print(f"         training rows {overlap['rows']}: test facts in training {overlap['fact_leaks']}, "
              f"{overlap['n']}-gram overlap with the tests {overlap['overlapping']} of {overlap['tests']}")
    training.on_log = lambda record: tracker.log(record, record.get("step"))
    trained = cache.has(plan.model)
    try:
        model = cache.get(plan.model)
    finally:
        training.on_log = None
    if trained:  # the curves of a cached model belong to this run too
        for record in read_jsonl(model.file("log.jsonl")):
            tracker.log(record, record.get("step"))
    for stage in plan.stages():
        if cache.has(stage) and (ends := cache.get(stage).receipt["facts"].get("course")):
            shown = ", ".join(f"{name} {a:.3f} → {b:.3f}" for name, (a, b) in ends.items())
            out.print(f"         [dim]{stage.title}:[/] {shown}", soft_wrap=True)
            out.print(f"         [dim]{stage.title}:[/] {speed(cache.get(stage).receipt['facts'])}", soft_wrap=True)
    after = {lang: cache.get(stage) for lang, stage in plan.after.items()}
    rows = collect_rows(run, folder, before, after)
    receipts = [dict(cache.get(s).receipt, cached=s.key in cached) for s in plan.stages()]
    cost = {"seconds": round(sum(r["seconds"] for r in receipts), 1),
            "seconds_this_run": round(time.perf_counter() - began, 1),
            "train_seconds": round(sum(r["seconds"] for r in receipts if "course" in r["facts"]), 1),
            "device_hours": round(sum(r["device_hours"] for r in receipts), 4),
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "stages": [{k: r[k] for k in ("label", "key", "seconds", "cached", "facts")} for r in receipts]}
    write_jsonl(folder / "rows.jsonl", rows)
    write_json(folder / "receipts.json", receipts)
    export_predictions(folder, {"before": before, "after": after})
    export_model(run, folder, model, rows, cost)
    write_json(folder / "run.json", {"name": folder.name, "choices": run.choices, "lang": list(run.lang), "source": run.source,
                                     "seed": run.seed, "model": plan.model.key, "overlap": overlap, "cost": cost})
    return rows, cost


def collect_rows(run: Run, folder: Path, before: dict[str, Artifact], after: dict[str, Artifact]) -> list[dict[str, Any]]:
    """Every score as a row in long format; rows after training carry the paired comparison with before."""
    from xalign.analysis.significance import paired
    from xalign.tasks.evaluate import per_example

    pick = run.choices.get
    shared = {"run": folder.name, "method": pick("method"), "source": run.source, "backbone": pick("backbone"), "seed": run.seed}
    rows = []
    for lang in before:
        old, new = per_example(before[lang]), per_example(after[lang])
        for score in read_jsonl(before[lang].file("scores.jsonl")):
            when = "before" if score["name"] == "model" else f"baseline:{score['name']}"
            rows.append({**shared, **{k: v for k, v in score.items() if k != "name"}, "when": when})
        for score in read_jsonl(after[lang].file("scores.jsonl")):
            row = {**shared, **{k: v for k, v in score.items() if k != "name"}, "when": "after"}
            a, b = (values.get((score["task"], score["metric"]), {}) for values in (old, new))
            ids = sorted(set(a) & set(b))
            if ids:
                test = paired([a[i][0] for i in ids], [b[i][0] for i in ids], clusters=[a[i][1] for i in ids])
                row |= {"diff": test.diff, "diff_se": test.se, "p": test.p_randomisation,
                        "pairs": len(ids), "detectable": test.detectable(scale=100 if row["metric"] in ("bleu", "chrf") else 1)}
            rows.append(row)
    return rows


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` without a second copy where the file system allows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def export_predictions(folder: Path, evaluations: dict[str, dict[str, Artifact]]) -> None:
    """predictions/<when>/<lang>/<task>.jsonl"""
    for when, artifacts in evaluations.items():
        for lang, artifact in artifacts.items():
            for path in sorted(artifact.path.glob("predictions.*.jsonl")):
                link(path, folder / "predictions" / when / lang / path.name.removeprefix("predictions."))
            link(artifact.file("examples.jsonl"), folder / "predictions" / when / lang / "per_example_scores.jsonl")


def export_model(run: Run, folder: Path, model: Artifact, rows: list[dict[str, Any]], cost: dict[str, Any]) -> None:
    """The trained model in the hub's format with its card."""
    from xalign.modelcard import write_card

    skip = {"receipt.json", "log.jsonl"}
    for path in sorted(p for p in model.path.rglob("*") if p.is_file() and p.name not in skip):
        link(path, folder / "model" / path.relative_to(model.path))
    link(model.file("log.jsonl"), folder / "log.jsonl")
    write_card(folder / "model", run, rows, cost)


def finish_tracker(tracker: Any, rows: list[dict[str, Any]], cost: dict[str, Any]) -> None:
    """The final scores as a summary and as a table."""
    final = [r for r in rows if r["value"] is not None]
    tracker.summary({f"{r['when']}/{r['lang']}/{r['task']}/{r['metric']}": r["value"] for r in final
                     if r["when"] in ("before", "after")} | {f"cost/{k}": v for k, v in cost.items() if isinstance(v, (int, float))})
    columns = ["lang", "task", "metric", "when", "value", "se", "n", "diff", "p", "signature"]
    tracker.table("scores", columns, [[r.get(c) for c in columns] for r in final])
