"""What a run cost: one row a stage, from the stages' receipts, and their totals. No torch."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Receipt = Mapping[str, Any]

# a stage's name in the cache → what it is for; a training is told by its parameters, whatever its name
KINDS = {"fetch": "assets", "weights": "assets", "tiny": "assets", "tiny_encoder": "assets", "ctranslate2": "assets",
         "answers": "answers", "translate": "translate", "predict": "evaluate", "score": "evaluate", "evaluate": "evaluate"}
ORDER = ("assets", "data", "answers", "translate", "train", "evaluate")
NUMBERS = ("tokens", "flops", "mfu", "peak_gib", "peak_gpu_gib", "energy_kwh")
OLD = "made by a version that did not measure it"


def kind(receipt: Receipt) -> str:
    """assets | data | answers | translate | train | evaluate."""
    return "train" if "trainer" in receipt["params"] else KINDS.get(receipt["name"], "data")


def cost_rows(receipts: Sequence[Receipt], of: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a stage.

    Args:
        receipts: of all stages of a run, with ``cached`` (taken from the cache in this run).
        of: what every row begins with: run, method, lang, source, backbone, seed.
    Returns:
        Rows with stage (label), name, key, kind, seconds, devices, device, device_hours, tokens, flops, mfu, peak_gib, energy_kwh,
        energy_meter, reused; a number that is not known is missing, and ``<name>_reason`` says why. Stages of one key in several
        runs are one stage, made once.
    """
    rows = []
    for r in receipts:
        row = {**of, "stage": r["label"], "name": r["name"], "key": r["key"], "kind": kind(r), "seconds": r["seconds"],
               "device_hours": r["device_hours"], **(r.get("cost") or _older(r)), "reused": bool(r.get("cached"))}
        rows.append(row)
    return rows


def _older(receipt: Receipt) -> dict[str, Any]:
    """What the receipt of an older version tells: something of a training, else the time."""
    facts = receipt["facts"]
    found = {name: facts[key] for name, key in (("tokens", "tokens_computed"), ("flops", "flops"), ("mfu", "mfu"), ("peak_gib", "peak_gib"))
             if key in facts}
    return {"devices": facts.get("world", 1), **found,
            **{f"{name}_reason": OLD for name in NUMBERS if name not in found and name != "peak_gpu_gib"}}


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over `rows`, each a stage of its own; the largest peak of memory.

    Returns:
        seconds, device_hours; tokens, flops, energy_kwh as far as known, peak_gib, peak_gpu_gib; ``<name>_reason`` where some stages
        do not tell: the sum is then too small, and missing if none tells.
    """
    seconds, hours = (sum(r[name] for r in rows) for name in ("seconds", "device_hours"))
    out: dict[str, Any] = {"seconds": round(seconds, 1), "device_hours": round(hours, 6)}
    for name in ("tokens", "flops", "energy_kwh"):
        known = [r[name] for r in rows if r.get(name) is not None]
        if known:
            out[name] = round(sum(known), 6)
        if lacking := [r for r in rows if r.get(name) is None]:
            reasons = dict.fromkeys(str(r.get(f"{name}_reason", "no reason given")) for r in lacking)
            out[f"{name}_reason"] = f"not of {len(lacking)} of {len(rows)} stages: {'; '.join(reasons)}"
    for name in ("peak_gib", "peak_gpu_gib"):
        if known := [r[name] for r in rows if r.get(name) is not None]:
            out[name] = max(known)
    return out


def stages_of(rows: Sequence[Mapping[str, Any]], kind: str = "") -> list[Mapping[str, Any]]:
    """The rows of one kind of stage, or all; a run's own list has every stage once."""
    return [r for r in rows if not kind or r["kind"] == kind]


def few(value: float) -> str:
    """A number with two or three digits that say something: ``0.0031``, ``12.4``, ``1,204``."""
    if value == 0:
        return "0"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{min(digits, 4)}f}" if abs(value) >= 1e-4 else "<0.0001"
