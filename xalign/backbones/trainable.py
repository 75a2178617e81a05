"""What every kind of backbone gives the trainer and its saved folder."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xalign.data.examples import Example
from xalign.data.packing import Row


class Trainable:
    """Base of the backbones.

    Attributes:
        model: the module that the trainer trains.
    """

    model: Any

    def attach(self, name: str, module: Any) -> None:
        """Train `module` along, as ``model.<name>``; `save` leaves it out."""
        self.model.add_module(name, module)
        self._attached = [*getattr(self, "_attached", []), name]

    def detach(self) -> None:
        """Take off what was attached."""
        for name in getattr(self, "_attached", []):
            delattr(self.model, name)
        self._attached = []

    def row(self, example: Example, prompt: str | None = None, options: Sequence[str] = ()) -> Row:
        """`example` tokenised; with another prompt and options if they are given."""
        raise NotImplementedError

    def paired_row(self, example: Example) -> Row | None:
        """`row`, with the row of the pivot as its twin; None if the answer's tokens differ between the two."""
        from dataclasses import replace

        row = self.row(example)
        if not example.pivot:
            return row
        twin = self.row(example, example.pivot, example.pivot_options)
        if (row.gold, row.ids[row.n_prompt:] if not row.parts else ()) != (twin.gold, twin.ids[twin.n_prompt:] if not twin.parts else ()):
            return None
        return replace(row, twin=twin)


def name_tokenizer(folder: Path) -> None:
    """Name the saved tokenizer's class as transformers 4.57 and 5 both know it."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":  # transformers 5's name, unknown to 4.57
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
