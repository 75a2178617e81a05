"""Experiment trackers: Weights & Biases, Comet ML, none. Recording never stops a run: trouble is said once and ends the tracking.

Each tracker's package is imported only when a run starts with it. Keys are read by the packages themselves
(environment, ``wandb login``, ``~/.comet.config``); none is ever part of a configuration.
"""
from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from xalign.config import ConfigError, Node, choice, within

if TYPE_CHECKING:
    from xalign.config import Run

SECRET = re.compile(r"(^|_)(api_?key|token|password|secret|credentials?)$", re.IGNORECASE)
CONNECT = 5.0  # seconds for a server to accept a connection


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class NoTracker(Node):
    """Nothing is recorded besides the run's own files."""


@dataclass(frozen=True)
class Wandb(Node):
    """Weights & Biases.

    Attributes:
        project, entity: where the run appears; entity null is the account's default.
        mode: auto is online when a key is found and offline otherwise.
        group: runs under one name; null is the sweep's name, if there is one.
        tags: labels of the run.
        timeout: seconds to wait for the server at the start; then the run is recorded offline.
    """

    project: str = "xalign"
    entity: str | None = None
    mode: str = choice("auto", "auto", "online", "offline", "disabled")
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    timeout: float = within(30.0, above=0)

    def check_run(self, run: Run) -> None:
        """Raise ConfigError for online without a key."""
        if self.mode == "online" and not wandb_key():
            raise ConfigError("tracker.mode=online: no W&B key found; run `wandb login`, set WANDB_API_KEY, "
                              "or use tracker.mode=offline")


@dataclass(frozen=True)
class Comet(Node):
    """Comet ML.

    Attributes:
        project, workspace: where the run appears; workspace null is the account's default.
        mode: auto is online when a key is found and offline otherwise.
        group: becomes a tag; null is the sweep's name, if there is one.
        tags: labels of the run.
    """

    project: str = "xalign"
    workspace: str | None = None
    mode: str = choice("auto", "auto", "online", "offline", "disabled")
    group: str | None = None
    tags: list[str] = field(default_factory=list)

    def check_run(self, run: Run) -> None:
        """Raise ConfigError for online without a key."""
        if self.mode == "online" and not comet_key():
            raise ConfigError("tracker.mode=online: no Comet key found; set COMET_API_KEY, run `comet login`, "
                              "or use tracker.mode=offline")


def wandb_server() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def comet_server() -> str:
    return os.environ.get("COMET_URL_OVERRIDE") or "https://www.comet.com/clientlib/"


def reachable(url: str, seconds: float) -> bool:
    """True if the server accepts a connection, or if a proxy decides that.

    Asked first because the packages themselves retry for half a minute (Comet) or without end (W&B).
    """
    import socket
    from urllib.request import getproxies

    parts = urlparse(url)
    if parts.scheme in getproxies() or "all" in getproxies():
        return True
    try:
        with socket.create_connection((parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)), seconds):
            return True
    except OSError:
        return False


