"""Benchmarks that are read from their official release files: from a folder, or written from the hub's rows."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, XalignError, within
from xalign.data.reading import MISSING, kind_of, trouble, unchanged
from xalign.digests import file_sha256
from xalign.languages import LANGUAGES
from xalign.tasks.base import Evaluation, Task

if TYPE_CHECKING:
    from xalign.config import Run


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as they are, one JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@dataclass(frozen=True)
class HubFile:
    """One official file, made from the hub's rows.

    Attributes:
        path: of the official file, relative to the benchmark's folder.
        repo, config, split: of the hub's data set; `repo` may be a local folder in the hub's layout.
        write: the hub's rows → the official file's text.
    """

    path: str
    repo: str
    config: str | None
    split: str
    write: Callable[[Iterable[Mapping[str, Any]]], str] = json_lines


@dataclass(frozen=True)
class FileTask(Task):
    """Where the files are and how much of them is asked.

    Class attributes:
        origin: where the official files are published, for the message.
    """

    origin: ClassVar[str] = ""

    path: str = ""
    revision: str = "main"
    limit: int = within(0, low=0)
    shots: int = within(0, low=0, high=32)

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        """Role → official file, relative to the benchmark's folder: ``test`` and whatever else is read for `lang`.

        Several names are those of different releases: the first that is there counts.
        """
        raise NotImplementedError

    def paths(self, folder: Path, lang: str, source: str) -> dict[str, Path]:
        """Role → file in `folder`; of several names, the first that is there, else the first."""
        out = {}
        for role, names in self.files(lang, source).items():
            every = [folder / name for name in ((names,) if isinstance(names, str) else names)]
            out[role] = next((p for p in every if trouble(p) != MISSING), every[0])
        return out

    def hub(self, lang: str, source: str) -> list[HubFile]:
        """How to make these files from the hub; empty: the hub does not have them in a form that can be read without code."""
        return []

    def load(self, folder: Path, lang: str, source: str) -> Any:
        """Everything of `lang`, read and checked.

        Raises:
            XalignError: for the first unusable line, naming file and line.
        """
        raise NotImplementedError

    @property
    def asked(self) -> str:
        """Which of several prompts the questions are put in, for the signature; empty: there is one."""
        return ""

    def root(self) -> Path:
        """The folder with the official files: ``path``, or the folder in it that has the task's name."""
        path = Path(self.path).expanduser()
        return path / self.name if (path / self.name).is_dir() else path

    def lacks(self, run: Run, lang: str) -> str:
        """Why `lang` cannot be evaluated: not in the benchmark, no file, not on the hub."""
        missing = [p.relative_to(self.root()) for p in self.paths(self.root(), lang, run.source).values()
                   if trouble(p) == MISSING] if self.path else []
        if self.path and not missing:
            return ""
        if self.languages and lang not in self.languages:
            return f"task.{self.name}: {self.title} has no {LANGUAGES[lang].name} ({lang}); it has {' '.join(self.languages)}"
        if missing:
            return f"task.{self.name}.path={self.path}: has no {missing[0]} for {lang}; put {self.title}'s official file there"
        if self.hub(lang, run.source):
            return ""
        return (f"task.{self.name}.path: is empty, and {self.title} is not on the hub in a form that can be read; name the folder with its "
                "official files" + (f" ({self.origin})" if self.origin else ""))

    def check_run(self, run: Run) -> None:
        """Raise for a missing folder or an unusable line, before anything is computed."""
        if self.path and not Path(self.path).expanduser().is_dir():
            raise ConfigError(f"task.{self.name}.path={self.path}: no such folder; name the one with {self.title}'s official files")
        super().check_run(run)
        for lang in run.evaluated if self.path else ():
            if not self.lacks(run, lang):
                self.load(self.root(), lang, run.source)

    def recipe(self, run: Run, lang: str) -> dict[str, Any]:
        own = {k: v for k, v in asdict(self).items() if k not in ("path", "revision", "scores")}
        return {"name": self.name, "source": run.source, **own, "files": self._digests(run, lang)}

    def _digests(self, run: Run, lang: str) -> dict[str, str] | None:
        """Digest of each file that is here; the hub's are in their own stage's key."""
        if not self.path:
            return None
        return {role: file_sha256(path) for role, path in self.paths(self.root(), lang, run.source).items()}

    def loaded(self, ev: Evaluation) -> Any:
        """What `load` reads while a stage runs; XalignError if a file is not the one that was planned with."""
        folder = self.root() if self.path else ev.inputs[0].path
        found = self.load(folder, ev.lang, ev.source)
        digests = ev.recipe.get("files") or {}
        unchanged((path, digests[role]) for role, path in self.paths(folder, ev.lang, ev.source).items() if role in digests)
        return found

    def inputs(self, run: Run, lang: str) -> tuple[Stage, ...]:
        if self.path:
            return ()
        files, revision = self.hub(lang, run.source), self.revision
        params = {"files": [[f.path, f.repo, f.config, f.split] for f in files], "revision": revision}

        def work(folder: Path, found: list[Artifact]) -> dict[str, Any]:
            return {f.path: fetch(f, revision, folder / f.path) for f in files}

        return (Stage("task_files", 1, params, work, seconds=20, label=f"{self.title} {lang} from the hub"),)


def fetch(file: HubFile, revision: str, target: Path) -> dict[str, Any]:
    """Write one official file from the hub's rows; returns how many there were and the commit they are of.

    Raises:
        XalignError: when the hub cannot be reached or has no such data.
    """
    from datasets import load_dataset

    where = f"{file.repo}{f' ({file.config})' if file.config else ''}"
    local = Path(file.repo).is_dir()

    def commit_of(name: str) -> str | None:  # asked first: a branch may move while the rows come
        from huggingface_hub import HfApi

        return None if local else HfApi().dataset_info(file.repo, revision=name).sha

    try:
        commit = commit_of(revision)
        try:
            rows = load_dataset(file.repo, file.config, split=file.split, **({"revision": commit} if commit else {}))
        except RuntimeError as e:
            if local or "scripts" not in str(e):
                raise
            commit = commit_of("refs/convert/parquet")  # the hub's own conversion of what only the repository's code can read
            rows = load_dataset(file.repo, data_dir=file.config, split=file.split, revision=commit)
    except Exception as e:  # a dozen libraries' errors: no network, no such repository, gated, script refused
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise XalignError(f"{where}: {file.split} could not be read from the hub ({reason}); put the official file in a folder and name it "
                          "in task.path") from None
    try:
        text = file.write(rows)
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise XalignError(f"{where}: {file.split} is not as the benchmark's rows are ({type(e).__name__}: {e}); put the official file in a "
                          "folder and name it in task.path") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8", newline="\n")
    return {"rows": len(rows), "commit": commit}


def cluster_of(text: str) -> str:
    """A short label that questions on the same text share."""
    return sha256(text.encode()).hexdigest()[:12]


def text_of(row: Mapping[str, Any], key: str, where: str, title: str) -> str:
    """A text of a record, without outer spaces; XalignError at `where` if it is none or empty."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise XalignError(f"{where}: '{key}' must be text, found {kind_of(value)}; use {title}'s official file")
    if not value or not value.strip():
        raise XalignError(f"{where}: '{key}' is missing or empty; use {title}'s official file")
    return value.strip()
