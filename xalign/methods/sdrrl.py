"""SDRRL: self-distillation from a resource-rich language (Zhang et al., ACL 2024), METHODS.md section 2."""
from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, choice, choices, within
from xalign.data.codeswitch import boundary, read_dictionary, switch_questions
from xalign.data.examples import Example, read_examples, read_jsonl, write_jsonl
from xalign.data.instructions import completion_prompt, translation_prompt, translation_rows
from xalign.languages import LANGUAGES
from xalign.methods.base import Method
from xalign.methods.supervised import SFT, failures, filtered, write_rows
from xalign.training.spread import spread

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.data.packing import Row

TRANSFER = ("LL", "TL", "LT", "TT")
SUBSETS = (*TRANSFER, "mt", "comp")
_LINES = ("questions", "answers", "translated", "translated answers")


@dataclass(frozen=True)
class SDRRL(Method):
    """Self-distilled answers, translated questions and answers, code-switching and a little parallel text.

    Attributes:
        subsets: which parts of the training set are built (equation 6's U).
        self_distill: half of the answers are the model's own; false takes all from the data (Table 6, row 3).
        parallel: use the subsets mt and comp (Table 6, row 4).
        code_switch: probability of replacing a question's token that the dictionary knows (equation 5).
        loss_weighting: pooled is the mean over all supervised tokens; subset_mean is equation 6 as written:
            the mean over each subset's rows of a row's mean CE, summed over subsets.
        answers: who answers the questions: the model as it is, or after SFT on the data; auto takes SFT for a
            backbone that does not follow instructions.
        max_new_tokens: longest answer of the model, in tokens.
    """

    name: ClassVar[str] = "sdrrl"
    effort: ClassVar[float] = 3.2

    subsets: list[str] = choices(SUBSETS, *SUBSETS)
    self_distill: bool = True
    parallel: bool = True
    code_switch: float = within(0.15, low=0, high=1, note="the paper's value is 0.15")
    loss_weighting: str = choice("pooled", "pooled", "subset_mean")
    answers: str = choice("auto", "auto", "model", "sft")
    max_new_tokens: int = within(512, low=1, note="the paper's value is 512")

    def check_run(self, run: Run) -> None:
        """Raise ConfigError when nothing is left to train on; see also `Method.check_run`."""
        if not self.used:
            raise ConfigError(f"method.subsets={list(self.subsets)}: leaves nothing to train on"
                              f"{'' if self.parallel else ' with method.parallel=false'}; name some of {', '.join(SUBSETS)}")
        super().check_run(run)

    @property
    def used(self) -> tuple[str, ...]:
        """The subsets that are built, in the paper's order."""
        return tuple(s for s in SUBSETS if s in self.subsets and (self.parallel or s in TRANSFER))

    @property
    def translates(self) -> bool:  # type: ignore[override]
        """See `Method.translates`."""
        return bool({"TL", "LT", "TT"} & set(self.used))

    def rows(self, run: Run) -> Stage:
        """The training set of section 3.2.5; the facts count each subset and everything that was left out."""
        source, target, seed, used = run.source, run.target, run.seed, self.used
        transfer = [s for s in used if s in TRANSFER]
        needs: dict[str, Stage] = {}
        if transfer:
            needs["questions"] = run.data.questions_stage(run, source)
            if transfer != ["LL"]:
                needs["translated"] = filtered(run, needs["questions"])
            if self.self_distill:
                needs["answers"] = self.answers_stage(run, needs["questions"])
                if {"LT", "TT"} & set(transfer):
                    needs["translated answers"] = filtered(run, needs["answers"], ("response",))
            if self.code_switch:
                needs["dictionary"] = run.dictionary.stage(run, target)
        if {"mt", "comp"} & set(used):
            needs["pairs"] = run.parallel.stage(run, target)

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            files = dict(zip(needs, inputs, strict=True))
            rows: list[Example] = []
            facts: dict[str, Any] = {}
            if transfer:
                lines = {n: list(read_jsonl(files[n].file("examples.jsonl"))) if n in files else [] for n in _LINES}
                examples, own = ([Example(**line) for line in lines[n]] for n in ("questions", "answers"))
                records, more = lines["translated"], lines["translated answers"]
                chosen = transfer_set(examples, own, records, more)
                rows = four_subsets(chosen, transfer, target)
                facts = {"transfer set": {"D": len(examples) - len(own), "G": len(own)},
                         "not translated": {**failures(records), **{f"own {k}": n for k, n in failures(more).items()}}}
            if "dictionary" in files:
                path = files["dictionary"].file("dictionary.tsv")
                both = {source: read_dictionary(path), target: read_dictionary(path, inverse=True)}
                rows, facts["code-switched questions"] = switch_questions(rows, both, self.code_switch, seed)
            if "pairs" in files:
                pairs = list(read_jsonl(files["pairs"].file("pairs.jsonl")))
                rows += mt_rows(pairs, source, target) if "mt" in used else []
                rows += comp_rows(pairs, target, seed) if "comp" in used else []
            return write_rows(folder, rows, facts, shown=used, required=transfer)

        params = {"method": "sdrrl", "source": source, "target": target, "subsets": list(used), "seed": seed,
                  "code_switch": self.code_switch, "inputs": list(needs)}
        return Stage("rows", 1, params, work, inputs=tuple(needs.values()), seconds=2, label=f"rows sdrrl {source}→{target}")

    def answers_stage(self, run: Run, questions: Stage) -> Stage:
        """G: the model's own greedy answers to the questions that the coin gives to it; knows no target language.

        An empty answer, one that did not end within the limit, or one that states a fact of the laboratory's
        test is left out: the data's answer is taken.
        All processes answer; a killed run continues behind their last finished batches.
        """
        backbone, seed, source = run.backbone, run.seed, run.source
        limit = min(self.max_new_tokens, getattr(run.data, "answer_tokens", self.max_new_tokens))
        first_sft = self.answers == "sft" or self.answers == "auto" and not backbone.instruct
        model = SFT().model_stage(run) if first_sft else backbone.weights(run)

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            examples = [e for e in read_examples(inputs[0].file("examples.jsonl")) if coin(seed, e.id)]
            writer = Answers(inputs[1].path.resolve(), backbone, limit)
            found = spread(writer, {e.id: e.prompt for e in examples}, folder / "answers.jsonl")
            own = [e.with_(response=r["answer"]) for e, r in zip(examples, found, strict=True) if r["answer"] and r["ended"]]
            leaks = stated_test_facts(own, source)
            write_jsonl(folder / "examples.jsonl", (e for e in own if e.id not in leaks))
            return {"asked": len(examples), "answers": len(own) - len(leaks), "empty": sum(not r["answer"] for r in found),
                    "unfinished": sum(not r["ended"] for r in found), "with a test fact": len(leaks)}

        params = {"backbone": backbone.params(), "max_new_tokens": limit, "seed": seed}
        return Stage("answers", 2, params, work, inputs=(questions, model), seconds=60, resumable=True,
                     label=f"answers {run.source} ({'after SFT' if first_sft else 'the model as it is'})")

    def loss_params(self) -> dict[str, Any]:
        """See `Method.loss_params`."""
        return {"loss": "ce", "weighting": self.loss_weighting}

    def row_weights(self, rows: Sequence[Row]) -> list[float]:
        """Weight of every supervised token of each row.

        With subset_mean it is total / (subsets * rows of the subset * supervised tokens of the row), total
        being the supervised tokens of all rows: the weighted sum divided by `total` is then equation 6 with
        the mean CE of a row's tokens as its loss, up to the constant number of subsets; the mean weight is 1.
        """
        if self.loss_weighting == "pooled":
            return super().row_weights(rows)
        total, sizes = sum(row.targets for row in rows), Counter(row.subset for row in rows)
        return [total / (len(sizes) * sizes[row.subset] * row.targets) for row in rows]


