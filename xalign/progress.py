"""One kind of progress bar for everything that takes longer than a few seconds."""
from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from xalign.safe import printable


def bar(iterable: Iterable[Any] | None = None, total: float | None = None, desc: str = "", unit: str = "it", **more: Any) -> tqdm:
    """A bar on stderr with count, rate and time left; on a pipe it prints at most every ten seconds."""
    live = sys.stderr.isatty()
    return tqdm(iterable, total=total, desc=f"  {printable(desc)}", unit=unit, dynamic_ncols=live, ncols=None if live else 96,
                mininterval=0.2 if live else 10.0, maxinterval=30.0, leave=live, smoothing=0.1, **more)


def notice(line: str) -> None:
    """One line on stderr, above any bar: something went otherwise than it should, and what is done about it."""
    tqdm.write(f"  {printable(line)}", file=sys.stderr)
    sys.stderr.flush()
