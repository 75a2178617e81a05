"""Every training set against every test set: shared n-grams and whole items.

``python -m xalign contamination TRAIN.jsonl TEST.jsonl [TEST.jsonl ...]`` asks it of files of one's own.
"""
from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xalign.data.examples import read_jsonl
from xalign.data.ngrams import Grams, ngrams, normal
from xalign.runfiles import check_path
from xalign.tables import Grid, number, show
from xalign.terminal import LineParser, reading

N = 8  # words
EXAMPLES = 3  # kept of each training set and test set
FRAME_FROM = 20  # clusters; in smaller test sets nothing is taken for the instruction
CANDIDATES = 50  # training rows that are read for one test item
QUESTIONS, ANSWERS = ("text", "question", "prompt", "instruction"), ("references", "reference", "answers", "answer", "response", "output")


@dataclass
class ItemSet:
    """The items of one task in one language: of each an id, its cluster, the question and what answers it."""

    task: str
    lang: str
    ids: list[str] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    answers: list[list[str]] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one record of a journal, or of any file with a text."""
        question, answers = parts(record)
        self.ids.append(str(record.get("id", len(self.ids) + 1)))
        self.clusters.append(str(record.get("cluster", len(self.ids))))
        self.questions.append(question)
        self.answers.append(answers)

    @cached_property
    def texts(self) -> list[str]:
        return [f"{q}\n{' '.join(a)}" for q, a in zip(self.questions, self.answers, strict=True)]

    @cached_property
    def grams(self) -> Grams:
        """N-grams of question and answers; those in more than half of the clusters are the task's instruction and left out."""
        found = ngrams(self.texts, N)
        codes = np.unique(self.clusters, return_inverse=True)[1]
        if len(found.hashes) and codes.max() + 1 >= FRAME_FROM:
            pairs = np.unique(np.stack([found.hashes, codes[found.owner].astype(np.uint64)]), axis=1)[0]
            hashes, counts = np.unique(pairs, return_counts=True)
            content = counts[np.searchsorted(hashes, found.hashes)] <= (codes.max() + 1) / 2
            found = Grams(found.hashes[content], found.owner[content])
        return found

    @cached_property
    def asked(self) -> Grams:
        """N-grams of the questions."""
        return ngrams(self.questions, N)

    @cached_property
    def short(self) -> dict[int, str]:
        """The questions that are too short for an n-gram, in normal form."""
        return {i: normal(self.questions[i]) for i in set(range(len(self.ids))) - set(self.asked.owner.tolist())}


