"""Values of the configuration in words: how they are shown in a message, what was meant, what a field takes instead."""
from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any

LARGEST = 2**31 - 1  # a whole number beyond it is a slip of the finger, whatever it counts
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list, as in [a,b]",
         dict: "pairs, as in {a: b}"}


def nearest(word: Any, words: Any) -> str:
    """``; did you mean 'x'?`` when one of `words` is close to `word`, else an empty string."""
    hit = difflib.get_close_matches(str(word)[:80], [str(w) for w in words], n=1, cutoff=0.5)
    return f"; did you mean '{hit[0]}'?" if hit else ""


def among(word: Any, words: Any, title: str = "keys") -> str:
    """``; did you mean 'x'? Keys: a, b`` or ``; keys: a, b``: what could have been meant, then all there is."""
    near, all_of_them = nearest(word, words), ", ".join(words)
    if len(all_of_them) > 400:
        return f"{near or '.'} See --help"
    return f"{near} {title.capitalize()}: {all_of_them}" if near else f"; {title}: {all_of_them}"


def shown(value: Any) -> str:
    """A value as one types it, on one line, nothing in it that a terminal would obey, cut when it is long."""
    if isinstance(value, (list, tuple)):
        text = f"[{','.join(map(shown, value))}]"
    elif isinstance(value, dict):
        text = "{" + ",".join(f"{shown(k)}:{shown(v)}" for k, v in value.items()) + "}"
    else:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def expected(hint: Any, value: Any) -> str:
    """What a field annotated `hint` takes, in words, when `value` is none of it; empty when it is, or OmegaConf knows better."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    words = []
    for option in options:
        kind = typing.get_origin(option) or option
        if kind not in WORDS and kind is not types.NoneType and not dataclasses.is_dataclass(kind) or _fits(kind, option, value):
            return ""
        inner = typing.get_args(option) if kind is list else ()
        words.append("null" if kind is types.NoneType else "a list of numbers, as in [0.1,0.2]" if inner in ((int,), (float,)) else
                     WORDS.get(kind, "a group of keys"))
    quoted = "; put it into quotes" if "text" in words and isinstance(value, (bool, float)) else ""
    return " or ".join(words) + quoted


def _fits(kind: Any, hint: Any, value: Any) -> bool:
    """Whether `value` can stand where `kind` is wanted (`hint` with its parameters)."""
    if kind is types.NoneType:
        return value is None
    if dataclasses.is_dataclass(kind):
        return isinstance(value, (dict, kind))  # type: ignore[arg-type]
    if kind is list:
        inner = next(iter(typing.get_args(hint)), Any)
        return isinstance(value, (list, tuple)) and not any(expected(inner, v) for v in value)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind in (int, float) and isinstance(value, str):  # as ${oc.env:NAME} gives it
        try:
            return value.isascii() and kind(value) is not None
        except ValueError:
            return False
    # digits are a name too; what was typed as 1e5 cannot be known any more
    return isinstance(value, {float: (int, float), str: (str, int)}.get(kind, kind))


def span(meta: Any) -> str:
    """The range that a field's metadata declares, in words."""
    low, high, above = meta["low"], meta["high"], meta["above"]
    if above is not None:
        return f"greater than {above:g}" if high is None else f"in ({above:g}, {high:g}]"
    return f"at least {low:g}" if high is None else f"in [{low:g}, {high:g}]"
