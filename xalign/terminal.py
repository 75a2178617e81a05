"""How the commands end: one line about what the user can mend, and an exit code."""
from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from xalign.config import XalignError
from xalign.safe import hide, printable


def fail(message: str) -> None:
    """One line on stderr, without secrets and without what a terminal would obey."""
    with contextlib.suppress(OSError):  # nobody may be there to read it
        print(f"xalign: {' '.join(printable(hide(str(message))).split())}", file=sys.stderr, flush=True)


class Stopped(KeyboardInterrupt):
    """A signal asks the command to end, as Ctrl-C does.

    Attributes:
        number: of the signal.
        told: the line that says so is printed.
    """

    def __init__(self, number: int, told: bool = False) -> None:
        super().__init__(number)
        self.number, self.told = number, told


def prepare() -> None:
    """Make a command's streams fit to be written to: closed ones go nowhere, signs that a terminal lacks become ``?``.

    Raises:
        XalignError: when the working directory has been deleted.
    """
    sys.stdout, sys.stderr = (s or open(os.devnull, "w", encoding="utf-8") for s in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        os.getcwd()
    except OSError as e:
        raise XalignError(f"working directory: {e.strerror}; it was deleted or moved, change to one that is there") from None


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within this, a cluster's time limit (SIGTERM) and a closed terminal (SIGHUP) end the command as Ctrl-C does.

    What ignores such a signal (nohup) goes on ignoring it. After the first one the others are ignored: a cluster sends several.
    """
    numbers = [n for n in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)) if signal.getsignal(n) is signal.SIG_DFL]

    def stop(number: int, frame: Any) -> None:
        for n in numbers:
            signal.signal(n, signal.SIG_IGN)
        raise Stopped(number)

    for n in numbers:
        signal.signal(n, stop)
    try:
        yield
    finally:
        for n in numbers:
            signal.signal(n, signal.SIG_DFL)


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
    except KeyboardInterrupt:
        fail("interrupted")
        return 130
    except XalignError as e:
        fail(str(e))
    except OSError as e:
        fail(f"{e.filename or 'output'}: {e.strerror}")
    except Exception as e:
        return unforeseen(e)
    return 2


def unforeseen(e: Exception) -> int:
    """A bug of ours: the user gets a line, we get the traceback; returns the exit code."""
    log = Path("xalign-error.log")
    with contextlib.suppress(OSError):
        log.write_text(hide("".join(traceback.format_exception(e))), encoding="utf-8")
    if os.environ.get("XALIGN_DEBUG"):
        traceback.print_exception(e)
    fail(f"unexpected {type(e).__name__}: {e} (traceback in {log}; please report it)")
    return 1


def mendable(e: BaseException) -> XalignError | None:
    """What the user can mend about `e`; None where nothing is, a bug of ours."""
    from xalign.cache import disk_error, disk_trouble

    if isinstance(e, XalignError):
        return e
    trouble = e if isinstance(e, OSError) else disk_trouble(e)
    return disk_error(trouble, Path("file system")) if trouble else None


def guarded(work: Callable[[], Any]) -> int:
    """Run `work` and turn whatever it raises into one line and an exit code.

    Returns:
        0; 2: mend it; 1: our bug; 128 and the signal's number: Ctrl-C 130, SIGTERM 143, SIGHUP 129, output that nobody reads 141.
    """
    kept = "finished stages are kept, repeat the command to continue"
    try:
        work()
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt as e:
        number = getattr(e, "number", signal.SIGINT)
        if not getattr(e, "told", False):
            fail(f"{'interrupted' if number == signal.SIGINT else f'stopped by {signal.Signals(number).name}'}; {kept}")
        return 128 + number
    except (BrokenPipeError, SystemExit) as e:
        if not isinstance(e, BrokenPipeError) and not isinstance(e.__context__, BrokenPipeError):  # rich ends so when its pipe breaks
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        fail(f"nobody reads the output any more; {kept}")
        return 141
    except Exception as e:
        if known := mendable(e):
            fail(str(known))
            return 2
        return unforeseen(e)