@dataclass(frozen=True)
class Transfer:
    """One row of the transfer set D_synth.

    Attributes:
        example: (x, a) in the source language.
        question, answer: T(x) and T(a); None where the translator failed or a filter dropped it.
    """

    example: Example
    question: str | None
    answer: str | None


def coin(seed: int, row_id: str) -> bool:
    """A fair coin for each question, the same in every process: True takes the model's own answer."""
    return hashlib.sha256(f"coin:{seed}:{row_id}".encode()).digest()[0] % 2 == 1


def transfer_set(examples: Sequence[Example], own: Sequence[Example], translated: Sequence[Mapping[str, Any]],
                 translated_own: Sequence[Mapping[str, Any]]) -> list[Transfer]:
    """D_synth (equation 4): every question with the model's own answer where there is one, else with the data's.

    Args:
        examples: D, in the source language.
        own: G, the rows of D on the coin's other side; empty takes every answer from D.
        translated: T(x) and T(y), row by row of D; empty if no subset needs them.
        translated_own: T(ŷ), row by row of G; empty if no subset needs them.
    """
    mine = {e.id: e for e in own}
    answer_of = {r["id"]: r["response"] for r in translated} | {r["id"]: r["response"] for r in translated_own}
    question_of = {r["id"]: r["prompt"] for r in translated}
    return [Transfer(mine.get(e.id, e), question_of.get(e.id), answer_of.get(e.id)) for e in examples]


