"""Finished runs as reports see them: rows, configuration, facts and, where they are there, costs and training log. No torch."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from xalign.analysis.systems import ModelScores, find_runs
from xalign.data.examples import read_jsonl
from xalign.rows import Row, flat_config, read_rows
from xalign.runfiles import read_facts


@dataclass(frozen=True)
class FinishedRun:
    """One finished run.

    Attributes:
        rows: the scores, as rows.jsonl has them.
        config: config.yaml as dotted keys; empty for a run without it.
        facts: run.json.
    """

    folder: Path
    rows: tuple[Row, ...] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    facts: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        return self.rows[0]["run"]

    @property
    def method(self) -> str:
        """``none`` for a run of mode=evaluate."""
        return self.rows[0]["method"]

    @property
    def source(self) -> str:
        return self.rows[0]["source"]

    @property
    def backbone(self) -> str:
        """The backbone's choice, e.g. ``smollm2``; of ``hf``, the model is in ``config["backbone.name"]``."""
        return self.rows[0]["backbone"]

    @property
    def seed(self) -> int:
        return self.rows[0]["seed"]

    @cached_property
    def trained(self) -> bool:
        return any(r["when"] == "after" for r in self.rows)

    @property
    def langs(self) -> tuple[str, ...]:
        """The target languages; of an evaluated model, all its languages."""
        return self.model("after" if self.trained else "before").langs

    def model(self, when: str) -> ModelScores:
        """The model ``before`` or ``after`` training, with its per-example scores."""
        models: dict[str, ModelScores] = self.__dict__.setdefault("_models", {})
        return models.setdefault(when, ModelScores(self.folder, when, self.rows, self.config))

    @cached_property
    def cost(self) -> list[dict[str, Any]]:
        """cost.jsonl, one row a stage; empty where a run has none."""
        return _records(self.folder / "cost.jsonl")

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """log.jsonl, the course of the training; empty where a run has none."""
        return _records(self.folder / "log.jsonl")


# as the papers' tables have them: what was only evaluated, baselines, the rest
ORDER = ("none", "sft", "t_sft", "cit", "xcot", "coit", "muit", "cpt", "sdrrl", "ml_dft", "rl_ia", "pl_bl", "ml_ipd")


def _records(path: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(path)) if path.is_file() else []


def load_runs(paths: Sequence[str | Path]) -> list[FinishedRun]:
    """The finished runs among `paths`: run folders, folders that hold runs at any depth, or patterns; each once, by method and
    folder.

    Raises:
        XalignError: for a named folder that is no finished run and holds none, a pattern without a match, a file that was changed or
            cannot be read.
    """
    runs = []
    for folder in sorted(find_runs([str(p) for p in paths])):
        runs.append(FinishedRun(folder, tuple(read_rows(folder)), flat_config(folder), read_facts(folder)))
    return sorted(runs, key=lambda r: ORDER.index(r.method) if r.method in ORDER else len(ORDER))
