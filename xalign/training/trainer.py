"""The one trainer: a DeepSpeed engine, packed micro-batches, validation, checkpoints."""
from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from xalign.backbones.counting import watch
from xalign.config import XalignError
from xalign.data.choices import collate
from xalign.data.packing import Row, deal, plan_steps
from xalign.meter import TIMED, work
from xalign.progress import bar
from xalign.training.checkpoints import Checkpoints, open_best
from xalign.training.engine import clips_itself, compile_layers, load_deepspeed, load_universal, make_engine, to_universal, uses_bf16
from xalign.training.facts import LOG, append, count_parameters, course
from xalign.training.hardware import keep_memory, peak_flops, peak_memory, reset_peak_memory
from xalign.training.losses import bare
from xalign.training.node import TrainerNode
from xalign.training.probe import SAMPLES, Probe, rates
from xalign.training.ranks import join
from xalign.training.schedule import auto_lr, cosine


class Trainer:
    """Trains one model on tokenised rows; run by every process of the group.

    The gradient of a step is normalised by the step's supervised tokens over all processes, so neither
    micro-batching nor accumulation nor the world size changes the trajectory.

    Args:
        model: a causal language model of transformers, or an encoder's `Scorer`, in float32.
        objective: gives ``loss(model, batch) -> LossOut``.
        train, valid: rows with their final weights; `valid` may be empty.
        folder: takes ``log.jsonl``, ``samples.jsonl`` and ``checkpoints/``; what an earlier, killed run left there is continued.
        on_log: receives every record of the log (process 0).
        lr_factor: multiplies the node's learning rate.
        probe: answers its questions at every validation; they go to ``samples.jsonl``.
    """

    def __init__(self, model: Any, objective: Any, node: TrainerNode, train: list[Row], valid: list[Row], folder: Path, seed: int,
                 on_log: Callable[[dict[str, Any]], None] | None = None, lr_factor: float = 1.0, probe: Probe | None = None) -> None:
        self.rank, self.world = join()
        self.objective, self.node, self.train, self.valid, self.seed, self.on_log = objective, node, train, valid, seed, on_log
        self.folder, self.probe, self.store = folder, probe, Checkpoints(folder, (LOG, SAMPLES), self.rank, self.world)
        self.checkpoints = self.store.root
        self.accumulation = node.accumulation(self.world)
        self.supervised = sum(r.targets for r in train) / sum(r.tokens for r in train)
        self.lr = lr_factor * (auto_lr(node.tokens_per_step, self.supervised) if node.lr == "auto" else float(node.lr))
        self.steps = [s for e in range(node.epochs) for s in plan_steps(train, node.tokens_per_step, seed, e)]
        self.per_epoch = len(self.steps) / node.epochs
        self.steps = self.steps[:node.max_steps or None]
        self.eval_every = node.eval_every or max(1, round(self.per_epoch / 4))
        self.cuda = torch.cuda.is_available()
        if not self.cuda:
            keep_memory()
        if node.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if node.compile:
            compile_layers(model)
        model.train()
        self.parameters, self.trainable = count_parameters(model)
        watch(model)
        self.clips = clips_itself(node)
        self.engine = make_engine(model, node, self.lr, self.accumulation, self.world)
        self.attention = self._attention(model)
        self.kept: dict[str, torch.Tensor] = {}  # the best weights, while they are newer than their file
        # what a checkpoint must know besides the engine; plain JSON
        self.state: dict[str, Any] = {"step": 0, "world": self.world, "best": None, "best_step": 0, "stale": 0, "stopped": False,
                                      "tokens": 0, "computed": 0, "flops": 0, "seconds": 0.0, "step_seconds": 0.0}

    def _attention(self, model: Any) -> str | None:
        """Switch model and teacher to packed attention where rows are packed; returns the model's implementation."""
        teacher = getattr(getattr(model, "aids", None), "teacher", None)
        if not self.node.packing or self.train[0].parts:
            if self.node.attention != "auto":
                model.set_attn_implementation(self.node.attention)
            return None
        from xalign.training.attention import use_packed

        if teacher:
            use_packed(teacher.model, [r.twin or r for r in self.train], self.node.attention)
        return use_packed(self.engine, self.train, self.node.attention, opaque=self.node.compile)

    def fit(self) -> dict[str, Any]:
        """Train to the end; leaves the chosen weights in ``checkpoints/best.safetensors``.

        Raises:
            XalignError: when a loss or gradient is not finite, naming the step and its rows.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._resume()
        state, started, saved = self.state, time.perf_counter(), time.perf_counter()
        before, total = state["seconds"], sum(r.tokens for s in self.steps for r in s)
        reset_peak_memory(self.cuda)
        show = {"desc": "train", "unit": "tok", "unit_scale": True, "disable": self.rank > 0}
        if not state["step"]:
            self._look()
        with bar(total=total, initial=state["tokens"], **show) as progress:
            while state["step"] < len(self.steps) and not state["stopped"]:
                rows, began = self.steps[state["step"]], time.perf_counter()
                want = self.rank == 0 and 0 < self.node.checkpoint_every <= began - saved
                record, checkpoint = self._step(rows, want)
                state["step"] += 1
                state["tokens"] += sum(r.tokens for r in rows)
                state["step_seconds"] += time.perf_counter() - began
                state["seconds"] = before + time.perf_counter() - started
                rate = round(state["tokens"] / state["step_seconds"], 1)
                self._log({**record, "tokens": state["tokens"], "tokens_per_second": rate})
                progress.update(sum(r.tokens for r in rows))
                progress.set_postfix_str(f"loss {record['loss']:.3f}", refresh=False)
                if state["step"] % self.eval_every == 0 or state["step"] == len(self.steps):
                    self._look()
                if checkpoint and state["step"] < len(self.steps):
                    self._checkpoint()
                    saved = time.perf_counter()
        if not self.valid:
            self._keep_weights()
        self._write_kept()
        if self.rank == 0:
            self.store.finish()
        state["seconds"] = before + time.perf_counter() - started
        facts = self._facts()
        self.engine.destroy()
        return facts

    def _facts(self) -> dict[str, Any]:
        """What the receipt says of the training; every process takes part in the timing of a long run."""
        state, node = self.state, self.node
        facts = {"steps": state["step"], "train_rows": len(self.train), "valid_rows": len(self.valid), "tokens": state["tokens"],
                 "tokens_computed": state["computed"], "supervised_fraction": round(self.supervised, 4), "lr": self.lr,
                 "train_seconds": round(state["seconds"], 2), "step_seconds": round(state["step_seconds"], 2),
                 "tokens_per_second": round(state["tokens"] / state["step_seconds"], 1),
                 "world": self.world, "threads": torch.get_num_threads(), "parameters": self.parameters,
                 "trainable": self.trainable, "flops": state["flops"], "attention": self.attention,
                 "precision": "bf16" if uses_bf16(node) else "fp32"}
        peak = peak_memory(self.cuda)
        facts |= {"peak_gib": round(peak, 2)} if peak else {}
        if state["step_seconds"] > TIMED:
            fastest = peak_flops(self.cuda, uses_bf16(node))
            rate = state["flops"] / state["step_seconds"] / self.world
            facts |= {"flops_per_second": round(rate)} | ({"mfu": round(rate / fastest, 4)} if fastest else {})
        if self.valid:
            facts |= {"best_step": state["best_step"], "best_valid_loss": state["best"]}
        return facts | ({"course": course(self.folder / LOG, state["best_step"])} if self.rank == 0 else {})

    def _batch(self, rows: list[Row]) -> Any:
        return collate(rows, self.node.packing).to(self.engine.device)

    def _step(self, rows: list[Row], want_checkpoint: bool) -> tuple[dict[str, Any], bool]:
        """One optimiser step; returns its log record, and whether process 0 wants a checkpoint."""
        step, engine, world = self.state["step"], self.engine, self.world
        # reseeded each step: a resumed run draws what the uninterrupted one drew
        torch.manual_seed((self.seed * 1_000_003 + step) * world + self.rank)
        lr = self.lr * cosine(step, len(self.steps), self.node.warmup, self.node.final_lr)
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
        bins = deal(rows, self.accumulation * world)
        targets = sum(r.targets for r in rows)
        losses = torch.zeros(len(bins), dtype=torch.float64, device=engine.device)
        logs: dict[str, torch.Tensor] = {}
        computed, flops = 0, work.flops
        for k in range(self.accumulation):
            batch = self._batch(bins[k * world + self.rank])
            out = self.objective.loss(engine, batch)
            engine.backward(out.sum * (self.accumulation * world / targets))  # DeepSpeed divides by both
            losses[k * world + self.rank] = out.sum.detach()
            computed += batch.input_ids.numel()
            for name, value in out.logs.items():
                logs[name] = logs[name] + value.double() if name in logs else value.double()
            if k == self.accumulation - 1:  # one wait for the device a step
                counts = torch.tensor([computed, work.flops - flops, want_checkpoint], dtype=torch.float64, device=engine.device)
                found = [logs[n].to(engine.device).reshape(1) for n in sorted(logs)]
                totals = self._total(torch.cat([losses, counts, *found]))
                self._require_finite(totals[:len(bins)], bins, f"loss in step {step + 1}")
                if self.clips:
                    norm = torch.nn.utils.clip_grad_norm_(engine.module.parameters(), self.node.clip)
            engine.step()
        norm = float(norm if self.clips else engine.get_global_grad_norm())
        self._require_finite([norm if norm >= 0 else math.nan], [rows], f"gradient in step {step + 1}")  # DeepSpeed's inf is -1
        computed, flops, checkpoint = totals[len(bins):len(bins) + 3]
        self.state["computed"] += int(computed)
        self.state["flops"] += int(flops)
        more = {n: v / targets for n, v in zip(sorted(logs), totals[len(bins) + 3:], strict=True)}
        record = {"step": step + 1, "epoch": round((step + 1) / self.per_epoch, 4), "loss": sum(totals[:len(bins)]) / targets,
                  **more, "lr": lr, "grad_norm": norm}
        return record, checkpoint > 0

    def _total(self, values: torch.Tensor) -> list[float]:
        if self.world > 1:
            values = values.to(self.engine.device)
            dist.all_reduce(values)
        return values.tolist()

    def _require_finite(self, values: list[float], bins: list[list[Row]], what: str) -> None:
        bad = [r.id for v, rows in zip(values, bins, strict=True) if not math.isfinite(v) for r in rows]
        if bad:
            shown = ", ".join(bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
            latest = self.checkpoints / "latest.json"
            kept = f"; the last good checkpoint stays in {self.checkpoints}" if latest.is_file() else ""
            raise XalignError(f"trainer: the {what} is not finite, rows {shown}; lower trainer.lr (now {self.lr:.2g}), "
                              f"or look at these rows and their weights{kept}")

    def _look(self) -> None:
        """See how far the model has come: on the validation rows, and in its answers to the probe's questions."""
        if self.valid:
            self._validate()
        if self.probe and self.probe.questions and (self.rank == 0 or self.node.zero == 3):  # only partitioned weights need everyone
            samples = self.probe(bare(self.engine), together=self.node.zero == 3 and self.world > 1)
            if self.rank == 0:
                append(self.folder / SAMPLES, [{"step": self.state["step"], **s} for s in samples])
            self._log({"step": self.state["step"], **rates(samples)})

    @torch.no_grad()
    def _validate(self) -> None:
        """Mean loss over the validation rows; keeps the weights if it is the best so far."""
        budget = self.node.micro_tokens or math.ceil(self.node.tokens_per_step / self.world)
        parts = math.ceil(sum(r.tokens for r in self.valid) / budget / self.world) * self.world
        self.engine.eval()
        sums: dict[str, float] = {"loss": 0.0}
        for rows in deal(self.valid, parts)[self.rank::self.world]:
            out = self.objective.loss(self.engine, self._batch(rows))
            for name, value in {"loss": out.sum, **out.logs}.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        self.engine.train()
        targets = sum(r.targets for r in self.valid)
        totals = self._total(torch.tensor([sums[n] for n in sorted(sums)], dtype=torch.float64))
        means = {f"valid_{n}": v / targets for n, v in zip(sorted(sums), totals, strict=True)}
        loss, state = means["valid_loss"], self.state
        if not state["step"]:  # where the curve starts; never the result
            self._log({"step": 0, **means})
            return
        best = state["best"] is None or loss < state["best"]
        if best:
            state.update(best=loss, best_step=state["step"], stale=0)
            self._keep_weights()
        else:
            state["stale"] += 1
            state["stopped"] = 0 < self.node.patience <= state["stale"]
        self._log({"step": state["step"], **means, "best": best})

    def _log(self, record: dict[str, Any]) -> None:
        if self.rank:
            return
        append(self.folder / LOG, [record])
        if self.on_log:
            self.on_log(record)

    def _keep_weights(self) -> None:
        """Copy the full weights to process 0's memory, gathered parameter by parameter under ZeRO-3."""
        for name, p in self.engine.module.named_parameters():
            if not p.requires_grad:  # as it was
                continue
            with load_deepspeed().zero.GatheredParameters([p]) if self.node.zero == 3 else nullcontext():
                if self.rank == 0:
                    self.kept[name] = p.detach().to("cpu", copy=True).contiguous()

    def _write_kept(self) -> None:
        """Write the kept weights, if they are newer than the file: at a checkpoint and at the end, disks being slow."""
        if self.kept:
            self.store.keep(self.kept, self.state["step"])
            self.kept.clear()

    def _checkpoint(self) -> None:
        """Write a checkpoint beside the last one, then name it in the last one's place."""
        tag = f"step-{self.state['step']:06d}"
        self._write_kept()
        self.engine.save_checkpoint(str(self.checkpoints), tag=tag, save_latest=False)
        self.store.name(tag, self.state)

    def _resume(self) -> None:
        """Continue from the newest checkpoint, if there is one that is whole."""
        if found := self.store.find():
            self._load(self.checkpoints / found["tag"], found["world"])
            self.state = {name: found[name] for name in self.state} | {"world": self.world}

    def _load(self, checkpoint: Path, wrote: int) -> None:
        """Load a checkpoint that `wrote` processes wrote.

        Raises:
            XalignError: when this run has another number of processes and the checkpoint cannot be converted.
        """
        if wrote == self.world or self.engine.zero_optimization_stage() == 0:  # without ZeRO every process holds everything
            if self.engine.load_checkpoint(str(self.checkpoints), tag=checkpoint.name)[0] is None:
                raise XalignError(f"{checkpoint}: DeepSpeed cannot load it; delete {self.checkpoints} to start over")
            return
        made, error = checkpoint.with_name(checkpoint.name + "-universal"), [""]
        if self.rank == 0:
            try:
                if self.node.optimizer != "adamw":
                    raise ValueError("DeepSpeed's universal format holds only Adam's state")
                to_universal(checkpoint, made)
            except Exception as e:  # every process must hear of it
                error = [f"{checkpoint}: written by {wrote} processes, this run has {self.world}, and it could not be converted "
                         f"({type(e).__name__}: {e}); repeat with {wrote}, or delete {self.checkpoints} to start over"]
        if self.world > 1:
            dist.broadcast_object_list(error, src=0, device=torch.device("cpu"))
        if error[0]:
            raise XalignError(error[0])
        load_universal(self.engine, made)


def load_weights(model: Any, folder: Path) -> None:
    """Put the weights that `Trainer.fit` left under `folder` into a freshly loaded model; raises as `open_best` does."""
    parameters = dict(model.named_parameters())
    for name, value in open_best(folder).items():
        parameters[name].data.copy_(value)
