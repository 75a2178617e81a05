"""What is measured besides the tasks' own metrics: learned metrics, the judge, the tokenizer of FLORES-200. No torch."""
from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from xalign.config import ConfigError, Node, within
from xalign.metrics.comet import check_checkpoint, check_python, checkpoint_params, comet_version

# upper case only: a key that was pasted here by mistake is refused, and never repeated
_ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


@dataclass(frozen=True)
class Comet(Node):
    """COMET's checkpoints and the interpreter that scores with them.

    Attributes:
        model: COMET, which reads source, translation and reference: a local checkpoint
            (``.../checkpoints/model.ckpt``) or a hub id such as Unbabel/wmt22-comet-da, pinned as ID@COMMIT; null: none.
        kiwi: COMETKiwi, which reads no reference; as `model`.
        python: interpreter that has unbabel-comet; null: this one.
        batch_size: texts a forward pass.
    """

    model: str | None = None
    kiwi: str | None = None
    python: str | None = None
    batch_size: int = within(16, low=1)

    def check(self, path: str) -> None:
        """Raise ConfigError for a checkpoint or interpreter that cannot be used."""
        super().check(path)
        for name, references in (("model", True), ("kiwi", False)):
            if getattr(self, name):
                check_checkpoint(f"{path}.{name}", getattr(self, name), references)
        if self.python:
            check_python(f"{path}.python", self.python)

    def params(self) -> dict[str, Any]:
        """What decides the scores; empty when nothing is asked."""
        found: dict[str, Any] = {name: checkpoint_params(getattr(self, name)) for name in ("model", "kiwi") if getattr(self, name)}
        return {**found, "version": comet_version(self.python)} if found else {}


@dataclass(frozen=True)
class Judge(Node):
    """A language model that compares answers, behind an OpenAI-compatible endpoint.

    Attributes:
        url: of the endpoint, up to and without ``/chat/completions``; null: no judge.
        model: its name there.
        key_env: NAME of the environment variable that holds the key; unset, none is sent.
        against: a run folder or a file of predictions (JSON lines with id and prediction): the opponent's answers.
        temperature, max_tokens: of one verdict; null: not sent, for models that refuse them.
        timeout: seconds without a byte of the answer.
        retries: of a call that failed for a passing reason (429, 5xx, no connection, no time).
        parallel: calls at a time.
    """

    url: str | None = None
    model: str = ""
    key_env: str = "OPENAI_API_KEY"
    against: str | None = None
    temperature: float | None = within(0.0, low=0, high=2)
    max_tokens: int | None = within(1024, low=16)
    timeout: float = within(120.0, above=0)
    retries: int = within(5, low=0, high=20)
    parallel: int = within(4, low=1, high=64)

    def check(self, path: str) -> None:
        """Raise ConfigError for what cannot be asked; no message repeats a value that may be secret."""
        super().check(path)
        if not _ENV_NAME.fullmatch(self.key_env):
            raise ConfigError(f"{path}.key_env: must be the NAME of an environment variable, in capitals (OPENAI_API_KEY); the key "
                              "itself belongs into that variable only")
        if self.url is None:
            return
        try:
            parts = urlsplit(self.url)
            port_ok = (parts.port is None or parts.port > 0) and not re.search(r"[^!-~]", self.url)
            (parts.hostname or "").encode("idna")
        except ValueError:
            port_ok = False
        if not port_ok or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{path}.url: must be the address of an OpenAI-compatible endpoint, such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(f"{path}.url: has a user name, a password or a query in it; give the address alone, and the key in the "
                              f"environment variable that {path}.key_env names")
        if not self.model.strip():
            raise ConfigError(f"{path}.model: is empty; name the model that judges, as the endpoint calls it")
        if self.against and not Path(self.against).expanduser().exists():
            raise ConfigError(f"{path}.against={self.against}: no such run folder or file of predictions")

    def sent(self) -> dict[str, Any]:
        """The sampling values that go with every call."""
        return {k: v for k, v in (("temperature", self.temperature), ("max_tokens", self.max_tokens)) if v is not None}

    def params(self, against: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What decides the verdicts.

        Args:
            against: id → answer of the opponent.
        """
        from xalign.digests import digest_of
        from xalign.metrics.judge import PROMPT_VERSION

        return {"url": self.url, "model": self.model, **self.sent(), "prompt": PROMPT_VERSION,
                **({"against": digest_of(dict(against))} if against else {})}


@dataclass(frozen=True)
class Metrics(Node):
    """The group ``metric``.

    Attributes:
        flores200: the file flores200sacrebleuspm of sacrebleu's flores200 tokenizer; null: where sacrebleu keeps it.
        similarity: cosine of prediction and reference by e5_small, under its own name.
    """

    flores200: str | None = None
    comet: Comet = field(default_factory=Comet)
    judge: Judge = field(default_factory=Judge)
    similarity: bool = False

    def check(self, path: str) -> None:
        """Raise ConfigError for the first value that cannot be used, in the nested nodes too."""
        super().check(path)
        if self.flores200 and not Path(self.flores200).expanduser().is_file():
            raise ConfigError(f"{path}.flores200={self.flores200}: no such file; name sacrebleu's flores200sacrebleuspm, or null")
        self.comet.check(f"{path}.comet")
        self.judge.check(f"{path}.judge")

    def params(self) -> dict[str, Any]:
        """What decides the learned scores (not the judge's, which have a stage of their own); empty when none is asked."""
        comet = self.comet.params()
        return {**({"comet": comet} if comet else {}), **({"similarity": "e5_small"} if self.similarity else {})}


def api_key(node: Judge) -> str:
    """The key, read when it is needed; empty if there is none."""
    return os.environ.get(node.key_env, "").strip()
