"""One run at Comet ML, online or offline."""
from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from xalign.tracking import Comet, Package, Say, Start, one_line, without_secrets
from xalign.tracking.accounts import comet_key, comet_server, reachable

CONNECT = 5.0  # seconds for a server to accept a connection


class CometRun:
    """The backend of `xalign.tracking` for Comet ML.

    Attributes:
        where: address of the record, or the folder with its zip.
        id: the experiment's key; later: the command that uploads what is only on this machine.
        resumed: -1; Comet keeps one value a step, so a step that is sent again replaces itself.
    """

    resumed = -1

    def __init__(self, node: Comet, begin: Start, say: Say) -> None:
        # it logs tracebacks of what it survives; a run must end in bounded time
        limits = {"COMET_LOGGING_CONSOLE": "CRITICAL", "COMET_TIMEOUT_CLEANING": f"{node.finish_timeout:.0f}",
                  "COMET_ERROR_TRACKING_ENABLE": "false",  # it would send tracebacks with their variables elsewhere
                  "COMET_TIMEOUT_UPLOAD": f"{node.finish_timeout:.0f}", "COMET_TIMEOUT_FILE_UPLOAD": f"{node.finish_timeout:.0f}"}
        for name, value in limits.items():
            os.environ.setdefault(name, value)
        import comet_ml

        self.comet_ml = comet_ml
        folder = begin.folder / "comet"
        online = node.mode == "online" or node.mode == "auto" and comet_key()
        why = "no key found" if node.mode == "auto" else "mode offline"
        if online and not reachable(comet_server(), CONNECT):
            online, why = False, f"{comet_server()} cannot be reached"

        def init(online: bool) -> Any:
            folder.mkdir(parents=True, exist_ok=True)
            config = comet_ml.ExperimentConfig(
                log_code=False, log_graph=False, auto_param_logging=False, auto_metric_logging=False, auto_output_logging=False,
                parse_args=False, log_git_metadata=False, log_git_patch=False, display_summary_level=0,
                offline_directory=str(folder))
            return comet_ml.start(workspace=node.workspace, project=node.project, experiment_key=begin.key, mode="get_or_create",
                                  online=online, experiment_config=config)

        if online:
            try:
                self.run = init(True)
                online = self.run.alive  # it does not always raise when it cannot go on
            except Exception as e:
                online, refused = False, f": {one_line(e)[:120]}"
            else:
                refused = ""
            why = why if online else f"the server refuses the key or does not answer{refused}"
        if not online:
            for old in folder.glob(f"{begin.key}*.zip"):  # an earlier attempt holds nothing that this one will not
                old.unlink()
            self.run = init(False)
        self.online, self.id = online, begin.key
        self.where, self.later = self.run.url or "" if online else str(folder), f"comet upload {folder}/*.zip"
        if not online:
            say(f"Comet: {why}, so the run is recorded offline in {folder} (upload it later: {self.later})")
        self.run.set_name(begin.name)
        group = node.group or begin.group
        self.run.add_tags([*begin.tags, *node.tags, *([group] if group else [])])
        self.run.log_others({"kind": begin.kind, **({"group": group} if group else {})})
        self.run.log_parameters(without_secrets(begin.config), nested_support=True)

    def log(self, values: dict[str, Any], step: int) -> None:
        self.run.log_metrics(values, step=step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.run.log_table(f"{name}.csv", tabular_data=rows, headers=columns)

    def image(self, name: str, png: bytes, caption: str) -> None:
        from PIL import Image

        self.run.log_image(Image.open(io.BytesIO(png)), name=f"{name}.png", annotations=None)

    def summary(self, values: dict[str, Any]) -> None:
        """Final scores are metrics too, so that Comet can sort and plot runs by them."""
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        self.run.log_metrics(numbers)
        self.run.log_others({k: v for k, v in values.items() if k not in numbers})

    def package(self, package: Package) -> None:
        """A Comet artifact where there is a server; offline, which has none, assets of the experiment."""
        if not self.online:
            for name, content in package.files.items():
                shown = f"{package.kind}/{package.name}/{name}"
                self.run.log_asset(str(content) if isinstance(content, Path) else io.StringIO(content), file_name=shown)
            return
        made = self.comet_ml.Artifact(package.name, artifact_type=package.kind, metadata=dict(package.metadata))
        for name, content in package.files.items():
            made.add(str(content) if isinstance(content, Path) else io.StringIO(content), logical_path=name)
        logged = self.run.log_artifact(made)
        if package.used:  # reading it makes it an input in Comet's lineage
            self.run.get_artifact(logged.name, version_or_alias=str(logged.version))

    def finish(self, failed: bool) -> None:
        self.run.log_other("failed", failed)
        self.run.end()
