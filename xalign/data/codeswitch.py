"""Bilingual dictionaries and code-switching of questions (SDRRL section 3.2.3, equation 5)."""
from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from xalign.cache import Artifact, Stage
from xalign.config import Node, XalignError
from xalign.data.examples import Example
from xalign.data.reading import check_file, text_lines, unchanged
from xalign.digests import file_sha256
from xalign.languages import LANGUAGES

if TYPE_CHECKING:
    from xalign.config import Run

Translations = Mapping[str, tuple[str, ...]]


def read_muse(path: Path) -> list[tuple[str, str]]:
    """Pairs of a MUSE-format file: ``word TAB word``, or two words parted by a space, one pair a line.

    Raises:
        XalignError: for a line that is neither, naming file and line number, and for a file without a pair.
    """
    pairs = []
    for number, line in text_lines(path):
        if not line.strip():
            continue
        parts = [p.strip() for p in line.split("\t")] if "\t" in line else [p for p in line.strip().split(" ") if p]
        if len(parts) != 2 or not all(parts):
            found = line.strip()[:60]
            raise XalignError(f"{path}:{number}: expected 'word TAB translation' or 'word translation', found {found!r}; "
                              "write one pair a line")
        pairs.append((parts[0], parts[1]))
    if all(a == b for a, b in pairs):
        raise XalignError(f"{path}: holds no pair of different words; write 'word TAB translation' or 'word translation' a line")
    return pairs


def read_dictionary(path: Path, inverse: bool = False) -> dict[str, tuple[str, ...]]:
    """A dictionary artifact's ``dictionary.tsv`` as word → its translations; `inverse` reads it target → source."""
    found: dict[str, dict[str, None]] = {}
    for line in path.read_bytes().decode().split("\n")[:-1]:  # no other sign ends a line
        src, tgt = line.split("\t")
        if inverse:
            src, tgt = tgt, src
        found.setdefault(src, {})[tgt] = None
    return {word: tuple(translations) for word, translations in found.items()}


@dataclass(frozen=True)
class Dictionary(Node):
    """The bilingual dictionary: CLDR terms, or a MUSE file.

    Attributes:
        path: a MUSE-format file, source language first; null takes CLDR's terms.
    """

    path: str | None = None

    def check_run(self, run: Run) -> None:
        """Raise ConfigError when `path` names no file, XalignError for its first line that is no pair."""
        if self.path:
            read_muse(check_file("dictionary.path", self.path, "name a MUSE file (word TAB translation a line)"))

    def stage(self, run: Run, lang: str) -> Stage:
        """``dictionary.tsv``: source word TAB `lang` word, pairs spelled the same left out."""
        source, path = run.source, Path(self.path).expanduser() if self.path else None

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            if path:
                pairs: Iterable[tuple[str, str]] = read_muse(path)
                unchanged([(path, origin["file"])])
            else:
                from xalign.data.lab import phrase_table

                pairs = phrase_table(source, lang).items()
            kept = list(dict.fromkeys((a, b) for a, b in pairs if a != b and "\t" not in a + b))
            text = "".join(f"{a}\t{b}\n" for a, b in kept)
            (folder / "dictionary.tsv").write_text(text, encoding="utf-8", newline="\n")
            return {"pairs": len(kept), "words": len({a for a, _ in kept})}

        if path:
            origin: dict[str, Any] = {"file": file_sha256(path)}
        else:
            from xalign.data.lab.facts import versions

            origin = {"source": source, "lang": lang, **versions()}
        return Stage("dictionary", 1, origin, work, seconds=1, label=f"dictionary {source}→{lang}")


def switch_questions(rows: Sequence[Example], dictionaries: Mapping[str, Translations], p: float,
                     seed: int) -> tuple[list[Example], dict[str, int]]:
    """Code-switch every question by the dictionary of its language (``row.lang``).

    Returns:
        The rows, and how many questions changed in each subset.
    """
    out, changed = [], Counter[str]()
    for row in rows:
        rng = Random(f"switch:{seed}:{row.id}")
        prompt = code_switch(row.prompt, dictionaries[row.lang], p, rng, LANGUAGES[row.lang].spaced)
        changed[row.subset] += prompt != row.prompt
        out.append(row.with_(prompt=prompt))
    return out, dict(changed)


def code_switch(text: str, mapping: Translations, p: float, rng: Random, spaced: bool = True) -> str:
    """Replace each token of `text` that is in the dictionary with probability `p` by one of its translations.

    Args:
        text: a question.
        mapping: term → translations; terms may have several words. Looked up as written, then in lower case.
        p: probability of replacing a token that the dictionary knows.
        rng: decides token by token, left to right.
        spaced: tokens are parted by whitespace, punctuation at their edges stays; otherwise the text is
            segmented into the longest dictionary entries (at least two characters) from left to right.
    """
    if p <= 0 or not mapping:
        return text
    return _switch_spaced(text, mapping, p, rng) if spaced else _switch_unspaced(text, mapping, p, rng)


def _lookup(term: str, mapping: Translations) -> tuple[str, ...]:
    return mapping.get(term) or mapping.get(term.lower()) or ()


def _switch_spaced(text: str, mapping: Translations, p: float, rng: Random) -> str:
    parts = re.split(r"(\s+)", text)  # words at even places, the whitespace between them at odd ones
    longest = max(term.count(" ") for term in mapping) + 1
    out, i = [], 0
    while i < len(parts):
        step = 1
        for words in range(min(longest, (len(parts) - i + 1) // 2), 0, -1):
            chunk = "".join(parts[i:i + 2 * words - 1])
            head, core, tail = _edges(chunk)
            translations = _lookup(core, mapping)
            if translations:  # the longest term counts as one token: its single words are not tried again
                step = 2 * words - 1
                out.append(head + rng.choice(translations) + tail if rng.random() < p else chunk)
                break
        else:
            out.append(parts[i])
        i += step
        if i < len(parts):
            out.append(parts[i])
            i += 1
    return "".join(out)


def _edges(chunk: str) -> tuple[str, str, str]:
    """Leading punctuation, core, trailing punctuation. By category: a final vowel sign belongs to its word."""
    start, end = 0, len(chunk)
    while start < end and unicodedata.category(chunk[start])[0] in "PSZ":
        start += 1
    while end > start and unicodedata.category(chunk[end - 1])[0] in "PSZ":
        end -= 1
    return chunk[:start], chunk[start:end], chunk[end:]


def _switch_unspaced(text: str, mapping: Translations, p: float, rng: Random) -> str:
    longest = max(len(term) for term in mapping)
    out, i = [], 0
    while i < len(text):
        for end in range(min(len(text), i + longest), i + 1, -1):
            translations = _lookup(text[i:end], mapping)
            if translations and boundary(text, i) and boundary(text, end):
                out.append(rng.choice(translations) if rng.random() < p else text[i:end])
                i = end
                break
        else:
            out.append(text[i])
            i += 1
    return "".join(out)


def boundary(text: str, i: int) -> bool:
    """A piece of text may begin or end before character `i`: not inside a Latin word, a number or a grapheme."""
    if i in (0, len(text)):
        return True
    inside_word = text[i - 1].isascii() and text[i - 1].isalnum() and text[i].isascii() and text[i].isalnum()
    return not inside_word and not unicodedata.category(text[i]).startswith("M")
