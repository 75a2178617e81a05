"""N-grams of many texts as 64-bit numbers, and which of them two collections share."""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

# Scripts written without spaces: their n-grams are counted over characters.
UNSPACED = re.compile(r"[\u0e00-\u0e7f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
CHARACTERS_A_WORD = 3
_WORD = re.compile(r"\w+")


class _Numbers(dict[str, int]):
    """A random-looking 64-bit number of its own for each token, the same in every process."""

    def __missing__(self, token: str) -> int:
        found = self[token] = int.from_bytes(blake2b(token.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
        return found


def tokens(text: str) -> tuple[list[str], bool]:
    """Case-folded words, or characters of a text mostly in an unspaced script; and whether they are characters."""
    text = text.casefold()
    if not text.isascii() and len(UNSPACED.findall(text)) > len(text) / 2:
        return list(re.sub(r"\W+", "", text)), True
    return _WORD.findall(text), False


def normal(text: str) -> str:
    """The text's tokens between spaces, with one before and after: what is contained in what is then a plain search."""
    return f" {' '.join(tokens(text)[0])} "


@dataclass(frozen=True)
class Grams:
    """All n-grams of a list of texts: `hashes` [G], ascending, and the place of the text that each is from."""

    hashes: np.ndarray
    owner: np.ndarray

    def shared(self, others: np.ndarray) -> np.ndarray:
        """Which of these n-grams are among `others` (ascending): a mask [G]."""
        if not len(others):
            return np.zeros(len(self.hashes), dtype=bool)
        place = np.minimum(np.searchsorted(others, self.hashes), len(others) - 1)
        return others[place] == self.hashes


def ngrams(texts: Iterable[str], n: int) -> Grams:
    """N-grams of words, of 3n characters in unspaced scripts. Shorter texts have none."""
    numbers = _Numbers()
    streams: tuple[list[int], list[int]] = ([], [])
    owners: tuple[list[int], list[int]] = ([], [])
    lengths: tuple[list[int], list[int]] = ([], [])
    for place, text in enumerate(texts):
        found, characters = tokens(text)
        streams[characters].extend(map(numbers.__getitem__, found))
        owners[characters].append(place)
        lengths[characters].append(len(found))
    parts = [_windows(streams[c], owners[c], lengths[c], n * (CHARACTERS_A_WORD if c else 1)) for c in (False, True)]
    hashes, owner = (np.concatenate(side) for side in zip(*parts, strict=True))
    order = np.argsort(hashes, kind="stable")
    return Grams(hashes[order], owner[order])


def _windows(stream: Sequence[int], owners: Sequence[int], lengths: Sequence[int], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash and owner of every window of `n` tokens that does not cross from one text into the next."""
    if len(stream) < n:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    values, sizes = np.array(stream, dtype=np.uint64), np.array(lengths)
    total = np.zeros(len(values) - n + 1, dtype=np.uint64)
    factor = 0x9E3779B97F4A7C15 + 2 * n  # odd, and another one for windows of another length
    for k in range(n):
        total = total * np.uint64(factor % 2**64) + (values[k:len(values) - n + 1 + k] ^ np.uint64(k))
    text = np.repeat(np.arange(len(sizes)), sizes)
    within = text[:len(total)] == text[n - 1:]
    return total[within], np.array(owners, dtype=np.int64)[text[:len(total)][within]]