def wandb_key() -> bool:
    """True if W&B will find a key: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    host = urlparse(wandb_server()).hostname or ""
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        path = Path(name).expanduser() if name else None
        try:
            if path and path.is_file() and netrc.netrc(str(path)).authenticators(host):
                return True
        except (netrc.NetrcParseError, OSError):
            continue
    return False


def comet_key() -> bool:
    """True if Comet will find a key: in the environment or in its configuration file."""
    if os.environ.get("COMET_API_KEY"):
        return True
    files = (Path(os.environ.get("COMET_CONFIG") or "~/.comet.config").expanduser(), Path(".comet.config"))
    pattern = re.compile(r"^\s*api_key\s*=\s*\S", re.MULTILINE)
    return any(path.is_file() and pattern.search(path.read_text(errors="replace")) for path in files)


def without_secrets(config: Any) -> Any:
    """A copy of nested dicts and lists without keys that name a secret (api_key, token, password ...)."""
    if isinstance(config, Mapping):
        return {k: without_secrets(v) for k, v in config.items() if not SECRET.search(str(k))}
    return [without_secrets(v) for v in config] if isinstance(config, (list, tuple)) else config


class Tracker:
    """What a run records to: the same five calls for every tracker, none of which ever raises.

    Attributes:
        where: address or folder of the record; empty without a tracker.
    """

    def __init__(self, backend: Any = None, say: Callable[[str], None] = _tell) -> None:
        self._backend, self._say = backend, say
        self.where: str = getattr(backend, "where", "")

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Numbers of one step; other values are ignored. Steps may start again (a second training stage)."""
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool) and k != "step"}
        self._call("log", numbers, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of text and numbers."""
        self._call("table", name, list(columns), [list(row) for row in rows])

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run's final numbers."""
        self._call("summary", dict(values))

    def finish(self, failed: bool = False) -> None:
        """Write what is left; `failed` marks the run as such."""
        self._call("finish", failed)
        self._backend = None

    def _call(self, name: str, *args: Any) -> None:
        if self._backend is None:
            return
        try:
            getattr(self._backend, name)(*args)
        except Exception as e:  # whatever a tracker's package raises
            self._backend = None
            self._say(f"tracker: {_one_line(e)}; the run goes on without it")


def _one_line(e: BaseException) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"


def start(node: Node, config: Mapping[str, Any], name: str, group: str | None, folder: Path,
          say: Callable[[str], None] = _tell) -> Tracker:
    """Begin recording a run (in the process of rank 0).

    Args:
        node: `Wandb`, `Comet` or `NoTracker`.
        config: the resolved configuration; keys that name a secret are left out.
        name: the run's name.
        group: name of the sweep; the node's own group wins.
        folder: offline records go under it.
        say: receives one line when recording is offline or impossible.
    """
    if isinstance(node, NoTracker) or getattr(node, "mode", "") == "disabled":
        return Tracker()
    backend = {Wandb: _WandbRun, Comet: _CometRun}[type(node)]
    try:
        return Tracker(backend(node, without_secrets(config), name, node.group or group, Path(folder), say), say)
    except ImportError as e:
        say(f"tracker: {e.name or e} is not installed; the run goes on without it")
    except Exception as e:  # no server, full disk, a package's own trouble
        say(f"tracker: {_one_line(e)}; the run goes on without it")
    return Tracker()


class _WandbRun:
    def __init__(self, node: Wandb, config: Any, name: str, group: str | None, folder: Path, say: Callable[[str], None]) -> None:
        import wandb

        self.wandb = wandb
        mode = node.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if wandb_key() else "offline")

        why = "no key found" if node.mode == "auto" and not wandb_key() else f"mode {mode}"
        if mode == "online" and not reachable(wandb_server(), CONNECT):
            mode, why = "offline", f"{wandb_server()} cannot be reached"

        def init(mode: str) -> Any:
            settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, init_timeout=node.timeout)
            return wandb.init(project=node.project, entity=node.entity, name=name, group=group, tags=list(node.tags),
                              config=config, dir=str(folder), mode=mode, settings=settings)  # type: ignore[arg-type]

        try:
            self.run = init(mode)
        except wandb.errors.Error as e:
            if mode != "online":
                raise
            mode, why = "offline", _one_line(e)
            self.run = init(mode)
        # the training step is a value, not W&B's own counter: a second stage may start at 0 again
        self.run.define_metric("*", step_metric="step")
        self.where = str(Path(self.run.dir).parent) if mode == "offline" else self.run.url or ""
        if mode == "offline":
            say(f"W&B: {why}, so the run is recorded offline in {self.where} (upload it later: wandb sync {self.where})")

    def log(self, values: dict[str, Any], step: int | None) -> None:
        self.run.log(values if step is None else {**values, "step": step})

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.run.log({name: self.wandb.Table(columns=columns, data=rows, allow_mixed_types=True)})

    def summary(self, values: dict[str, Any]) -> None:
        self.run.summary.update(values)

    def finish(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class _CometRun:
    def __init__(self, node: Comet, config: Any, name: str, group: str | None, folder: Path, say: Callable[[str], None]) -> None:
        os.environ.setdefault("COMET_LOGGING_CONSOLE", "CRITICAL")  # it logs tracebacks of what it survives
        import comet_ml

        online = node.mode == "online" or node.mode == "auto" and comet_key()
        options = {"project_name": node.project, "workspace": node.workspace, "log_code": False, "log_graph": False,
                   "auto_param_logging": False, "auto_metric_logging": False, "auto_output_logging": False, "parse_args": False,
                   "log_git_metadata": False, "log_git_patch": False, "display_summary_level": 0}
        why = "no key found" if node.mode == "auto" else "mode offline"
        if online and not reachable(comet_server(), CONNECT):
            online, why = False, f"{comet_server()} cannot be reached"
        if online:
            self.run = comet_ml.Experiment(**options)
            if not self.run.alive:  # it does not raise when the server cannot be reached
                online, why = False, "the server refuses the key or does not answer"
        if not online:
            offline = folder / "comet"
            offline.mkdir(parents=True, exist_ok=True)
            self.run = comet_ml.OfflineExperiment(offline_directory=str(offline), **options)
            self.where = str(offline / f"{self.run.get_key()}.zip")
            say(f"Comet: {why}, so the run is recorded offline in {self.where} (upload it later: comet upload {self.where})")
        else:
            self.where = self.run.url or ""
        self.run.set_name(name)
        self.run.add_tags([*node.tags, *([group] if group else [])])
        self.run.log_parameters(config, nested_support=True)

    def log(self, values: dict[str, Any], step: int | None) -> None:
        self.run.log_metrics(values, step=step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.run.log_table(f"{name}.csv", tabular_data=rows, headers=columns)

    def summary(self, values: dict[str, Any]) -> None:
        self.run.log_others(values)

    def finish(self, failed: bool) -> None:
        self.run.log_other("failed", failed)
        self.run.end()
