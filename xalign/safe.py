"""Texts from elsewhere made fit to be shown or kept: no control characters, no secrets. Standard library only, nothing of xalign.

Every error message, table and console line goes through here, so no other place needs to think of it.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

# C0 and C1 but for newline and tab: escape sequences, carriage returns and bells. The bidirectional overrides, embeddings and isolates
# can make a line read as another one; letters of Arabic or Hebrew need none of them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
KEYS = re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|glpat-[\w-]{20,}"
                     r"|wandb_v1_\w{20,})|-----BEGIN [A-Z ]*PRIVATE KEY-----")
_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]*://)([^\s/@'\"<>]+)@", re.IGNORECASE)
_QUERY = re.compile(r"([?&](?:api[_-]?key|key|token|access_token|auth|password|secret|signature|sig)=)([^\s&#'\"<>]+)", re.IGNORECASE)
_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")  # of environment variables that hold a secret
_SHORTEST = 8  # characters of a value that is taken for a secret: EMPTY and dummy are none


def printable(text: str) -> str:
    """`text` with a visible mark for every control character; newlines and tabs stay."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def _kept() -> Iterator[str]:
    """The secrets in this process's environment, as they are and as an address writes them."""
    for name, value in os.environ.items():
        if _NAME.search(name.upper()) and len(value.strip()) >= _SHORTEST and not value.startswith(("/", "~", ".")):
            yield from dict.fromkeys((value.strip(), quote(value.strip(), safe="")))


def hide(text: str) -> str:
    """`text` with ``***`` for keys, for passwords in addresses, and for the secrets of this process's environment."""
    text = _QUERY.sub(r"\1***", _ADDRESS.sub(r"\1***@", KEYS.sub("***", text)))
    for secret in _kept():
        text = text.replace(secret, "***")
    return text


def secret_in(value: Any, key: str = "") -> str:
    """Why a configuration value, or a part of it, must not be kept: the whole key and what it holds, never the value; empty for nothing.

    Args:
        value: what stands under `key`; nested lists and dicts are searched.
    """
    if isinstance(value, dict):
        return next(filter(None, (secret_in(v, f"{key}.{k}" if key else str(k)) for k, v in value.items())), "")
    if isinstance(value, (list, tuple)):
        return next(filter(None, (secret_in(v, key) for v in value)), "")
    text = str(value)
    what = "a secret key" if KEYS.search(text) else \
        "an address with a password or a key in it" if _ADDRESS.search(text) or _QUERY.search(text) else \
        "what a secret environment variable holds" if any(secret in text for secret in _kept()) else ""
    return f"{key}: holds {what}; configurations are saved and published: leave it to the environment variable or the file that the " \
        "service's own programs read" if what else ""
