"""Does anything of the test occur in training? n-grams of any text, and the laboratory's facts."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import Artifact, Stage
from xalign.data.examples import Example, read_examples, read_jsonl, write_jsonl

if TYPE_CHECKING:
    from xalign.config import Run

# Scripts written without spaces: their n-grams are counted over characters.
UNSPACED = re.compile(r"[\u0e00-\u0e7f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
CHARACTERS_A_WORD = 3


def _ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    text = text.casefold()
    if len(UNSPACED.findall(text)) > len(text) / 2:
        tokens, n = list(re.sub(r"\s+", "", text)), n * CHARACTERS_A_WORD
    else:
        tokens = re.findall(r"\w+", text)
    return {tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1)}


def ngram_overlap(train_texts: Iterable[str], test_texts: Iterable[str], n: int = 8) -> dict[str, Any]:
    """How many test texts share an n-gram of words (3n characters for unspaced scripts) with training.

    Returns:
        n, test_texts, long_enough (texts of at least n words), overlapping (texts), shared_ngrams, and up to three examples.
    """
    train: set[tuple[str, ...]] = set()
    for text in train_texts:
        train |= _ngrams(text, n)
    texts = list(test_texts)
    grams = [_ngrams(text, n) for text in texts]
    hits = [(text, found & train) for text, found in zip(texts, grams) if found & train]
    return {"n": n, "test_texts": len(texts), "long_enough": sum(bool(g) for g in grams), "overlapping": len(hits),
            "shared_ngrams": len(set().union(*(shared for _, shared in hits))), "examples": [text for text, _ in hits[:3]]}


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


def overlap_stage(run: Run, rows: Sequence[Stage], evaluations: Sequence[Stage]) -> Stage:
    """Check the rows of all training stages against everything that `evaluations` of the untrained model asked.

    The facts of its receipt: rows, tests, n, overlapping (test texts that share an n-gram), fact_leaks (training
    rows that state a test fact of the laboratory), and examples of both.
    """
    def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
        examples = [e for a in inputs[:len(rows)] for e in read_examples(a.file("rows.jsonl"))]
        paths = [path for a in inputs[len(rows):] for path in sorted(a.path.glob("predictions.*.jsonl"))]
        tests = [_test_text(record) for path in paths for record in read_jsonl(path)]
        found = ngram_overlap((f"{e.prompt}\n{e.response}" for e in examples), tests)
        leaks = fact_leaks(examples, (run.source, *run.lang))
        write_jsonl(folder / "overlap.jsonl", [{**found, "fact_leaks": leaks}])
        return {"rows": len(examples), "tests": len(tests), "n": found["n"], "long_enough": found["long_enough"],
                "overlapping": found["overlapping"], "fact_leaks": len(leaks)}

    return Stage("overlap", 2, {"languages": [run.source, *run.lang]}, work, (*rows, *evaluations), 3,
                 "overlap of training rows and tests")


def _test_text(record: Mapping[str, Any]) -> str:
    """What a test item gives away: question and right answer, or text and reference; never the instruction around it."""
    if "options" in record:
        return f"{record['question']}\n{record['options'][record['gold']]}"
    if "reference" in record:
        return f"{record['text']}\n{record['reference']}"
    return f"{record['prompt']}\n{' '.join(record['answers'])}"
