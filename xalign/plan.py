"""What one run will make: its stages, its folder, and the plan as it is printed before anything is spent. No torch."""
from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xalign.cache import Cache, Stage
from xalign.config import Run
from xalign.digests import digest_of, read_sealed
from xalign.runfiles import sound
from xalign.tables import Terminal
from xalign.values import shown

if TYPE_CHECKING:
    from xalign.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything one run will make.

    Attributes:
        weights: the untrained backbone.
        before, after: (task, language) → scores of the untrained and of the trained model.
        absent: what a task cannot evaluate: (task, language, reason).
        overlap, model: the check that no test item stands in the training rows, and the trained backbone; None with
            mode=evaluate.
        studied: ``before`` and ``after`` → what the run's study computes of the untrained and of the trained backbone.
    """

    weights: Stage
    before: dict[tuple[str, str], Stage]
    after: dict[tuple[str, str], Stage]
    absent: list[tuple[Task, str, str]]
    overlap: Stage | None = None
    model: Stage | None = None
    studied: dict[str, Stage] = dataclasses.field(default_factory=dict)

    def stages(self) -> list[Stage]:
        """All stages in the order in which they run, each once."""
        seen: dict[str, Stage] = {}
        for last in (self.weights, *self.before.values(), self.overlap, self.model, *self.after.values(),
                     *self.studied.values()):
            for stage in last.all() if last else ():
                seen.setdefault(stage.key, stage)
        return list(seen.values())


def make_plan(run: Run) -> Plan:
    """Describe the stages of `run`; imports nothing heavy and computes nothing."""
    from xalign.data.overlap import overlap_stage
    from xalign.tasks.evaluate import evaluation

    weights = run.backbone.weights(run)
    if run.mode == "study":
        return Plan(weights, {}, {}, [], studied=run.study.stages(run, weights, None))
    pairs = [(task, lang, task.lacks(run, lang)) for task in run.tasks for lang in run.evaluated]
    absent, possible = [p for p in pairs if p[2]], [(task, lang) for task, lang, lacking in pairs if not lacking]
    before = {(t.name, lang): evaluation(run, weights, t, lang, baselines=True) for t, lang in possible}
    if run.mode == "evaluate":
        return Plan(weights, before, {}, absent, studied=run.study.stages(run, weights, None))
    model, frame = run.method.model_stage(run), run.method.frame(run)
    overlap = overlap_stage(run, run.method.training_rows(run), [s.inputs[0] for s in before.values()])
    after = {(t.name, lang): evaluation(run, model, t, lang, False, frame, before[t.name, lang] if t.compares else None)
             for t, lang in possible}
    return Plan(weights, before, after, absent, overlap, model, run.study.stages(run, weights, model))


def run_folder(run: Run, plan: Plan) -> Path:
    """The run's folder: named by its choices and by what decides its content, never by the clock."""
    pick = run.choices.get
    scored = plan.studied if run.mode == "study" else {**plan.before, **{("after", *k): s for k, s in plan.after.items()}}
    scores = sorted(s.key for s in scored.values())
    identity = digest_of([*([plan.model.key] if plan.model else []), *scores])[:8]
    origin = "" if run.source == "eng" else f"-from-{run.source}"
    langs = "_".join(run.lang) if len(run.lang) <= 6 else f"{len(run.lang)}langs"
    names = {"evaluate": [t.name for t in run.tasks], "study": [run.study.name]}.get(run.mode)
    what = pick("method") if names is None else "-".join([run.mode, *names][:4])
    return Path(run.runs) / f"{what}-{langs}{origin}-{pick('backbone')}-s{run.seed}-{identity}"


def clock(seconds: float) -> str:
    """``4 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def console() -> Console:
    """The terminal; 120 columns where there is none."""
    return Terminal(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=False)


def print_plan(run: Run, plan: Plan, cache: Cache, folder: Path) -> None:
    """The table of stages with key, state and estimated cost."""
    out, left = console(), 0.0
    pick = run.choices.get
    tasks = ", ".join(t.name for t in run.tasks)
    if run.mode != "train":
        what = tasks if run.mode == "evaluate" else run.study.name
        out.print(f"[bold]{run.mode}[/] {what} · {', '.join(run.lang)} · backbone {pick('backbone')} "
                  f"{escape(shown(getattr(run.backbone, 'name', '')))}", soft_wrap=True)
    else:
        out.print(f"[bold]{pick('method')}[/] {run.source} → {', '.join(run.lang)} · backbone {pick('backbone')} · data {pick('data')} "
                  f"· translator {pick('translator')} · trainer {pick('trainer')} · task {tasks} · seed {run.seed}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column, justify in (("stage", "left"), ("key", "left"), ("state", "left"), ("estimate", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for stage in plan.stages():
        hit, started = cache.has(stage), cache.started(stage)
        left += 0 if hit else stage.seconds
        state = "[green]hit[/]" if hit else "[yellow]continue[/]" if started else "miss"
        table.add_row(escape(stage.title), stage.key[:12], state, "" if hit else f"~{clock(stage.seconds)}")
    out.print(table)
    for _, _, reason in plan.absent:
        out.print(f"absent: {reason}", soft_wrap=True, markup=False)
    out.print(f"estimated {clock(left)} on two CPU cores · cache {cache.root} · results {folder}\n", soft_wrap=True, markup=False)
    from xalign.training import ranks
    from xalign.training.repeatable import planned

    if line := planned(run, ranks.place()[1]):
        out.print(f"{line}\n", soft_wrap=True, markup=False)
    if plan.model:
        print_memory(run, plan, cache, out)


def print_memory(run: Run, plan: Plan, cache: Cache, out: Console) -> None:
    """What the run's largest training takes on each device: with ``plan=true`` part by part, else one line."""
    from xalign.training import memory, ranks

    trainings = [(dataclasses.replace(run.trainer, **s.params["trainer"]), len(s.inputs) > 2)
                 for s in plan.stages() if "trainer" in s.params]
    shape = run.backbone.shape(cache.folder(plan.weights) if cache.sound(plan.weights) else None)
    if isinstance(shape, str) or not trainings:
        out.print(f"training memory unknown: {shape if trainings else 'the method trains in its own way'}\n", soft_wrap=True,
                  markup=False)
        return
    world = ranks.place()[1]
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


def renew_failed(plan: Plan, cache: Cache) -> None:
    """Make scores again that lack a metric because something failed (no network, no interpreter); their predictions stay."""
    for stage in (*plan.before.values(), *plan.after.values()):
        if (found := cache.find(stage)) and found.receipt["facts"].get("failed"):
            cache.renew(stage)


def finished(plan: Plan, cache: Cache, folder: Path) -> bool:
    """True if the run's folder is written, no stage is missing or to be tried again, and neither shows damage.

    Raises:
        XalignError: a file cannot be read, or stands among the run's that is none of them.
    """
    renew_failed(plan, cache)
    return sound(folder) and studied(folder, plan) and all(cache.sound(s) for s in plan.stages())


def studied(folder: Path, plan: Plan) -> bool:
    """True if what the run's study computes stands in the run's folder: another folder's run may have computed it."""
    from xalign.cache import RECEIPT
    from xalign.studies.base import place

    receipts = [(place(folder, s.name, when) / RECEIPT, s.key) for when, s in plan.studied.items()]
    return all(path.is_file() and (read_sealed(path) or {}).get("key") == key for path, key in receipts)


def plain(run: Run) -> dict[str, Any]:
    """The resolved configuration as a plain dict (no field ever holds a key or password)."""
    return {k: v for k, v in json.loads(json.dumps(dataclasses.asdict(run))).items() if k not in ("plan",)}
