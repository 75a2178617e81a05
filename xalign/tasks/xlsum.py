"""XL-Sum from its official files: a news article and the sentence or two that its editors put above it."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.config import within
from xalign.data.reading import numbered
from xalign.languages import LANGUAGES
from xalign.metrics.base import Metric
from xalign.tasks.base import Evaluation
from xalign.tasks.files import HubFile, text_of
from xalign.tasks.textfiles import TextItem
from xalign.tasks.worded import WordedTask
from xalign.tasks.wording import say

if TYPE_CHECKING:
    from xalign.backbones.causal import CausalBackbone

TEXTS = ("id", "summary", "text")
NAMES = {"zho": "chinese_simplified"}  # of the release where it is not our English name
# no end of a sentence: the point after one letter, after a number below 100 (in German and others a date), after a title
NO_END = r"(?<!\b\w)(?<!\b\d\d)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)"
END = re.compile(rf"(?:{NO_END}\.(?=[\s\"'”»)])|[!?؟…।។](?=[\s\"'”»)])|[。！？])[\"'”»)」』]*")
THAI_LEAD = 80  # characters: Thai parts phrases by spaces and marks no end of a sentence


@dataclass(frozen=True)
class XlSumTask(WordedTask):
    """XL-Sum, test; solved examples are of the release's val. Scored by ROUGE-1, -2 and -L of its own multilingual scorer.

    An article that does not fit the model's context is cut at its end, so that instruction and beginning stay.
    Source: Hasan et al. 2021, csebuetnlp/xl-sum, version 2.0.
    """

    name: ClassVar[str] = "xlsum"
    title: ClassVar[str] = "XL-Sum"
    origin: ClassVar[str] = "github.com/csebuetnlp/xl-sum"
    languages: ClassVar[tuple[str, ...]] = ("ara", "eng", "fra", "hin", "ind", "jpn", "kor", "por", "spa", "tha", "tur", "ukr", "vie",
                                            "zho")
    keys: ClassVar[tuple[str, ...]] = ("summary", "article")
    items: ClassVar[int] = 4700
    item_seconds: ClassVar[float] = 3.0

    max_new_tokens: int = within(128, low=1)

    def files(self, lang: str, source: str) -> dict[str, str | tuple[str, ...]]:
        name = NAMES.get(lang, LANGUAGES[lang].name.lower())
        return {"test": f"{name}_test.jsonl", **({"shots": f"{name}_val.jsonl"} if self.shots else {})}

    def hub(self, lang: str, source: str) -> list[HubFile]:
        config = NAMES.get(lang, LANGUAGES[lang].name.lower())
        splits = {"test": "test", "shots": "validation"}
        return [HubFile(str(name), "csebuetnlp/xlsum", config, splits[role]) for role, name in self.files(lang, source).items()]

    def metric_names(self) -> list[str]:
        return ["rouge1", "rouge2", "rougeL", "off_target"]

    def read(self, folder: Path, lang: str, source: str) -> tuple[list[TextItem], list[TextItem]]:
        paths, told_in = self.paths(folder, lang, source), self.told_in(lang, source)

        def items(path: Path, prefix: str = "") -> list[TextItem]:
            return [TextItem(f"xlsum/{prefix}{number}", code, summary_prompt(told_in, lang, text), lang, (summary,), text,
                             fields={"told_in": told_in}) for number, code, summary, text in read_articles(path)]

        return items(paths["shots"], "val-") if "shots" in paths else [], items(paths["test"])

    def fitted(self, ev: Evaluation, solved: list[TextItem], items: list[TextItem]) -> tuple[list[TextItem], list[TextItem]]:
        """The items with articles cut at the end: each of the shots' to an equal share of the context, the asked one's to the rest."""
        shown = solved[:self.shots]
        room, done = ev.model.max_length - self.max_new_tokens, ev.journal(self.name).done
        answers = len(ev.model.encode_prompts(["".join(i.references[0] for i in shown)])[0]) if shown else 0
        shown = [fit(ev, i, [], (room - answers) // (len(shown) + 1)) for i in shown]
        turns = [(ev.frame(self.task_name, i.prompt, ()), i.references[0]) for i in shown]
        return shown, [i if i.id in done else fit(ev, i, turns, room) for i in items]

    def metrics(self, part: str, lang: str, ev: Evaluation) -> Sequence[Metric]:
        from xalign.metrics.rouge import Rouge

        return [Rouge(lang, order) for order in ("1", "2", "L")]

    def baseline_texts(self, records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
        """The article's first sentence."""
        return {"lead": [lead(r["text"], r["lang"]) for r in records]}


def summary_prompt(told_in: str, lang: str, article: str) -> str:
    """The instruction, told in one language, for a summary in `lang`; then the article."""
    return say(told_in, "summary", language=lang) + "\n" + say(told_in, "article", text=article)


def fit(ev: Evaluation, item: TextItem, shots: Sequence[tuple[str, str]], room: int) -> TextItem:
    """`item` with its article cut at the end, at a space where there are any, until the whole prompt has at most `room` tokens."""
    model: CausalBackbone = ev.model
    article, kept = item.text, item
    while (used := len(model.encode_prompts([ev.frame(XlSumTask.task_name, kept.prompt, ())], shots)[0])) > room and article:
        article = article[:min(int(len(article) * room / used), len(article) - 1)]
        if LANGUAGES[item.lang].spaced and " " in article:
            article = article.rsplit(" ", 1)[0]
        kept = replace(item, prompt=summary_prompt(item.fields["told_in"], item.lang, article))
    return kept


def lead(article: str, lang: str) -> str:
    """The first sentence of an article, by its punctuation; in Thai, which has none, the first phrases of 80 characters or more."""
    first = article.strip().split("\n")[0]
    if LANGUAGES[lang].script == "Thai":
        cut = first.find(" ", THAI_LEAD)
        return first if cut < 0 else first[:cut]
    end = END.search(first)
    return first[:end.end()] if end else first


def read_articles(path: Path) -> list[tuple[int, str, str, str]]:
    """(line number, id, summary, article) of every line.

    Raises:
        XalignError: for a line without one of the three texts, naming file and line.
    """
    return [(number, *(text_of(row, key, f"{path}:{number}", "XL-Sum") for key in TEXTS)) for number, row in numbered(path)]
