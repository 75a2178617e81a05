"""Instruction data in Alpaca's format: records with ``instruction``, ``input`` and ``output``."""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from xalign.cache import Artifact, Stage, file_sha256
from xalign.config import ConfigError, Node, Run, XalignError, within
from xalign.data.examples import Example, write_jsonl


@dataclass(frozen=True)
class AlpacaData(Node):
    """A JSON array or JSON lines of Alpaca records in the source language; records with an empty output are left out."""

    multilingual: ClassVar[bool] = False
    has_options: ClassVar[bool] = False

    path: str = ""
    limit: int = within(0, 0)

    def check_run(self, run: Run) -> None:
        """Raise ConfigError unless the file is there."""
        if not self.path:
            raise ConfigError("data.path: names no file; give the Alpaca file as data.path=FILE")
        if not Path(self.path).expanduser().is_file():
            raise ConfigError(f"data.path={self.path}: there is no such file")

    def questions_stage(self, run: Run, lang: str) -> Stage:
        """``examples.jsonl``: instruction and input as the prompt, output as the response; `lang` must be the source language."""
        if lang != run.source:
            raise ConfigError(f"data.path={self.path}: is in the source language ({run.source}); "
                              f"there are no questions in {lang}")
        path = Path(self.path).expanduser()

        def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
            rows = [e for e in read_alpaca(path, lang) if e.response]
            chosen = rows[: self.limit or None]
            write_jsonl(folder / "examples.jsonl", chosen)
            return {"examples": len(chosen), "records": len(rows)}

        params = {"data": "alpaca", "sha256": file_sha256(path), "lang": lang, "limit": self.limit}
        return Stage("questions", 1, params, work, seconds=2, label=f"read {path.name}")


def read_alpaca(path: Path, lang: str) -> Iterator[Example]:
    """Examples of an Alpaca file (JSON array or JSON lines, with or without a byte order mark).

    Raises:
        XalignError: for the first malformed line or record, naming the file and its number.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise XalignError(f"{path}: not UTF-8 ({e.reason} at byte {e.start}); convert the file to UTF-8") from None
    records: list[tuple[str, Any]]
    if text.lstrip().startswith("["):
        try:
            records = [(f"{path}: record {i}", r) for i, r in enumerate(json.loads(text), 1)]
        except json.JSONDecodeError as e:
            raise XalignError(f"{path}:{e.lineno}: not valid JSON ({e.msg} at column {e.colno})") from None
    else:
        records = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    records.append((f"{path}:{number}", json.loads(line)))
                except json.JSONDecodeError as e:
                    raise XalignError(f"{path}:{number}: not valid JSON ({e.msg} at column {e.colno})") from None
    if not records:
        raise XalignError(f"{path}: holds no records; expected a JSON array or JSON lines of instruction, input, output")
    for number, (where, record) in enumerate(records, 1):
        if not isinstance(record, dict):
            raise XalignError(f"{where}: expected an object with instruction, input and output, found {type(record).__name__}")
        for key in ("instruction", "input", "output"):
            if key not in record and key != "input":
                raise XalignError(f"{where}: has no '{key}'; Alpaca records have instruction, input and output")
            if not isinstance(record.get(key, ""), str):
                raise XalignError(f"{where}: '{key}' must be text, found {type(record[key]).__name__}")
        if not record["instruction"].strip():
            raise XalignError(f"{where}: 'instruction' is empty")
        prompt = "\n".join(part for part in (record["instruction"].strip(), record.get("input", "").strip()) if part)
        code = f"alpaca/{number:06d}"
        yield Example(code, lang, prompt, record["output"].strip(), source="alpaca", group=code)
