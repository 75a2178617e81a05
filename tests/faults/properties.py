"""What the property tests share: a decorator, and text of every kind that breaks text."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# combining marks, right to left, no spaces, joined emoji, line ends that only some readers see, a BOM, a NUL, case that changes length,
# and what templates, shells and tables would take for their own
PIECES = ("e\u0301", "क्षि", "กำ", "한국", "السلام", "\u200f", "日本語", "東京", "👩\u200d👩\u200d👧", "🇫🇮", "\u2028", "\u2029", "\x85",
          "\x0b", "\x1c", "\ufeff", "\x00", "İ", "ß", "ǰ", "ΑΣ", "ﬁ", "２", "\u00a0", "\u3000", "\u200b", "{", "}", "{0}", "{prompt}", "%s",
          "\\", '"', "'", "|", "<b>", "&amp;", "$", "\t", "\n", "\r\n", "the", "a", "Helsinki", "New York", " ", ".", "—")
TEXTS = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(PIECES)), max_size=8).map("".join)
WORDS = st.lists(st.sampled_from(("the", "The", "a", "an", "cat", "Cat", "le", "ال", "القط", "die", "カ", "猫", "猫が", "x2", "२",
                                  "e\u0301", "...", "-")), max_size=7)


def holds(examples: int = 100, **strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A property of all values of `strategies`: tried on so many examples, always the same ones; with ``-m long`` on ten times as many."""
    def wrap(check: Callable[..., None]) -> Callable[..., None]:
        def run(times: int) -> None:
            often = settings(max_examples=examples * times, derandomize=True, deadline=None, database=None,
                             suppress_health_check=list(HealthCheck))
            often(given(**strategies)(check))()

        run.__name__, run.__doc__, run.__module__ = check.__name__, check.__doc__, check.__module__
        return pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.long)])(run)
    return wrap
