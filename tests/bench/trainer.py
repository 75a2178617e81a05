"""Training speed and memory, xalign's trainer beside TRL's SFTTrainer: same model, rows, precision and threads, in one run.

    pip install -e ".[bench]"
    python tests/bench/trainer.py --rows rows.jsonl              # {"prompt": ..., "response": ...} a line
    python tests/bench/trainer.py --rows rows.jsonl --tokens 512 --rounds 3 --only xalign,trl_packed
    python tests/bench/trainer.py --rows rows.jsonl --model 0.5b --tokens 16384    # a random model, for a GPU

Every contender is a process of its own and trains the same tokenised rows (SmolLM2's chat template, loss on the answers
only). Tokens per second count the rows' own tokens, prompts included: not padding, and a prefix computed once counts as
often as rows have it. The first three steps are not timed. Rounds alternate; the best round stands, the range beside it.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM = 3  # steps before the clock starts
CONTENDERS = {"xalign": "packed, shared prefix once (the default)", "xalign_alone": "packed, every prefix computed",
              "xalign_padded": "trainer.packing=false", "xalign_two": "two processes, ZeRO-2, half of the threads each",
              "trl_packed": "packing=True (bfd), max_length=512", "trl_padded": "packing=False"}
RANDOM = {"0.5b": (896, 4864, 24, 14, 2), "1b": (2048, 8192, 16, 32, 8)}  # hidden, intermediate, layers, heads, key heads


def load(job: argparse.Namespace) -> tuple[Any, list[Any]]:
    """Backbone in float32 and its tokenised rows."""
    from xalign.assets import smollm2_stage
    from xalign.backbones.load import load_backbone
    from xalign.backbones.node import SmolLM2
    from xalign.cache import Cache
    from xalign.data.examples import Example
    from xalign.training.stage import tokenise

    cache = Path(os.environ.get("XALIGN_CACHE", "~/.cache/xalign")).expanduser()
    backbone = load_backbone(Cache(cache).get(smollm2_stage()).path, SmolLM2(), train=True)
    if job.model in RANDOM:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        hidden, inner, layers, heads, key_heads = RANDOM[job.model]
        torch.manual_seed(0)
        backbone.model = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(backbone.tokenizer), hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=key_heads, tie_word_embeddings=True, attn_implementation="sdpa"))
    with open(job.rows, encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    examples = [Example(f"r{i}", "eng", d["prompt"], d["response"]) for i, d in enumerate(lines)]
    return backbone, tokenise(examples, backbone, 512)[0]


def clock(job: argparse.Namespace) -> tuple[list[tuple[float, int]], Any]:
    """A list of (seconds, tokens so far) and a function that appends to it."""
    ticks: list[tuple[float, int]] = []
    return ticks, lambda tokens: ticks.append((time.perf_counter(), tokens))


def run_xalign(job: argparse.Namespace) -> dict[str, Any]:
    """The trainer that every method shares, on supervised rows."""
    from xalign.data import packing
    from xalign.methods.supervised import SFT
    from xalign.training.node import TrainerNode
    from xalign.training.trainer import Trainer

    backbone, rows = load(job)
    if job.contender == "xalign_alone":
        packing.common_prefix = lambda rows: 0
    node = TrainerNode(epochs=job.epochs, max_steps=job.steps + WARM, lr=1e-4, tokens_per_step=job.tokens, micro_tokens=job.micro,
                       valid_share=0, checkpoint_every=0, packing=job.contender != "xalign_padded", precision=job.precision,
                       zero=2 if job.contender == "xalign_two" else job.zero,
                       activation_checkpointing=job.recompute, compile=job.compile, attention=job.attention)
    ticks, tick = clock(job)
    with tempfile.TemporaryDirectory() as folder:
        facts = Trainer(backbone.model, SFT(), node, rows, [], Path(folder), 0, lambda record: tick(record["tokens"])).fit()
    return measured(ticks) | {"peak_gib": facts["peak_gib"], "parameters": facts["parameters"],
                              "flops": facts["flops"] / facts["step_seconds"], "world": facts["world"]}


def run_trl(job: argparse.Namespace) -> dict[str, Any]:
    """TRL's SFTTrainer with the same recipe; no activation checkpointing, which is its default, unless asked for."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from xalign.training.hardware import peak_memory, reset_peak_memory

    backbone, rows = load(job)
    import torch

    cuda, packed = torch.cuda.is_available(), job.contender == "trl_packed"
    mean = sum(len(r.ids) for r in rows) / len(rows)
    data = Dataset.from_list([{"input_ids": list(r.ids), "completion_mask": [0] * r.n_prompt + [1] * r.targets} for r in rows])
    if packed and job.attention == "flash":
        backbone.model.set_attn_implementation("flash_attention_2")
    config = SFTConfig(
        output_dir=job.scratch, packing=packed, max_length=512, use_cpu=not cuda, bf16=bf16(job),
        per_device_train_batch_size=max(1, (job.micro or job.tokens) // 512 if packed else round((job.micro or job.tokens) / mean)),
        gradient_accumulation_steps=max(1, job.tokens // (job.micro or job.tokens)), gradient_checkpointing=job.recompute,
        torch_compile=job.compile, max_steps=job.steps + WARM, num_train_epochs=job.epochs, learning_rate=1e-4, weight_decay=0.1,
        max_grad_norm=1.0, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-5, report_to=[], save_strategy="no", logging_steps=1,
        disable_tqdm=True, completion_only_loss=True)
    ticks, tick = clock(job)
    seen = [0]

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            tick(seen[0])

    trainer = SFTTrainer(backbone.model, args=config, train_dataset=data, processing_class=backbone.tokenizer, callbacks=[Clock()])
    step = trainer.training_step

    def counted(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
        mask = inputs.get("attention_mask")
        seen[0] += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        return step(model, inputs, *more, **named)

    trainer.training_step = counted
    reset_peak_memory(cuda)
    trainer.train()
    return measured(ticks) | {"peak_gib": peak_memory(cuda)}


def measured(ticks: list[tuple[float, int]]) -> dict[str, Any]:
    """Tokens per second and seconds per step behind the warm-up; nothing in a second process, which keeps no log."""
    if not ticks:
        return {}
    (began, before), (ended, tokens) = ticks[WARM - 1], ticks[-1]
    return {"rate": (tokens - before) / (ended - began), "step": (ended - began) / (len(ticks) - WARM)}


def child(job: argparse.Namespace) -> None:
    """One contender; prints its result as the last line."""
    if job.contender == "peak":
        result: dict[str, Any] = {"peak": peak_of(job), "device": name()}
    else:
        result = (run_trl if job.contender.startswith("trl") else run_xalign)(job)
    if os.environ.get("RANK", "0") == "0":
        print("\n" + json.dumps(result), flush=True)


def peak_of(job: argparse.Namespace) -> float:
    """FLOP/s of the device at its best; 0 where unknown."""
    import torch

    from xalign.training.hardware import peak_flops

    cuda = torch.cuda.is_available()
    return peak_flops(cuda, bf16(job)) or 0.0


def bf16(job: argparse.Namespace) -> bool:
    """The precision, as xalign's trainer takes it."""
    import torch

    return job.precision == "bf16" or job.precision == "auto" and torch.cuda.is_available()


def name() -> str:
    """Device, threads and versions."""
    import torch
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"{device}; torch {torch.__version__}, transformers {transformers.__version__}"


def call(contender: str, tokens: int, argv: list[str], scratch: str) -> dict[str, Any]:
    """Run one contender in a new process (or two) and return its result."""
    start = [sys.executable]
    env = dict(os.environ)
    if contender == "xalign_two":
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        env["OMP_NUM_THREADS"] = str(max(1, int(env.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))) // 2))
    command = [*start, __file__, *argv, "--contender", contender, "--tokens", str(tokens), "--scratch", scratch]
    done = subprocess.run(command, text=True, capture_output=True, env=env)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["?"]
        return {"failed": next((line for line in lines if "Error" in line), lines[-1])}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Run every contender in alternating rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines with prompt and response")
    parser.add_argument("--model", default="smollm2", choices=["smollm2", *RANDOM], help="SmolLM2-135M, or a random model of that size")
    parser.add_argument("--tokens", default="512,1024", help="tokens per optimiser step; several with commas")
    parser.add_argument("--micro", type=int, default=0, help="tokens per forward pass; 0 = all of the step")
    parser.add_argument("--steps", type=int, default=12, help="timed steps")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default=",".join(CONTENDERS))
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--attention", default="auto", choices=["auto", "sdpa", "eager", "flash"])
    parser.add_argument("--zero", type=int, default=0)
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing, for all")
    parser.add_argument("--compile", action="store_true", help="torch.compile, for all")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    job = parser.parse_args()
    if job.contender:
        job.tokens = int(job.tokens)
        child(job)
        return
    argv = [a for i, a in enumerate(sys.argv[1:]) if a != "--tokens" and sys.argv[i] != "--tokens"]
    scratch = tempfile.mkdtemp()
    peaks = [call("peak", 512, argv, scratch)]
    print(f"{peaks[0]['device']}; {job.model}", flush=True)
    for tokens in map(int, job.tokens.split(",")):
        results: dict[str, list[dict[str, Any]]] = {}
        for _ in range(job.rounds):
            for contender in job.only.split(","):
                results.setdefault(contender, []).append(call(contender, tokens, argv, scratch))
        peaks.append(call("peak", 512, argv, scratch))  # a neighbour on the machine may have slowed one of them
        report(tokens, results, max(p["peak"] for p in peaks))
    shutil.rmtree(scratch)


def report(tokens: int, results: dict[str, list[dict[str, Any]]], peak: float) -> None:
    """Print one table; ratios are best against best."""
    good = {k: [r for r in v if "rate" in r] for k, v in results.items()}
    top = {k: max(v, key=lambda r: r["rate"]) for k, v in good.items() if v}
    print(f"\n{tokens} tokens a step; a matrix product reaches {peak / 1e9:.0f} GFLOP/s")
    print(f"{'':14} {'tok/s':>7} {'range':>11} {'s/step':>7} {'peak GiB':>9} {'of peak':>8} "
          f"{'x packed':>9} {'x padded':>9}")
    for k, v in results.items():
        if k not in top:
            print(f"{k:14} failed: {v[0]['failed']}")
            continue
        t = top[k]
        ratios = [f"{t['rate'] / top[p]['rate']:9.2f}" if p in top else " " * 9 for p in ("trl_packed", "trl_padded")]
        share = f"{t['flops'] / peak / t['world']:8.0%}" if peak and "flops" in t else " " * 8
        low = min(r["rate"] for r in good[k])
        print(f"{k:14} {t['rate']:7.1f} {low:5.0f}-{t['rate']:<5.0f} {t['step']:7.3f} {t['peak_gib'] or 0:9.2f} {share} "
              f"{' '.join(ratios)}  {CONTENDERS[k]}", flush=True)


if __name__ == "__main__":
    main()
