"""One run at Weights & Biases, online or offline."""
from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

from xalign.digests import digest_of
from xalign.tracking import Package, Say, Start, Wandb, one_line, without_secrets
from xalign.tracking.accounts import reachable, wandb_key, wandb_server

CONNECT = 5.0  # seconds for a server to accept a connection
LONGEST = 128  # characters of a run's id and of a package's name


def identifier(name: str) -> str:
    """The run's id at W&B: its name, so that a repeated command continues the same entry."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST - 13]}-{digest_of(name)[:12]}"


class WandbRun:
    """The backend of `xalign.tracking` for W&B.

    Attributes:
        where: address or folder of the record.
        id: the run's id there; later: the command that uploads what is only on this machine.
        resumed: last training step of an online run that goes on; -1 else (an offline record begins anew).
    """

    def __init__(self, node: Wandb, begin: Start, say: Say) -> None:
        import wandb

        self.wandb, self.node = wandb, node
        agent = bool(os.environ.get("WANDB_SWEEP_ID"))  # the run is the agent's: its id, its project
        mode = os.environ.get("WANDB_MODE") if node.mode == "auto" else node.mode
        mode = mode or ("online" if wandb_key() else "offline")
        why = "no key found" if node.mode == "auto" and not wandb_key() else f"mode {mode}"
        if mode == "online" and not reachable(wandb_server(), CONNECT):
            mode, why = "offline", f"{wandb_server()} cannot be reached"
        options: dict[str, Any] = {"console": "off", "silent": True, "disable_git": True, "save_code": False, "init_timeout": node.timeout}
        if "finish_timeout" in wandb.Settings.model_fields:  # newer than 0.20
            options |= {"finish_timeout": node.finish_timeout, "finish_timeout_raises": True}

        # the folder in full: W&B's service may be that of a parent process, in another working directory
        def init(mode: str, name: str) -> Any:
            more = {} if agent else {"id": name, "resume": "allow"} if mode == "online" else {"id": name}
            return wandb.init(project=node.project, entity=node.entity, name=begin.name, group=node.group or begin.group,
                              job_type=begin.kind, tags=[*begin.tags, *node.tags], config=without_secrets(begin.config),
                              dir=str(begin.folder.resolve()), mode=mode, reinit="create_new", settings=wandb.Settings(**options), **more)

        try:
            self.run = self._begin(init, mode, begin)
        except wandb.errors.Error as e:
            if mode != "online":
                raise
            mode, why = "offline", one_line(e)
            self.run = self._begin(init, mode, begin, "-offline")  # the service may still hold the id for the server
        # the training step is a value, not W&B's own counter
        self.run.define_metric("*", step_metric="step")
        self.id, self.offline = self.run.id, mode == "offline"
        last = self.run.summary.get("step") if self.run.resumed and not self.offline else None
        self.resumed = int(last) if isinstance(last, (int, float)) else -1
        local = Path(self.run.dir).parent
        self.where, self.later = str(local) if self.offline else self.run.url or "", f"wandb sync {local}"
        if self.offline:
            say(f"W&B: {why}, so the run is recorded offline in {local} (upload it later: {self.later})")

    @staticmethod
    def _begin(init: Any, mode: str, begin: Start, more: str = "") -> Any:
        name = identifier(begin.name + more)
        if mode == "offline" and not os.environ.get("WANDB_SWEEP_ID"):  # an earlier attempt holds nothing that this one will not
            for old in (begin.folder / "wandb").glob(f"offline-run-*-{name}"):
                shutil.rmtree(old, ignore_errors=True)
        return init(mode, name)

    def log(self, values: dict[str, Any], step: int) -> None:
        self.run.log({**values, "step": step})

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.run.log({name: self.wandb.Table(columns=columns, data=rows, allow_mixed_types=True)})

    def image(self, name: str, png: bytes, caption: str) -> None:
        from PIL import Image

        self.run.log({name: self.wandb.Image(Image.open(io.BytesIO(png)), caption=caption)})

    def summary(self, values: dict[str, Any]) -> None:
        self.run.summary.update(values)

    def package(self, package: Package) -> None:
        """An artifact; one that was used is an input in W&B's lineage graph, also after a later sync."""
        made = self.wandb.Artifact(identifier(package.name), type=package.kind, metadata=dict(package.metadata))
        for name, content in package.files.items():
            if isinstance(content, Path):
                made.add_file(str(content), name=name, policy="immutable", skip_cache=True)
            else:
                with made.new_file(name, encoding="utf-8") as f:
                    f.write(content)
        if not package.used:
            self.run.log_artifact(made)
        elif not self.offline:
            self.run.use_artifact(made)
        else:  # `use_artifact` asks the server; what it writes down for the server is this
            self.run._log_artifact(made, is_user_created=True, use_after_commit=True)

    def finish(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))
