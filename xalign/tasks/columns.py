"""Official files with one record a line: plain sentences, columns parted by tabs, one token with its tag."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from xalign.config import XalignError
from xalign.data.reading import text_lines
from xalign.values import shown


def lines_of(path: Path, title: str) -> list[tuple[int, str]]:
    """(line number, text) of every line, the empty ones too, without line ends and outer spaces.

    Raises:
        XalignError: for a file that is not UTF-8 text.
    """
    return [(number, line.strip(" ")) for number, line in text_lines(path, f"use {title}'s official file")]


def rows_of(path: Path, names: Sequence[str], title: str) -> Iterator[tuple[str, list[str]]]:
    """("FILE:LINE", columns) of every line that is not empty; quotation marks are text.

    Raises:
        XalignError: for a line with another number of columns than `names`, naming file and line.
    """
    for number, line in lines_of(path, title):
        columns = [text.strip() for text in line.split("\t")]
        if columns == [""]:
            continue
        if len(columns) != len(names):
            raise XalignError(f"{path}:{number}: has {len(columns)} columns, parted by tabs; must be {len(names)}: "
                              f"{', '.join(names)}; use {title}'s official file")
        yield f"{path}:{number}", columns


def tagged_sentences(path: Path, tags: Sequence[str], title: str) -> list[tuple[list[str], list[str]]]:
    """(words, tags) of each sentence of a file with ``word tag`` lines; an empty line or ``-DOCSTART-`` ends a sentence.

    Raises:
        XalignError: for a line without a tag or with another tag than `tags`, naming file and line.
    """
    out: list[tuple[list[str], list[str]]] = [([], [])]
    for number, line in lines_of(path, title):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if out[-1][0]:
                out.append(([], []))
            continue
        word, _, tag = line.replace("\t", " ").rpartition(" ")
        if not word.strip() or tag not in tags:
            raise XalignError(f"{path}:{number}: '{shown(line)}': must be a word, a space and one of {', '.join(tags)}; "
                              f"use {title}'s official file")
        out[-1][0].append(word.strip())
        out[-1][1].append(tag)
    return out if out[-1][0] else out[:-1]


def first_words(text: str, words: int) -> str:
    """The first `words` words of a text, all of them for 0."""
    kept = text.split()
    return text if not words or len(kept) <= words else " ".join(kept[:words])
