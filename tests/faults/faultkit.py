"""What the fault tests share: the command line in a child process that is there at once, and what a good refusal is."""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import cloudpickle

# Children are forked from a process of their own: importing torch anew takes seconds, and the tests' process, which trains, has threads.
_START = multiprocessing.get_context("forkserver")
_START.set_forkserver_preload(["hydra", "hydra.core.override_parser.overrides_parser", "rich.table", "transformers", "xalign.sweep",
                               "xalign.pipeline", "xalign.commandline", "xalign.training.trainer", "deepspeed"])
os.environ.setdefault("DS_LOG_LEVEL", "error")


def forked(argv: list[str], cwd: Path, env: dict[str, str] | None = None, without: tuple[str, ...] = (),
           before: Callable[[], object] | None = None, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    """``python -m xalign ARGV`` as a user would see it.

    Args:
        without: modules whose import shall fail in the child, e.g. ``("torch",)`` for what must be refused before torch is imported.
        before: called in the child before the command.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        what = cloudpickle.dumps((list(argv), str(cwd), {**os.environ, **(env or {})}, without, before, timeout))
        child = _START.Process(target=_command, args=(what, str(out), str(err)))
        child.start()
        child.join()
        texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in (out, err)]
        return subprocess.CompletedProcess(argv, child.exitcode or 0, *texts)


def _command(what: bytes, out: str, err: str) -> None:
    code = 70
    try:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
        argv, cwd, env, without, before, timeout = cloudpickle.loads(what)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        for name in without:
            for loaded, module in list(sys.modules.items()):
                if f"{loaded}.".startswith(f"{name}.") or name in getattr(module, "__dict__", ()):
                    del sys.modules[loaded]  # those that have imported it too: they have to do so again
            sys.modules[name] = None  # type: ignore[assignment]
        if before:
            before()
        signal.alarm(timeout)
        from xalign.__main__ import main

        code = main(argv)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
                stream.flush()
        os._exit(code)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that refused its input; fails if it did anything else."""
    assert done.returncode == 2, f"exit {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("xalign: ")]
    assert len(said) == 1 and lines[-1] == said[0], done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    assert not re.search(r"\b(unexpected|please report)\b", said[0]), said[0]
    assert len(said[0]) < 700, said[0]
    return said[0]
