"""What a training was: how large the model, what it cost, where the logged numbers began and ended."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOG = "log.jsonl"


def append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Add JSON lines to a file."""
    with open(path, "a", encoding="utf-8", newline="\n") as f:
        f.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def count_parameters(model: Any) -> tuple[int, int]:
    """All parameters of `model`, and the trainable ones."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def course(log: Path, best_step: int) -> dict[str, list[float]]:
    """name → [at the start, at the end] of everything logged: validation and probe before the first step and at the best one (the
    last, if nothing tells the best); in training, the mean over the first and over the last tenth of the steps."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [r for r in records if "grad_norm" in r]
    found = {}
    tenth = max(1, len(steps) // 10)
    for name in steps[0] if steps else ():
        if name not in ("step", "epoch", "lr", "tokens", "tokens_per_second", "grad_norm"):
            ends = [[r[name] for r in part if name in r] for part in (steps[:tenth], steps[-tenth:])]
            found[name] = [sum(e) / len(e) for e in ends]
    checks: dict[int, dict[str, float]] = {}
    for r in (r for r in records if "grad_norm" not in r):
        checks.setdefault(r["step"], {}).update(r)
    first, last = checks.get(0, {}), checks.get(best_step or max(checks, default=0), {})
    found |= {name: [first[name], last[name]] for name in first
              if name in last and name.startswith(("valid_", "off_target_")) and not name.endswith("_n")}
    return {name: [round(v, 6) for v in ends] for name, ends in found.items()}
