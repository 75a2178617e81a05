"""Does anything of the tests occur in training? n-grams of any text, and the laboratory's facts."""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xalign.cache import Artifact, Stage
from xalign.data.contamination import EXAMPLES, ItemSet, N, contamination, overlap_grid
from xalign.data.examples import Example, read_examples, read_jsonl, write_jsonl
from xalign.data.ngrams import ngrams

if TYPE_CHECKING:
    from xalign.config import Run
    from xalign.tables import Grid


def ngram_overlap(train_texts: Iterable[str], test_texts: Iterable[str], n: int = N) -> dict[str, Any]:
    """How many test texts share an n-gram of words (3n characters for unspaced scripts) with training.

    Returns:
        n, test_texts, long_enough (texts of at least n words), overlapping (texts), shared_ngrams, and up to three examples.
    """
    texts = list(test_texts)
    grams = ngrams(texts, n)
    hit = grams.shared(ngrams(train_texts, n).hashes)
    places = np.unique(grams.owner[hit])
    return {"n": n, "test_texts": len(texts), "long_enough": len(np.unique(grams.owner)), "overlapping": len(places),
            "shared_ngrams": len(np.unique(grams.hashes[hit])), "examples": [texts[i] for i in places[:EXAMPLES]]}


def fact_leaks(examples: Iterable[Example], langs: Sequence[str]) -> list[str]:
    """Ids of the training rows in which a test fact's entity and its answer both occur, in any of `langs`.

    Names are matched in CLDR's form and case ("Espanja" is Spain, "espanja" Spanish), whole words only; a
    name inside a longer one ("Guinea" in "Equatorial Guinea") does not count. Inflected forms are not
    found; where two names are spelled alike, a plain list of names can be reported.
    """
    from xalign.data.lab.facts import facts
    from xalign.data.lab.templates import spellings
    from xalign.data.lab.terms import term_ids
    from xalign.languages import LANGUAGES

    answers: dict[str, set[str]] = {}
    for fact in facts():
        if fact.split == "test":
            answers.setdefault(fact.subject, set()).add(fact.answer)
    lexicons = []
    for lang in langs:
        table: dict[str, set[str]] = {}
        for kind in ("territory", "city", "language", "currency"):
            for term in term_ids(kind):
                for form in spellings(term, lang):
                    table.setdefault(form, set()).add(term)
        lexicons.append((LANGUAGES[lang].spaced, sorted(table.items(), key=lambda row: -len(row[0]))))
    leaks = []
    for example in examples:
        present: dict[str, set[str]] = {}
        # the instruction of parallel text names two languages; only what it is given counts
        prompt = example.prompt.partition("\n")[2] if example.source.startswith("parallel:") else example.prompt
        for spaced, table in lexicons:
            _find_terms(f"{prompt}\n{example.response}", table, spaced, present)
        # one word that names both ("Kuwait", the country and the city) states nothing
        if any(_apart(present[subject], present[a]) for subject, found in answers.items() if subject in present
               for a in found if a in present):
            leaks.append(example.id)
    return leaks


def _apart(one: set[str], other: set[str]) -> bool:
    """True if there is a form of each that is not the same form."""
    return any(a != b for a in one for b in other)


def _find_terms(text: str, table: list[tuple[str, set[str]]], spaced: bool, present: dict[str, set[str]]) -> None:
    """Add to `present` each term of `table` found in `text`, with the forms it was found in."""
    for form, terms in table:
        if form not in text:
            continue
        pattern = rf"(?<!\w){re.escape(form)}(?!\w)" if spaced else re.escape(form)
        shorter, count = re.subn(pattern, "\x00", text)
        if count:  # blanked out, so that a shorter name inside it is not found
            text = shorter
            for term in terms:
                present.setdefault(term, set()).add(form)


def overlap_stage(run: Run, rows: Sequence[Stage], predictions: Sequence[Stage]) -> Stage:
    """Check the rows of all training stages against everything that `predictions` of the untrained model were asked for.

    The facts of its receipt: rows, tests (items), n, long_enough, overlapping and whole (items, with any training set),
    fact_leaks (training rows that state a test fact of the laboratory; None where the laboratory is not a task) and table, the
    facts of `contamination`. Examples are in ``overlap.jsonl``, the leaking rows' ids in ``fact_leaks.jsonl``.
    """
    languages = [run.source, *run.lang]
    lab = any(task.name == "lab" for task in run.tasks)

    def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
        examples = [e for a in inputs[:len(rows)] for e in read_examples(a.file("rows.jsonl"))]
        sets: dict[str, list[tuple[str, str, str]]] = {}
        for e in examples:
            sets.setdefault(e.source or e.subset or "rows", []).append((e.id, e.prompt, e.response))
        table, kept = contamination(sets, list(item_sets(inputs[len(rows):])))
        leaks = fact_leaks(examples, languages) if lab else None
        write_jsonl(folder / "overlap.jsonl", kept)
        write_jsonl(folder / "fact_leaks.jsonl", ({"id": i} for i in leaks or ()))
        total = {k: sum(t[k] for t in table["tests"]) for k in ("items", "long_enough", "overlapping", "whole")}
        return {"rows": len(examples), "tests": total.pop("items"), "n": table["n"], **total,
                "fact_leaks": None if leaks is None else len(leaks), "table": table}

    return Stage("overlap", 3, {"languages": languages, "lab": lab}, work, (*rows, *predictions), 3, "overlap of training rows and tests")


def item_sets(predictions: Iterable[Artifact]) -> Iterator[ItemSet]:
    """The items of every journal of predictions by task and language, those that were asked twice (with shots) once."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for artifact in predictions:
        lang = artifact.receipt["params"]["lang"]
        for path in sorted(artifact.path.glob("predictions.*.jsonl"), key=lambda p: p.name.split(".")):
            if path.name.endswith(".ranked.jsonl"):  # items of another journal with options
                continue
            found: dict[str, ItemSet] = {}
            for record in read_jsonl(path):
                task = record.get("task") or path.name.split(".")[1]
                found.setdefault(task, ItemSet(task, lang)).add(record)
            for test in found.values():
                if (key := (lang, tuple(test.texts))) not in seen:
                    seen.add(key)
                    yield test


def overlap_lines(facts: Mapping[str, Any]) -> tuple[str, Grid | None]:
    """What a run prints of the stage's facts: one line and, where anything overlaps, the table."""
    leaks = "" if facts["fact_leaks"] is None else f"test facts in training {facts['fact_leaks']}, "
    line = (f"training rows {facts['rows']}: {leaks}{facts['n']}-gram overlap with {facts['overlapping']} of {facts['tests']} test items, "
            f"{facts['whole']} whole items in training")
    return line, overlap_grid(facts["table"]) if facts["overlapping"] or facts["whole"] else None