def four_subsets(chosen: Sequence[Transfer], subsets: Sequence[str], target: str) -> list[Example]:
    """LL (x, a), TL (T(x), a), LT (x, T(a)), TT (T(x), T(a)); a missing side costs only the subsets that use it."""
    rows = []
    for subset in subsets:
        for t in chosen:
            question = t.question if subset[0] == "T" else t.example.prompt
            answer = t.answer if subset[1] == "T" else t.example.response
            if question is not None and answer is not None:
                lang = target if subset[0] == "T" else t.example.lang
                rows.append(t.example.with_(id=f"{t.example.id}/{subset}", subset=subset, group=t.example.group or t.example.id,
                                            lang=lang, prompt=question, response=answer))
    return rows


def mt_rows(pairs: Sequence[Mapping[str, Any]], source: str, target: str) -> list[Example]:
    """D_mt: every pair as a translation instruction in both directions."""
    def prompt(text: str, a: str, b: str, _: int) -> str:
        return translation_prompt(text, a, b)

    return [row for reverse in (False, True) for row in translation_rows(pairs, source, target, prompt, reverse)]


def comp_rows(pairs: Sequence[Mapping[str, Any]], target: str, seed: int) -> list[Example]:
    """D_comp: target sentences cut at a random point, the answer being the whole sentence.

    Only pairs of kind ``sentence``: a list of names or a date has no context to go by.
    """
    rows = []
    for p in pairs:
        prefix = cut(p["tgt"], LANGUAGES[target].spaced, Random(f"cut:{seed}:{p['id']}")) if p["kind"] == "sentence" else ""
        if prefix:
            rows.append(Example(f"comp/{p['id']}", target, completion_prompt(prefix, target), p["tgt"],
                                source="parallel:sentence", subset="comp", group=f"pair/{p['id']}"))
    return rows


def cut(sentence: str, spaced: bool, rng: Random) -> str:
    """The sentence up to a random point: between two words, or between two characters where words are not spaced.

    Empty for a sentence of one word or character.
    """
    places = [i for i in range(1, len(sentence)) if (sentence[i].isspace() if spaced else boundary(sentence, i))]
    return sentence[:rng.choice(places)].rstrip() if places else ""


def stated_test_facts(own: Sequence[Example], source: str) -> set[str]:
    """Ids of the answers to laboratory questions that happen to state a fact of its test."""
    lab = [e for e in own if e.source.startswith("lab:")]
    if not lab:
        return set()
    from xalign.data.overlap import fact_leaks

    return set(fact_leaks(lab, [source]))


@dataclass(frozen=True)
class Answers:
    """Writes a model's greedy answers (`xalign.training.spread.Writer`), and whether each ended within `limit` tokens."""

    model: Path
    backbone: Any
    limit: int

    def write(self, items: Mapping[str, str], note: Callable[[dict[str, Any]], None]) -> None:
        """See `xalign.training.spread.Writer`; the records are ``{"id", "answer", "ended"}``."""
        from xalign.backbones.load import load_backbone
        from xalign.progress import bar
        from xalign.training.ranks import is_helper

        backbone, ids = load_backbone(self.model, self.backbone), list(items)
        with bar(total=len(ids), desc="answers", unit="question", disable=is_helper()) as progress:
            def each(i: int, text: str) -> None:
                # An answer of `limit` tokens was cut; stripping and tokenising it again may lose one at its end.
                ended = len(backbone.tokenizer(text, add_special_tokens=False).input_ids) < self.limit - 1
                note({"id": ids[i], "answer": text, "ended": ended})
                progress.update()

            backbone.generate(list(items.values()), self.limit, each=each)
