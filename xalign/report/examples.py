"""Before/after examples of a run's predictions, chosen by a stated rule. No torch."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.data.examples import read_jsonl
from xalign.langid import guess
from xalign.rows import LOWER_IS_BETTER, arrow
from xalign.tables import is_number

if TYPE_CHECKING:
    from xalign.report.runs import FinishedRun

LONGEST = 700  # characters of a text that are shown
MOST = 240  # examples on one page
SURE = 20  # characters of a text whose language CLD3 is asked for; half of it where no spaces stand between words
# what an item's change is measured by: the first of these that the items have
HEADLINES = ("accuracy_pmi", "accuracy_raw", "accuracy_tokens", "accuracy_bytes", "f1", "rougeL", "chrf", "bleu", "ndcg", "em",
             "off_target")
RULE = ("the first {k} by id; then the {k} whose {metric} rose most and the {k} whose {metric} fell most (ties by id), "
        "so gains and losses are shown alike, whether the run as a whole gained or lost")


@dataclass(frozen=True)
class Example:
    """One item asked before and after training; texts are cut to `LONGEST` characters.

    Attributes:
        why: the part of the rule that chose it.
        reference: right answers, one a line.
        detected: language of a written answer before and after, by CLD3 and script; empty where it cannot be told.
        scores: (metric, before, after) of every score of the item.
    """

    id: str
    why: str
    prompt: str
    reference: str
    before: str
    after: str
    detected: tuple[str, str]
    scores: tuple[tuple[str, float | None, float | None], ...]


@dataclass(frozen=True)
class Group:
    """The examples of one run, language and task; `rule` says how they were chosen out of `total`."""

    run: str
    method: str
    lang: str
    task: str
    rule: str
    total: int
    examples: tuple[Example, ...]


def example_groups(runs: Sequence[FinishedRun], most: int = MOST) -> tuple[list[Group], str]:
    """Examples of the first run of each method, source, backbone and language, target languages first, and a note on what was left out.

    Two an item of the rule, or one where that would make more than `most` examples.
    """
    places: dict[tuple[Any, ...], tuple[FinishedRun, str, Path, Path]] = {}
    for run in runs:
        for before in sorted((run.folder / "predictions" / "before").glob("*/*.jsonl")):
            after = run.folder / "predictions" / "after" / before.parent.name / before.name
            if after.is_file() and before.name != "per_example_scores.jsonl":
                lang = before.parent.name
                targets = tuple(run.langs) if lang not in run.langs else (lang,)
                places.setdefault((run.method, run.source, run.backbone, lang, targets, before.name), (run, lang, before, after))
    k = 2 if 6 * len(places) <= most else 1
    order = sorted(places.values(), key=lambda place: place[1] == place[0].source)
    groups = [g for run, lang, before, after in order for g in _groups(run, lang, before, after, k)]
    kept, shown = [], 0
    for group in groups:
        shown += len(group.examples)
        if shown <= most:
            kept.append(group)
    seen = {g.run for g in kept}
    left = len(groups) - len(kept), sum(run.name not in seen and run.trained for run in runs)
    blocks, others = (f"{n} {what}{'s' * (n > 1)}" if n else ""
                      for n, what in zip(left, ("more language and task block", "run of another seed"), strict=True))
    text = " and ".join(filter(None, (blocks, others.replace("runs of another seed", "runs of other seeds"))))
    return kept, f"Left out to keep the page small: {text}; all items are in each run's predictions folder." if text else ""


def _groups(run: FinishedRun, lang: str, before: Path, after: Path, k: int) -> list[Group]:
    """One file's items, apart by task (a file of translations holds two directions)."""
    new = {r["id"]: r for r in read_jsonl(after) if "id" in r}
    pairs = [(old, new[old["id"]]) for old in read_jsonl(before) if old.get("id") in new and {"prediction", "options"} & old.keys()]
    tasks = dict.fromkeys(str(old.get("task", before.stem)) for old, _ in pairs)
    found = []
    for task in tasks:
        own = sorted(((o, n) for o, n in pairs if str(o.get("task", before.stem)) == task), key=lambda p: str(p[0]["id"]))
        metric = _headline(own)
        rule = RULE.format(k=k, metric=metric) if metric else f"the first {k} by id (the items have no score of their own)"
        found.append(Group(run.name, run.method, lang, arrow(task), rule, len(own), tuple(_chosen(own, metric, k))))
    return [g for g in found if g.examples]


def _headline(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """The metric by which change is measured; empty if none was scored both times."""
    def has(metric: str) -> bool:
        return any(is_number(old.get("scores", {}).get(metric)) and is_number(new.get("scores", {}).get(metric)) for old, new in pairs)

    return next((m for m in HEADLINES if has(m)), "")


def _chosen(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], metric: str, k: int) -> list[Example]:
    """Pairs in order of id → the rule's choice, each item once."""
    def change(pair: tuple[dict[str, Any], dict[str, Any]]) -> float:
        old, new = (record.get("scores", {}).get(metric) for record in pair)
        return new - old if is_number(old) and is_number(new) else 0.0

    worse = metric.startswith(LOWER_IS_BETTER) if metric else False
    rose = [p for p in sorted(pairs, key=change, reverse=True) if change(p) > 0][:k] if metric else []
    fell = [p for p in sorted(pairs, key=change) if change(p) < 0][:k] if metric else []
    picks = [("first by id", p) for p in pairs[:k]]
    picks += [("rose most, worse" if worse else "rose most", p) for p in rose]
    picks += [("fell most, better" if worse else "fell most", p) for p in fell]
    seen: dict[str, Example] = {}
    for why, (old, new) in picks:
        if old["id"] not in seen:
            seen[old["id"]] = _example(old, new, why, metric)
    return list(seen.values())


def _example(old: dict[str, Any], new: dict[str, Any], why: str, metric: str) -> Example:
    names = dict.fromkeys([*old.get("scores", {}), *new.get("scores", {})])
    scores = tuple((m, old.get("scores", {}).get(m), new.get("scores", {}).get(m)) for m in names if ":" not in m and "." not in m)
    return Example(str(old["id"]), why, _cut(old.get("prompt", old.get("question", ""))), _cut(_reference(old)),
                   _cut(_answer(old, metric)), _cut(_answer(new, metric)),
                   ("", "") if "options" in old else (_language(_answer(old, metric)), _language(_answer(new, metric))), scores)


def _language(text: str) -> str:
    """What the text is in; empty where CLD3 is not sure, or has too little to go by."""
    text = text.strip()
    found = guess(text) if len(text) >= (SURE if " " in text else SURE // 2) else "und"
    return "" if found == "und" else found


def _reference(record: dict[str, Any]) -> str:
    if "options" in record:
        right = record["gold"] if isinstance(record["gold"], list) else [record["gold"]]
        return "\n".join(("✓ " if i in right else "· ") + str(o) for i, o in enumerate(record["options"]))
    given = record.get("references", record.get("answers", record.get("reference", "")))
    return "\n".join(map(str, given)) if isinstance(given, list) else str(given)


def _answer(record: dict[str, Any], metric: str) -> str:
    """What the model wrote, or the option that it ranks first by the headline metric's score."""
    if "options" not in record:
        return str(record.get("prediction", ""))
    from xalign.tasks.ranking import option_scores

    by = metric.rpartition("_")[2]
    by = by if by in record or by == "pmi" and "neutral" in record else "raw"
    scores = option_scores(record, by)
    return str(record["options"][max(range(len(scores)), key=scores.__getitem__)])


def _cut(text: Any) -> str:
    text = str(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"
