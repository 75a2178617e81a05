"""How the commands end: one line about what the user can mend, and an exit code."""
from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from xalign.config import XalignError
from xalign.safe import hide, printable


def fail(message: str) -> None:
    """One line on stderr, without secrets and without what a terminal would obey."""
    print(f"xalign: {' '.join(printable(hide(str(message))).split())}", file=sys.stderr)


class LineParser(argparse.ArgumentParser):
    """Arguments of a command; what is wrong with them is one line. To be used inside `reading`."""

    def error(self, message: str) -> NoReturn:
        raise XalignError(f"{message}; {self.prog} --help shows how to write it")


def reading(work: Callable[[], None]) -> int:
    """Run a command that reads finished runs or files and prints tables; returns the exit code (2: mend it)."""
    try:
        work()
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except XalignError as e:
        fail(str(e))
    except OSError as e:
        fail(f"{e.filename}: {e.strerror}")
    return 2


def mendable(e: Exception) -> XalignError | None:
    """What the user can mend about `e`; None where nothing is, a bug of ours."""
    from xalign.cache import disk_error

    if isinstance(e, XalignError):
        return e
    if isinstance(e, OSError):
        return disk_error(e, Path.cwd())
    if "No space left on device" in str(e):  # torch and safetensors wrap the disk's error in their own types
        return disk_error(OSError(errno.ENOSPC, "No space left on device"), Path.cwd())
    return None


def guarded(work: Callable[[], Any]) -> int:
    """Run `work` and turn whatever it raises into one line and an exit code (2: mend it; 130: Ctrl-C; 1: our bug)."""
    try:
        work()
        return 0
    except KeyboardInterrupt:
        fail("interrupted; finished stages are kept, repeat the command to continue")
        return 130
    except Exception as e:
        if known := mendable(e):
            fail(str(known))
            return 2
        log = Path("xalign-error.log")  # the user gets a line, we get the traceback
        with contextlib.suppress(OSError):
            log.write_text(hide(traceback.format_exc()), encoding="utf-8")
        if os.environ.get("XALIGN_DEBUG"):
            traceback.print_exc()
        fail(f"unexpected {type(e).__name__}: {e} (traceback in {log}; please report it)")
        return 1
