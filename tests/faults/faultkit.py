"""What the fault tests share: the command line in a forked child of the test process, and what a good refusal is."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path


def forked(argv: list[str], cwd: Path, env: dict[str, str] | None = None, without: tuple[str, ...] = (),
           before: Callable[[], None] | None = None, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    """``python -m xalign ARGV`` as a user would see it; forked, since importing torch anew takes seconds.

    Args:
        without: modules whose import shall fail in the child, e.g. ``("torch",)`` for what must be refused before torch is imported.
        before: called in the child before the command.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            code = 70
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                # not pytest's captures: what is printed goes to the two files
                sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
                os.chdir(cwd)
                os.environ.update(env or {})
                for name in without:
                    for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
                        del sys.modules[loaded]
                    sys.modules[name] = None  # type: ignore[assignment]
                if before:
                    before()
                signal.alarm(timeout)
                from xalign.__main__ import main

                code = main(list(argv))
            except SystemExit as e:
                code = e.code if isinstance(e.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(argv, code, out.read().decode(), err.read().decode())


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
