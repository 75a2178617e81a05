"""Moments of a run, and how to die in them: what the process does to files below its folders, counted by an audit hook.

The process alone is killed, as the kernel does when memory is short; whatever it started lives on.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
Moment = tuple[str, str, int]  # (what, where, how often it happened before in this process; of a file added to, its size)


def warm() -> None:
    """Import what every run imports, once before the forks."""
    import hydra  # noqa: F401
    import scipy.optimize  # noqa: F401
    import sympy  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import xalign.data.lab
    import xalign.metrics.offtarget
    import xalign.pipeline
    import xalign.report.run
    import xalign.tasks.evaluate  # noqa: F401
    from xalign.training.engine import load_deepspeed

    load_deepspeed()


def watch(roots: Sequence[Path], told: Callable[[Moment, str], None]) -> None:
    """From now on call `told` with every change below `roots`, just before it happens, and with the file's path."""
    seen: Counter[tuple[str, str]] = Counter()
    tops = [os.path.realpath(root) for root in roots]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if not isinstance(flags, int) or not flags & WRITES:
                return
            event = "append" if flags & os.O_APPEND else "open"
        elif event in CHANGES:
            path = args[0]
            if event != "os.rename" and isinstance(args[-1], int) and args[-1] >= 0 and event in ("os.remove", "os.rmdir"):
                path = os.path.join(os.readlink(f"/proc/self/fd/{args[-1]}"), os.fsdecode(path))
        else:
            return
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        full = os.path.join(os.getcwd(), os.fsdecode(path))
        for top in tops:
            if full.startswith(top + os.sep):
                where = os.path.join(os.path.basename(top), re.sub(r"\.wheel-\w+", ".wheel", full[len(top) + 1:]))
                size = os.path.getsize(full) if event == "append" and os.path.exists(full) else 0
                told((event, where, size if event == "append" else seen[event, where]), full)
                seen[event, where] += 1

    sys.addaudithook(hook)


def listed(roots: Sequence[Path], log: Path) -> Callable[[], None]:
    """For `faultkit.forked`: the run writes its moments to `log`."""
    def before() -> None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        watch(roots, lambda moment, path: os.write(file, json.dumps(moment).encode() + b"\n") and None)

    return before


def read(log: Path) -> list[Moment]:
    """What `listed` wrote, in the order in which it happened."""
    return [(a, b, n) for a, b, n in map(json.loads, log.read_text(encoding="utf-8").splitlines())]


def dying(roots: Sequence[Path], moment: Moment, inside: int | None) -> Callable[[], None]:
    """For `faultkit.forked`: the run dies in `moment`, or so many bytes into what it writes next."""
    def told(now: Moment, path: str) -> None:
        if now[:2] != moment[:2] or (now[2] < moment[2] if now[0] == "append" else now[2] != moment[2]):
            return
        if inside is None:
            os.kill(os.getpid(), signal.SIGKILL)
        size = now[2] if now[0] == "append" else 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + inside, resource.RLIM_INFINITY))

    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel writes up to the limit, then kills
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        watch(roots, told)

    return before


def stage_of(moment: Moment) -> str:
    """The stage that the moment belongs to, ``run`` for the run's own folder, ``sweep`` for a sweep's."""
    top, *parts = moment[1].split("/")
    return parts[0] if top == "cache" else "sweep" if parts[0] == "sweeps" else "run"


def kind_of(moment: Moment) -> str:
    """A moment's kind: what happens to which sort of file; the draw takes some of each."""
    place = moment[1]
    part = ("checkpoint" if "/checkpoints" in place else "journal" if re.search(r"predictions\.|sentences|answers\.jsonl", place) else
            "receipt" if "receipt.json" in place else "artifact")
    return f"{stage_of(moment)} {moment[0]} {part}"


def draw(moments: Sequence[Moment], n: int, seed: int) -> list[Moment]:
    """`n` moments in the order in which they happen: first one of each stage, then of each kind, then any."""
    random, found = Random(seed), set[int]()
    # a process that goes on counts anew
    left = [i for i, m in enumerate(moments) if m[0] == "append" or not m[2]]
    random.shuffle(left)
    for label in (stage_of, kind_of, lambda m: m):
        known = {label(moments[i]) for i in found}
        for i in left:
            if len(found) < n and i not in found and label(moments[i]) not in known:
                known.add(label(moments[i]))
                found.add(i)
    return [moments[i] for i in sorted(found)]


# what a run leaves

# these say how long something took, or how often it was begun
TIMED = {"receipt.json", "receipts.json", "cost.jsonl", "run.json", "README.md", "log.jsonl", "tracker.json"}


def _log(path: Path) -> str:
    """A log without its speeds."""
    lines = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()]
    return json.dumps([{k: v for k, v in x.items() if k != "tokens_per_second"} for x in lines])


def remains(folder: Path, skip: Iterable[str] = ()) -> dict[str, str]:
    """File below `folder` → digest of what must not depend on what happened on the way; locks are left out."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")):
        name = str(path.relative_to(folder))
        if not any(part in name for part in skip):
            what = _log(path).encode() if path.name == "log.jsonl" else b"" if path.name in TIMED else path.read_bytes()
            found[name] = hashlib.sha256(what).hexdigest()[:16]
    return found


def damaged(cache: Path) -> list[str]:
    """Files of artifacts that are not what their receipts say; a later run would make those stages again."""
    wrong = []
    for path in cache.glob("*/*/receipt.json"):
        if path.parent.name.endswith(".partial"):
            continue
        for name, fact in json.loads(path.read_text(encoding="utf-8"))["files"].items():
            file = path.parent / name
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != fact["sha256"]:
                wrong.append(str(file.relative_to(cache)))
    return wrong
