"""Evaluation speed and memory: option scores beside lm-evaluation-harness, greedy answers beside transformers' `generate`.

    pip install -e ".[bench]"
    python tests/bench/evaluation.py scoring --rows eng_Latn.jsonl                       # BELEBELE's official file; 48 questions
    python tests/bench/evaluation.py generation --rows questions.jsonl eng_Latn.jsonl    # 64 rows, taken from each in turn
    python tests/bench/evaluation.py generation --rows questions.jsonl --tokens 64 --limit 32    # "text", "prompt" or "instruction"

Both contenders use the same loaded model in one process, in alternating rounds; each gets its best round, the range beside it. The
peer reads batches of 8: the harness' `hf` model sorts them by length, `generate` takes them in the file's order, padded on the left.
Options count as scored, tokens as generated, stop token included. Values are nats per option; answers must be the same ids.
"""
from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = tuple[float, list[Any]]  # options or tokens; a value for each option, ids for each answer


def load(model: str) -> Any:
    """The backbone in float32 on the CPU, as an evaluation loads it."""
    from xalign.assets import smollm2_stage
    from xalign.backbones.load import load_backbone
    from xalign.backbones.node import HubBackbone, SmolLM2
    from xalign.cache import Cache

    cache = Cache(Path(os.environ.get("XALIGN_CACHE", "~/.cache/xalign")).expanduser())
    return load_backbone(cache.get(smollm2_stage()).path, SmolLM2()) if model == "smollm2" else load_backbone(Path(model), HubBackbone())


def question(row: dict[str, Any]) -> str:
    """A BELEBELE row as raw text."""
    return f"P: {row['flores_passage']}\nQ: {row['question']}\nAnswer:"


def scoring(job: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Callable[[], Result]]:
    """Four options of each question; the prompt is raw text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    backbone = load(job.model)
    prompts, options = [question(r) for r in rows], [[r[f"mc_answer{k}"] for k in range(1, 5)] for r in rows]
    peer = HFLM(pretrained=backbone.model, tokenizer=backbone.tokenizer, batch_size=job.batch)
    requests = [Instance("loglikelihood", {}, (p, " " + o), 0) for p, own in zip(prompts, options, strict=True) for o in own]

    def xalign() -> Result:
        values = [s.sum for own in backbone.score(prompts, options, raw_text=True) for s in own]
        return len(values), values

    def lm_eval() -> Result:
        values = [value for value, _ in peer.loglikelihood(requests, disable_tqdm=True)]
        return len(values), values

    return {"xalign": xalign, "lm_eval": lm_eval}


def generation(job: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Callable[[], Result]]:
    """Greedy answers to instructions in the model's own template, up to `--tokens` tokens."""
    import torch

    from xalign.backbones.decoding import decode

    backbone = load(job.model)
    model, stop = backbone.model, backbone.stop
    prompts = backbone.encode_prompts([next((r[k] for k in ("instruction", "prompt", "text") if k in r), None) or question(r)
                                       for r in rows])

    def counted(answers: list[list[int]]) -> Result:
        return sum(min(len(a) + 1, job.tokens) for a in answers), answers

    def xalign() -> Result:
        found = dict(decode(model, prompts, job.tokens, stop))
        return counted([found[i] for i in range(len(prompts))])

    def generate() -> Result:
        answers: list[list[int]] = []
        pad = min(stop)
        for start in range(0, len(prompts), job.batch):
            part = prompts[start:start + job.batch]
            width = max(map(len, part))
            ids = torch.tensor([[pad] * (width - len(p)) + p for p in part], device=model.device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=model.device)
            out = model.generate(ids, attention_mask=mask, max_new_tokens=job.tokens, do_sample=False, eos_token_id=sorted(stop),
                                 pad_token_id=pad)
            for line in out[:, width:].tolist():
                answers.append(line[:next((k for k, token in enumerate(line) if token in stop), len(line))])
        return counted(answers)

    return {"xalign": xalign, "generate": generate}


def main() -> None:
    """Run both contenders in alternating rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scoring", "generation"])
    parser.add_argument("--rows", type=Path, nargs="+", required=True, help="JSON lines: BELEBELE's file, or instructions (generation)")
    parser.add_argument("--model", default="smollm2", help="smollm2, or a folder that transformers opens")
    parser.add_argument("--limit", type=int, default=0, help="rows; 0 = 48 questions or 64 instructions")
    parser.add_argument("--tokens", type=int, default=128, help="longest answer (generation)")
    parser.add_argument("--batch", type=int, default=8, help="batch size of the peer")
    parser.add_argument("--rounds", type=int, default=3)
    job = parser.parse_args()
    import torch
    import transformers

    from xalign.training.hardware import peak_memory, reset_peak_memory

    files = [path.read_text(encoding="utf-8").splitlines() for path in job.rows]
    rows = [json.loads(line) for turn in zip(*files, strict=False) for line in turn][:job.limit or (48 if job.what == "scoring" else 64)]
    contenders = (scoring if job.what == "scoring" else generation)(job, rows)
    cuda = torch.cuda.is_available()
    print(f"{torch.cuda.get_device_name() if cuda else f'CPU, {torch.get_num_threads()} threads'}; torch {torch.__version__}, "
          f"transformers {transformers.__version__}; {job.model}, {len(rows)} rows", flush=True)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: dict[str, float] = dict.fromkeys(contenders, 0.0)
    values: dict[str, list[Any]] = {}
    for _ in range(job.rounds):
        for name, work in contenders.items():
            reset_peak_memory(cuda)
            began = time.perf_counter()
            n, values[name] = work()
            rates[name].append(n / (time.perf_counter() - began))
            peaks[name] = max(peaks[name], peak_memory(cuda) or 0.0)
            print(f"  {name} {rates[name][-1]:.1f}/s, load {os.getloadavg()[0]:.1f}", flush=True)
    unit = "options/s" if job.what == "scoring" else "tokens/s"
    print(f"{'':10} {unit:>10} {'range':>13} {'peak GiB':>9}")
    for name, found in rates.items():
        print(f"{name:10} {max(found):10.1f} {min(found):6.1f}-{max(found):<6.1f} {peaks[name]:9.2f}")
    ours, peer = contenders
    pairs = list(zip(values[ours], values[peer], strict=True))
    rounds = sorted(a / b for a, b in zip(rates[ours], rates[peer], strict=True))
    print(f"ratio {max(rates[ours]) / max(rates[peer]):.2f} (best against best; by round {rounds[0]:.2f}-{rounds[-1]:.2f})")
    if job.what == "scoring":
        print(f"largest difference {max(abs(a - b) for a, b in pairs):.1e} nats, n {len(pairs)}")
    else:
        print(f"same answers {sum(a == b for a, b in pairs)} of {len(pairs)}; {sum(map(len, values[ours]))} tokens, "
              f"{min(map(len, values[ours]))} to {max(map(len, values[ours]))} an answer")


if __name__ == "__main__":
    main()
