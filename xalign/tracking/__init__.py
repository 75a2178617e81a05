"""Experiment trackers: Weights & Biases, Comet ML, both, none. Recording never stops a run: each tracker works in a thread of its
own, which the run waits for only so long; its trouble is said once, and the run goes on.

Each tracker's package is imported only when a run starts with it. Keys are read by the packages themselves
(environment, ``wandb login``, ``~/.comet.config``); none is ever part of a configuration.
"""
from __future__ import annotations

import queue
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.config import ConfigError, Node, choice, within
from xalign.safe import hide, printable
from xalign.tracking.accounts import comet_key, wandb_key

if TYPE_CHECKING:
    from xalign.config import Run

SECRET = re.compile(r"(^|[_.])(api_?key|token|password|secret|credentials?)$", re.IGNORECASE)
OFFLINE = 20.0  # seconds to begin an offline record

Say = Callable[[str], None]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class NoTracker(Node):
    """Nothing is recorded besides the run's own files."""


@dataclass(frozen=True)
class Hosted(Node):
    """What both trackers have.

    Attributes:
        project: where the run appears.
        mode: auto is online when a key is found and offline otherwise.
        group: runs under one name (of Comet a tag); null is the sweep's name, if there is one.
        tags: labels of the run besides method, languages and backbone.
        artifacts: files that go to the tracker: none; results (rows, predictions, card, receipts); all (the weights too).
        timeout: seconds to wait for the server at the start; then the run is recorded offline.
        finish_timeout: seconds to wait at the end for what is not uploaded yet, and for any other call.
    """

    project: str = "xalign"
    mode: str = choice("auto", "auto", "online", "offline", "disabled")
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    artifacts: str = choice("results", "none", "results", "all")
    timeout: float = within(30.0, above=0)
    finish_timeout: float = within(60.0, above=0)


@dataclass(frozen=True)
class Wandb(Hosted):
    """Weights & Biases; entity null is the account's default."""

    entity: str | None = None

    def check_run(self, run: Run, key: str = "tracker") -> None:
        """Raise ConfigError for online without a key."""
        if self.mode == "online" and not wandb_key():
            raise ConfigError(f"{key}.mode=online: no W&B key found; run `wandb login`, set WANDB_API_KEY, or use {key}.mode=offline")


@dataclass(frozen=True)
class Comet(Hosted):
    """Comet ML; workspace null is the account's default."""

    workspace: str | None = None
    timeout: float = within(60.0, above=0)

    def check_run(self, run: Run, key: str = "tracker") -> None:
        """Raise ConfigError for online without a key."""
        if self.mode == "online" and not comet_key():
            raise ConfigError(f"{key}.mode=online: no Comet key found; set COMET_API_KEY, run `comet login`, or use {key}.mode=offline")


@dataclass(frozen=True)
class Both(Node):
    """Both trackers at once; one that fails leaves the other alone."""

    wandb: Wandb = field(default_factory=Wandb)
    comet: Comet = field(default_factory=Comet)

    def check(self, path: str) -> None:
        """Raise ConfigError for the first value out of range, in the nested nodes too."""
        super().check(path)
        self.wandb.check(f"{path}.wandb")
        self.comet.check(f"{path}.comet")

    def check_run(self, run: Run) -> None:
        """Raise ConfigError for online without a key."""
        self.wandb.check_run(run, "tracker.wandb")
        self.comet.check_run(run, "tracker.comet")


def chosen(node: Node) -> dict[str, Wandb | Comet]:
    """``wandb`` and ``comet`` → their nodes, those that record something."""
    parts = {"wandb": node.wandb, "comet": node.comet} if isinstance(node, Both) else \
        {"wandb" if isinstance(node, Wandb) else "comet": node} if isinstance(node, (Wandb, Comet)) else {}
    return {name: part for name, part in parts.items() if part.mode != "disabled"}  # type: ignore[attr-defined]


def without_secrets(config: Any) -> Any:
    """A copy of nested dicts and lists without keys that name a secret (api_key, token, password ...)."""
    if isinstance(config, Mapping):
        return {k: without_secrets(v) for k, v in config.items() if not SECRET.search(str(k))}
    return [without_secrets(v) for v in config] if isinstance(config, (list, tuple)) else config


@dataclass(frozen=True)
class Start:
    """What a tracker is told at the start.

    Attributes:
        config: the resolved configuration as dotted keys.
        name: the run's name, that of its folder.
        group: name of the sweep; the node's own group wins.
        folder: offline records go under it.
        tags, kind: labels, and the mode (train, evaluate).
        key: a name of 32 letters and digits for this run that stays the same when its command is repeated.
    """

    config: Mapping[str, Any]
    name: str
    group: str | None
    folder: Path
    tags: tuple[str, ...] = ()
    kind: str = "train"
    key: str = ""


