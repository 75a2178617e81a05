"""Instruction data in Alpaca's format: records with ``instruction``, ``input`` and ``output``."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, Node, Run, XalignError, within
from xalign.data.examples import Example, write_jsonl
from xalign.data.reading import check_file, kind_of, parse_json, split_lines, text_of_file, unchanged
from xalign.digests import file_sha256


@dataclass(frozen=True)
class AlpacaData(Node):
    """A JSON array or JSON lines of Alpaca records in the source language; records with an empty output are left out."""

    multilingual: ClassVar[bool] = False
    has_options: ClassVar[bool] = False

    path: str = ""
    limit: int = within(0, 0)

    def check_run(self, run: Run) -> None:
        """Raise ConfigError unless the file is there, XalignError for its first unusable record."""
        if not self.path:
            raise ConfigError("data.path: names no file; give the Alpaca file as data.path=FILE")
        self._rows(check_file("data.path", self.path, "give the Alpaca file as data.path=FILE"), run.source)

    def _rows(self, path: Path, lang: str) -> list[Example]:
        """The records with an output."""
        rows = [e for e in read_alpaca(path, lang) if e.response]
        if not rows:
            raise XalignError(f"{path}: no record has an output to learn; fill 'output'")
        return rows

    def questions_stage(self, run: Run, lang: str) -> Stage:
        """``examples.jsonl``: instruction and input as the prompt, output as the response; `lang` must be the source language."""
        if lang != run.source:
            raise ConfigError(f"data.path={self.path}: is in the source language ({run.source}); "
                              f"there are no questions in {lang}")
        path = Path(self.path).expanduser()

        def work(folder: Path, inputs: list[Artifact]) -> Mapping[str, Any]:
            rows = self._rows(path, lang)
            unchanged([(path, params["sha256"])])
            chosen = rows[: self.limit or None]
            write_jsonl(folder / "examples.jsonl", chosen)
            return {"examples": len(chosen), "records": len(rows)}

        params: dict[str, Any] = {"data": "alpaca", "sha256": file_sha256(path), "lang": lang, "limit": self.limit}
        return Stage("questions", 1, params, work, seconds=2, label=f"read {path.name}")


def read_alpaca(path: Path, lang: str) -> Iterator[Example]:
    """Examples of an Alpaca file (JSON array or JSON lines, with or without a byte order mark).

    Raises:
        XalignError: for the first malformed line or record, naming the file and its number.
    """
    text, shape = text_of_file(path), "write one JSON object a line, or one JSON array of them, with instruction, input and output"
    records: list[tuple[str, Any]]
    if text.lstrip().startswith("["):
        found = parse_json(text, lambda n: f"{path}:{n}" if n else str(path), shape)
        records = [(f"{path}: record {i}", r) for i, r in enumerate(found, 1)]
    else:
        records = [(where, parse_json(line, lambda _, where=where: where, shape)) for n, line in split_lines(text) if line.strip()
                   for where in (f"{path}:{n}",)]
    if not records:
        raise XalignError(f"{path}: holds no records; {shape}")
    for number, (where, record) in enumerate(records, 1):
        if not isinstance(record, dict):
            raise XalignError(f"{where}: expected an object with instruction, input and output, found {kind_of(record)}; {shape}")
        for key in ("instruction", "input", "output"):
            if key not in record and key != "input":
                raise XalignError(f"{where}: has no '{key}'; Alpaca records have instruction, input and output")
            if not isinstance(record.get(key, ""), str):
                raise XalignError(f"{where}: '{key}' must be text, found {kind_of(record[key])}; write it in quotes, \"\" for none")
        if not record["instruction"].strip():
            raise XalignError(f"{where}: 'instruction' is empty; write what is asked, or remove the record")
        prompt = "\n".join(part for part in (record["instruction"].strip(), record.get("input", "").strip()) if part)
        code = f"alpaca/{number:06d}"
        yield Example(code, lang, prompt, record["output"].strip(), source="alpaca", group=code)
