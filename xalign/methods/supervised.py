"""Supervised baselines (SDRRL section 3.1): masked cross-entropy, different data."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import XalignError
from xalign.data.examples import Example, read_examples, read_jsonl, write_jsonl
from xalign.methods.base import Method

if TYPE_CHECKING:
    from xalign.config import Run


@dataclass(frozen=True)
class SFT(Method):
    """Fine-tuning on the source language's instruction data only (equation 2); of an encoder, on its choices."""

    name: ClassVar[str] = "sft"
    effort: ClassVar[float] = 0.5
    kinds: ClassVar[tuple[str, ...]] = ("causal", "encoder")

    def rows(self, run: Run) -> Stage:
        """D, as it is: independent of the target language."""
        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            return write_rows(folder, labelled(read_examples(inputs[0].file("examples.jsonl")), "D"), required=("D",))

        return Stage("rows", 1, {"method": "sft"}, work, inputs=(run.data.questions_stage(run, run.source),), label="rows sft")


@dataclass(frozen=True)
class TSFT(Method):
    """Translate, then fine-tune on D and its translation (equation 3; keeping D is our resolution)."""

    name: ClassVar[str] = "t_sft"
    effort: ClassVar[float] = 0.7
    translates: ClassVar[bool] = True

    def rows(self, run: Run) -> Stage:
        """D and (T(x), T(y)) where both sides were translated and kept by the filters."""
        questions = run.data.questions_stage(run, run.source)
        translated = filtered(run, questions)
        source, target = run.source, run.target

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            examples = read_examples(inputs[0].file("examples.jsonl"))
            records = list(read_jsonl(inputs[1].file("examples.jsonl")))
            rows = labelled(examples, "D") + translated_rows(examples, records, target)
            return write_rows(folder, rows, {"not translated": failures(records)}, required=("D", "T"))

        return Stage("rows", 1, {"method": "t_sft", "source": source, "target": target}, work, inputs=(questions, translated),
                     label=f"rows t_sft {source}→{target}")


def filtered(run: Run, examples: Stage, sides: Sequence[str] = ("prompt", "response"), lang: str = "") -> Stage:
    """`examples` translated into `lang` (default: the one target) and filtered; shared by all methods that ask for the same."""
    lang = lang or run.target
    return run.filter.stage(run, examples, run.translator.stage(run, examples, lang, sides), lang)


def labelled(examples: Iterable[Example], subset: str) -> list[Example]:
    """The examples as rows of `subset`, each row's entity its group."""
    return [e.with_(id=f"{e.id}/{subset}", subset=subset, group=e.group or e.id) for e in examples]


def translated_rows(examples: Sequence[Example], records: Sequence[Mapping[str, Any]], target: str) -> list[Example]:
    """(T(x), T(y)) of every example of which both sides are there, as subset ``T``."""
    return [e.with_(id=f"{e.id}/T", subset="T", group=e.group or e.id, lang=target, prompt=r["prompt"], response=r["response"])
            for e, r in zip(examples, records, strict=True) if r["prompt"] is not None and r["response"] is not None]


def failures(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many sides are missing, by side and reason."""
    return dict(Counter(f"{side}: {reason}" for r in records for side, reason in r["failed"].items()))


def write_rows(folder: Path, rows: Sequence[Example], facts: Mapping[str, Any] | None = None, shown: Sequence[str] = (),
               required: Sequence[str] = ()) -> dict[str, Any]:
    """Write ``rows.jsonl`` and return its facts.

    Args:
        facts: further facts, kept as they are; ``not translated`` explains an empty subset.
        shown: subsets that are counted even when they are empty.
        required: subsets that must not be empty.
    Returns:
        Rows in all, rows by subset, answer characters by subset, and `facts`.
    Raises:
        XalignError: if there is no row at all, or none in a required subset.
    """
    facts = dict(facts or {})
    subsets, characters = Counter[str](), Counter[str]()
    for row in rows:
        subsets[row.subset] += 1
        characters[row.subset] += len(row.response)
    if empty := [s for s in required if not subsets[s]]:
        why = ", ".join(f"{n} x {reason}" for reason, n in sorted(facts.get("not translated", {}).items(), key=lambda kv: -kv[1]))
        raise XalignError(f"training rows: subset {', '.join(empty)} is empty ({why or 'no data'}); use another translator, "
                          "loosen filter.*, give more data, or leave the subset out")
    if not rows:
        raise XalignError("training rows: there are none; give more data")
    write_jsonl(folder / "rows.jsonl", rows)
    order = list(dict.fromkeys([*shown, *subsets]))
    return {"rows": len(rows), "subsets": {s: subsets[s] for s in order},
            "answer characters": {s: characters[s] for s in order}, **facts}
