"""How the commands end: one line about what the user can mend, and an exit code."""
from __future__ import annotations

import os
import sys
from collections.abc import Callable

from xalign.config import XalignError


def fail(message: str) -> None:
    """One line on stderr."""
    print(f"xalign: {' '.join(str(message).split())}", file=sys.stderr)


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
