"""The case study: the same prompts before and after training, side by side, with the language of each answer.

Source: SDRRL, section 4.6, appendix D and table 13; x-LLM, table 3 (the same prompt in the source language too).
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, XalignError, within
from xalign.data.examples import read_jsonl, write_jsonl
from xalign.studies.answers import changed, cut
from xalign.studies.base import Findings, Study, exported
from xalign.studies.cases_view import FILE, answers_grid, languages_plot, rates_grid, sections_of, side_by_side, unique
from xalign.studies.prompts import Prompt, choose
from xalign.tables import markdown

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.data.prompts import Frame
    from xalign.report.runs import FinishedRun


@dataclass(frozen=True)
class CasesStudy(Study):
    """Answers of the untrained and of the trained model to the same prompts.

    Attributes:
        prompts: see `xalign.studies.prompts.choose`.
        with_source: the source language's prompts too.
        count: prompts of each language, 0 for all.
        max_new_tokens: longest answer.
    """

    name: ClassVar[str] = "cases"
    alone: ClassVar[bool] = True

    prompts: Any = "auto"
    with_source: bool = True
    count: int = within(6, low=0)
    max_new_tokens: int = within(64, low=1)

    def chosen(self, run: Run) -> list[Prompt]:
        """The prompts of a run."""
        return choose(self.prompts, run.lang, run.source if self.with_source else None, self.count)

    def check_run(self, run: Run) -> None:
        """Refuse an encoder, and prompts that cannot be read."""
        if run.backbone.kind != "causal":
            raise ConfigError(f"study=cases: backbone={run.choices.get('backbone')} is an encoder, which writes no answers; "
                              "choose a causal backbone (smollm2, hf)")
        self.chosen(run)

    def stages(self, run: Run, weights: Stage, model: Stage | None) -> dict[str, Stage]:
        """The judged answers of each model; the trained one is asked in the prompts around the input that its method trained it with."""
        prompts = self.chosen(run)
        stages = {"before": answered(run, self, prompts, weights, "untrained", None)}
        if model:
            stages["after"] = answered(run, self, prompts, model, "trained", run.method.frame(run))
        return stages

    def rows(self, run: Run, found: Mapping[str, Artifact]) -> list[dict[str, Any]]:
        """The off-target rate of each language's answers; after training with the paired test against before."""
        from xalign.metrics.offtarget import OffTarget

        metric, out = OffTarget(), []
        records = {when: list(read_jsonl(artifact.file(FILE))) for when, artifact in found.items()}
        for when, every in records.items():
            for lang in dict.fromkeys(r["lang"] for r in every):
                own = [r for r in every if r["lang"] == lang]
                row = {"task": self.name, "lang": lang, "metric": metric.name, **asdict(metric.aggregate([r["off_target"] for r in own])),
                       "when": when}
                if when == "after" and (test := changed([([r for r in records["before"] if r["lang"] == lang], own)])):
                    row |= {"diff": test.diff, "diff_se": None if math.isnan(test.se) else test.se, "p": test.p_randomisation,
                            "pairs": test.n, "detectable": test.detectable()}
                out.append(row)
        return out

    def findings(self, runs: Sequence[FinishedRun]) -> Findings:
        """Rates, answers one under the other (printed) and side by side (cases.md), and a picture of their languages."""
        from xalign.report.repeat import repeat_command

        there = [r for r in runs if any((path / FILE).is_file() for path in exported(r, self.name).values())]
        lacking = [r for r in runs if r not in there]
        causal = [r for r in lacking if "backbone.head" not in r.config]  # encoders have one, and write nothing
        how = next(filter(None, map(repeat_command, causal)), "")
        how = f"; {'make them with' if len(causal) == 1 else 'e.g.'}: {how} study=cases" if how else "; add study=cases to a run's command"
        if not there:
            raise XalignError(f"no run has answers to the prompts of a case study{how}")
        notes = [f"left out, without answers: {cut(', '.join(r.name for r in lacking), 200)}{how if causal else ''}"]
        sections = sections_of(there)
        beside = [grid for section in sections for grid in side_by_side(section)]
        return Findings([rates_grid(sections, notes if lacking else []), *(answers_grid(s) for s in sections)], [languages_plot(sections)],
                        {"cases.md": "# The same prompts before and after training\n\n" + markdown(beside)})


def answered(run: Run, study: CasesStudy, prompts: Sequence[Prompt], model: Stage, when: str, frame: Frame | None) -> Stage:
    """``cases.jsonl``: {id, lang, prompt, answer, tokens, limit, detected, off_target} of each prompt, in the prompts' order.

    Its first input writes the answers, one by one, and continues where it was killed.

    Args:
        frame: the prompts around the input that `model` was trained with; None: the input alone.
    """
    from xalign.metrics.offtarget import OffTarget, judged_language

    backbone, limit = run.backbone, study.max_new_tokens
    asked = [{"id": p.id, "lang": p.lang, "prompt": p.text} for p in prompts]

    def answer(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
        from xalign.progress import bar
        from xalign.tasks.base import Journal
        from xalign.tasks.evaluate import opened

        journal = Journal(folder / "answers.jsonl")
        todo = [p for p in prompts if unique(p.lang, p.id) not in journal.done]
        if todo:
            backbone_ = opened(inputs[0].path, backbone)
            texts = [frame("instruction", p.lang, p.text) if frame else p.text for p in todo]
            check_room(backbone_, todo, texts, limit)
            with bar(total=len(todo), desc=f"answers, {when} model", unit="answer") as progress:
                def each(i: int, text: str) -> None:
                    tokens = len(backbone_.tokenizer(text, add_special_tokens=False).input_ids)
                    journal.add([{"id": unique(todo[i].lang, todo[i].id), "answer": text, "tokens": tokens}])
                    progress.update()

                backbone_.generate(texts, limit, each=each)
        return {"answers": len(journal.done), "tokens": sum(r["tokens"] for r in journal.done.values())}

    def judge(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
        said = {r.pop("id"): r for r in read_jsonl(inputs[0].file("answers.jsonl"))}
        records = [{**a, **said[unique(a["lang"], a["id"])], "limit": limit} for a in asked]
        for r in records:
            r["off_target"], r["detected"] = judged_language(r["answer"], r["lang"])
        write_jsonl(folder / FILE, records)
        return {"answers": len(records), "off target": sum(r["off_target"] or 0 for r in records)}

    params = {"prompts": asked, "max_new_tokens": limit, "backbone": backbone.params(), **({"frame": frame.params()} if frame else {})}
    seconds = 3 + 0.02 * limit * len(prompts)
    answers = Stage("case_answers", 1, params, answer, (model,), seconds, f"answers of the cases, {when} model", resumable=True)
    return Stage("cases", 1, {"prompts": asked, "judged": OffTarget().signature, "limit": limit}, judge, (answers,), 1,
                 f"languages of the cases, {when} model")


def check_room(backbone: Any, prompts: Sequence[Prompt], texts: Sequence[str], limit: int) -> None:
    """Raise XalignError for a prompt that the model cannot read as a whole beside an answer of `limit` tokens."""
    for prompt, ids in zip(prompts, backbone.encode_prompts(texts), strict=True):
        if len(ids) > backbone.max_length - limit:
            raise XalignError(f"{prompt.where}: id={prompt.id}: has {len(ids):,} tokens with the template, and the model reads "
                              f"{backbone.max_length:,}, answer of study.max_new_tokens={limit} included; shorten it, lower "
                              "study.max_new_tokens, or raise backbone.max_length where the model can read more")