def parts(record: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What a test item gives away: question and right answers, or text and references; without the instruction around it
    where the record holds the text by itself."""
    options, gold = record.get("options"), record.get("gold")
    if isinstance(options, list) and type(gold) is int and 0 <= gold < len(options):
        return str(record.get("question", "")), [str(options[gold])]
    answers = next((record[k] for k in ANSWERS if record.get(k)), [])
    question = next((record[k] for k in QUESTIONS if record.get(k)), "")
    if not question and not answers:
        question = "\n".join(_strings(record))
    return str(question), list(_strings(answers))


def _strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value, ids left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key != "id":
                yield from _strings(part)


class TrainingSet:
    """Rows (id, prompt, response) that come from one source."""

    def __init__(self, rows: Sequence[tuple[str, str, str]]) -> None:
        self.rows = rows
        self.grams = ngrams((f"{prompt}\n{response}" for _, prompt, response in rows), N)
        self.forms: dict[int, str] = {}

    @cached_property
    def prompts(self) -> dict[str, list[int]]:
        """Normal prompt → rows."""
        found: dict[str, list[int]] = {}
        for place, (_, prompt, _) in enumerate(self.rows):
            found.setdefault(normal(prompt), []).append(place)
        return found

    def whole(self, test: ItemSet, hits: set[int]) -> dict[int, int]:
        """Test item → a row that holds its question and one of its answers; `hits`: items that share an n-gram.

        A question of fewer than `N` words has to be the row's prompt: as a part of it, it says little.
        """
        found: dict[int, int] = {}
        for item, question in test.short.items():
            self._find(test, item, self.prompts.get(question, [])[:CANDIDATES], found)
        own = np.isin(test.asked.owner, list(hits))
        hashes, owner = test.asked.hashes[own], test.asked.owner[own]
        low, high = (np.searchsorted(self.grams.hashes, hashes, side) for side in ("left", "right"))
        rarest = np.lexsort((high - low, owner))  # of each question, the n-gram that the fewest rows have
        items, first = np.unique(owner[rarest], return_index=True)
        for item, k in zip(items.tolist(), rarest[first].tolist(), strict=True):
            self._find(test, item, self.grams.owner[low[k]:min(high[k], low[k] + CANDIDATES)].tolist(), found)
        return found

    def _find(self, test: ItemSet, item: int, places: Sequence[int], found: dict[int, int]) -> None:
        if not places or not test.questions[item].strip():
            return
        question, answers = normal(test.questions[item]), [normal(a) for a in test.answers[item]]
        for place in places:
            form = self.forms.get(place)
            if form is None:
                form = self.forms[place] = normal(f"{self.rows[place][1]}\n{self.rows[place][2]}")
            if question in form and (not answers or any(a in form for a in answers)):
                found[item] = place
                return


def contamination(rows: Mapping[str, Sequence[tuple[str, str, str]]],
                  tests: Sequence[ItemSet]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every training set against every test set.

    An item overlaps when it shares an n-gram of 8 words (24 characters in unspaced scripts); it is whole in training when its
    question and one of its answers stand, word by word, in one training row.

    Args:
        rows: training set → (id, prompt, response) of each row.

    Returns:
        (facts, examples). Facts: n; train: training set → rows; tests: of each test set its items, those long enough for an
        n-gram, those overlapping and those whole with any training set, and with which: training set → [overlapping, whole].
        Examples: up to three items of each pair that overlaps, with the training row.
    """
    sets = [{"task": t.task, "lang": t.lang, "items": len(t.ids), "long_enough": len(np.unique(t.grams.owner)), "with": {}} for t in tests]
    any_hit: list[tuple[set[int], set[int]]] = [(set(), set()) for _ in tests]
    kept = []
    for name, own in rows.items():
        train = TrainingSet(own)
        for test, entry, (hit, held) in zip(tests, sets, any_hit, strict=True):
            mask = test.grams.shared(train.grams.hashes)
            hits = set(test.grams.owner[mask].tolist())
            whole = train.whole(test, hits)
            hit |= hits
            held |= set(whole)
            if not hits and not whole:
                continue
            entry["with"][name] = [len(hits), len(whole)]
            for item in [*sorted(whole), *sorted(hits - set(whole))][:EXAMPLES]:
                place = whole.get(item)
                if place is None:
                    gram = test.grams.hashes[mask & (test.grams.owner == item)][0]
                    place = int(train.grams.owner[np.searchsorted(train.grams.hashes, gram)])
                kept.append({"train": name, "row": own[place][0], "task": test.task, "lang": test.lang, "id": test.ids[item],
                             "whole": item in whole, "test_text": test.texts[item], "train_text": f"{own[place][1]}\n{own[place][2]}"})
    for entry, (hit, held) in zip(sets, any_hit, strict=True):
        entry |= {"overlapping": len(hit), "whole": len(held)}
    return {"n": N, "train": {name: len(own) for name, own in rows.items()}, "tests": sets}, kept


def overlap_grid(facts: Mapping[str, Any]) -> Grid:
    """The table of `contamination`'s facts: a row a test set that training touches; the untouched ones are counted below."""
    used = [name for name in facts["train"] if any(name in t["with"] for t in facts["tests"])]
    grid = Grid(f"{facts['n']}-gram overlap: training sets in tests", ["test", "items", "long\nenough", "overlap", "share", "whole",
                                                               *(f"{name}\n{facts['train'][name]} rows" for name in used)])
    clean = [t for t in facts["tests"] if not t["with"]]
    for t in facts["tests"]:
        if t["with"]:
            cells = [f"{a} ({b})" if b else str(a) for a, b in (t["with"].get(name, (0, 0)) for name in used)]
            grid.rows.append([f"{t['task']} {t['lang']}".strip(), str(t["items"]), str(t["long_enough"]), str(t["overlapping"]),
                              number(100 * t["overlapping"] / t["items"], percent=True) + " %", str(t["whole"]), *cells])
    if clean:
        items, long = (sum(t[k] for t in clean) for k in ("items", "long_enough"))
        grid.rows.append([f"{len(clean)} {'other' if len(clean) < len(facts['tests']) else 'test'} set{'s' * (len(clean) > 1)}", str(items),
                          str(long), "0", "0.0 %", "0", *["0"] * len(used)])
    quiet = [f"{name} ({rows} rows)" for name, rows in facts["train"].items() if name not in used]
    if quiet:
        grid.notes.append(f"no overlap: {', '.join(quiet)}.")
    if used:
        grid.notes.append("overlap = items that share an n-gram of words (3n characters in unspaced scripts); whole, and in brackets: "
                          "question and answer stand word by word in one training row.")
    return grid


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m xalign contamination``; returns the exit code."""
    parser = LineParser(prog="python -m xalign contamination", description="Does anything of the tests stand in a training "
                        "file? JSON lines: training rows with prompt and response, or instruction, input and output, or any "
                        "texts; tests as a run's predictions/before/LANG/TASK.jsonl, or any question with its answer.")
    parser.add_argument("train", metavar="TRAIN", type=Path)
    parser.add_argument("tests", metavar="TEST", type=Path, nargs="+")

    def work() -> None:
        args = parser.parse_args(argv)
        rows = []
        for path in (args.train, *args.tests):
            check_path(path)
        for place, record in enumerate(read_jsonl(args.train), 1):
            response = next((str(record[k]) for k in ("response", "output") if record.get(k)), "")
            prompt = "\n".join(str(record[k]) for k in ("prompt", "instruction", "input") if record.get(k))
            rows.append((str(record.get("id", place)), prompt or "\n".join(_strings(record)), response))
        tests = []
        for path in args.tests:
            tests.append(ItemSet(path.stem, path.parent.name if len(args.tests) > 1 else ""))
            for record in read_jsonl(path):
                tests[-1].add(record)
        facts, examples = contamination({args.train.name: rows}, tests)
        grid = overlap_grid(facts)
        for e in examples:
            grid.notes.append(f"{'whole' if e['whole'] else 'shares'}: {e['task']} {e['id']} in row {e['row']}: {e['train_text'][:160]!r}")
        show([grid])

    return reading(work)


if __name__ == "__main__":
    sys.exit(main())