@dataclass(frozen=True)
class Package:
    """Files under one name, made or used by a run.

    Attributes:
        files: name inside the package → a path, or the text itself.
        used: an input of the run, not a result.
    """

    name: str
    kind: str
    files: Mapping[str, Path | str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    used: bool = False


class _Line:
    """One tracker in a thread of its own, so that a call which hangs can be left behind. The run waits for each call: two threads that
    import at once (pandas, PIL) can block each other for good.

    Trouble with a table, an image or a package leaves that out; any other trouble, or no answer in time, ends the recording.
    Either is said once.
    """

    EXTRAS = ("table", "image", "package")

    def __init__(self, title: str, make: Callable[[], Any], say: Say, start: float = 60.0, end: float = 120.0) -> None:
        self.title, self.end, self.where, self.id, self.later, self.resumed = title, end, "", "", "", -1
        self.over = self.complete = self._said = False
        self._say = say
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        self._done = threading.Event()
        threading.Thread(target=self._work, args=(make,), daemon=True, name=f"xalign {title}").start()
        if not self._done.wait(start):
            self._trouble(f"no answer in {start:g} s")

    def call(self, name: str, *args: Any) -> None:
        """Make one call of the backend, and wait at most `end` seconds for it."""
        if self.over:
            return
        self._done.clear()
        self._calls.put((name, args))
        if not self._done.wait(self.end):
            self._trouble(f"{name} is not finished after {self.end:g} s"
                          + f"; what is missing can be sent later: {self.later}" * bool(self.later))

    def _work(self, make: Callable[[], Any]) -> None:
        name, args = "start", ()
        try:
            backend = make()
            self.where, self.id, self.later, self.resumed = backend.where, backend.id, backend.later, backend.resumed
            while name != "finish":
                self._done.set()
                name, args = self._calls.get()
                try:
                    getattr(backend, name)(*args)
                except Exception as e:
                    if name not in self.EXTRAS:
                        raise
                    self._trouble(f"{name} {getattr(args[0], 'name', args[0])} left out: {one_line(e)}", ends=False)
            self.complete, self.over = not self.over, True
        except ImportError as e:
            self._trouble(f"{e.name or e} is not installed")
        except Exception as e:  # whatever a tracker's package raises: no server, full disk
            self._trouble(one_line(e))
        finally:
            self._done.set()

    def _trouble(self, what: str, ends: bool = True) -> None:
        if not self._said and not self.over:
            self._said = True
            self._say(f"{self.title}: {what}; the run goes on" + " without it" * ends)
        self.over |= ends


def one_line(e: BaseException) -> str:
    """An error as one short line, without secrets."""
    return f"{type(e).__name__}: {' '.join(printable(hide(str(e))).split())[:200]}"


class Tracker:
    """What a run records to: the same calls for every tracker, none of which raises, or waits longer than `finish_timeout`.

    Attributes:
        lines: ``wandb``, ``comet`` → its line.
        where: address or folder of the first record; empty without a tracker.
    """

    def __init__(self, lines: Mapping[str, _Line] | None = None) -> None:
        self.lines = dict(lines or {})
        self.where = next((line.where for line in self.lines.values()), "")

    @property
    def active(self) -> bool:
        """True while something is recorded."""
        return any(not line.over for line in self.lines.values())

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Numbers of one training step (other values are ignored); steps never go back."""
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool) and k != "step"}
        for line in self.lines.values():
            if numbers and step > line.resumed:
                line.call("log", numbers, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of text and numbers."""
        self._all("table", name, list(columns), [list(row) for row in rows])

    def image(self, name: str, png: bytes, caption: str = "") -> None:
        """A picture, as the bytes of a PNG file."""
        self._all("image", name, png, caption)

    def package(self, package: Package, to: Sequence[str] = ("wandb", "comet")) -> None:
        """Files that the run made or used, for the trackers in `to`."""
        for name, line in self.lines.items():
            if name in to:
                line.call("package", package)

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run's final numbers."""
        self._all("summary", dict(values))

    def finish(self, failed: bool = False) -> None:
        """Write what is left; `failed` marks the run as such."""
        self._all("finish", failed)

    def _all(self, name: str, *args: Any) -> None:
        for line in self.lines.values():
            line.call(name, *args)


def start(node: Node, begin: Start, say: Say = _tell, only: Sequence[str] = ("wandb", "comet")) -> Tracker:
    """Begin recording a run (in the process of rank 0).

    Args:
        node: `Wandb`, `Comet`, `Both` or `NoTracker`.
        say: receives one line when recording is offline, incomplete or impossible.
        only: which of the node's trackers.
    """
    def make(name: str, part: Any) -> Callable[[], Any]:
        def made() -> Any:
            if name == "wandb":
                from xalign.tracking.wandb_run import WandbRun as Backend
            else:
                from xalign.tracking.comet_run import CometRun as Backend  # type: ignore[assignment]
            return Backend(part, begin, safely)

        return made

    def safely(line: str) -> None:
        say(printable(hide(line)))

    titles = {"wandb": "W&B", "comet": "Comet"}
    return Tracker({name: _Line(titles[name], make(name, part), safely, part.timeout + OFFLINE, part.finish_timeout)
                    for name, part in chosen(node).items() if name in only})
