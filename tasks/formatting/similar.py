"""Finds near-duplicate texts: MinHash with 64 hashes over sequences of five words.

Words are separated by white space; in scripts without white space each character is a word. Sequences that many rows
share (the template, a system prompt) say nothing about a row and are not compared.
"""

import array
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

WORDS = 5
THRESHOLD = 0.8
"""Estimated Jaccard similarity of the five-word sequences from which two rows are near copies."""
SLOT = np.uint16
"""Half of the library's bits: two different slots are equal once in 65,536."""
SLOTS, BAND = 64, 4
"""The estimate's standard error is 0.05 at the threshold, where the bands miss one pair in 5,000."""
FEWEST = 20
"""Own sequences that a row needs to be compared: in shorter rows a number or a name makes another row."""
COMMON_SHARE = 0.02
PIECE = 1 << 20
"""Bytes that are hashed at once. Of a longer text only the beginning is compared."""
SEED = 42
BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses

Hashes = tuple[np.ndarray, np.ndarray]
"""Hashes of all word sequences, row after row, and where each row's begin (one more than rows)."""


def shingles(texts: Sequence[bytes]) -> Hashes:
    """Hash every sequence of WORDS words of normalised texts (single spaces, one case)."""
    found, sizes = [], []
    piece: list[bytes] = []
    length = 0
    for text in texts:
        text = text[: PIECE - 1]
        if piece and length + len(text) + 1 > PIECE:
            hashes, counts = _hash(piece)
            found.append(hashes)
            sizes.append(counts)
            piece, length = [], 0
        piece.append(text)
        length += len(text) + 1
    hashes, counts = _hash(piece)
    offsets = np.concatenate([[0], *sizes, counts]).cumsum()
    return np.concatenate([*found, hashes]), offsets


def _powers(base: int) -> np.ndarray:
    powers = np.full(PIECE + 1, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


POWERS, INVERSES = _powers(BASE), _powers(pow(BASE, -1, 1 << 64))


def _hash(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes, and how many each text has: prefix sums of byte times power give the hash of any stretch at once."""
    data = np.frombuffer(b" ".join(texts) + b" ", np.uint8)
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(data * POWERS[: len(data)], out=sums[1:])
    space = data == ord(" ")
    begins = np.concatenate([[True], space[:-1]]) & ~space
    begins |= data >= 0xE0  # three or more bytes in UTF-8: Chinese, Japanese, Thai, emoji
    words = np.flatnonzero(begins)
    ends = np.append(words[1:], len(data))
    first = np.cumsum([0, *(len(text) + 1 for text in texts)])
    of_text = np.searchsorted(words, first)  # each text's first word
    counts = np.maximum(np.diff(of_text) - WORDS + 1, 0)
    from_word = np.arange(counts.sum()) + np.repeat(of_text[:-1] - np.cumsum(counts) + counts, counts)
    begin, end = words[from_word], ends[from_word + WORDS - 1]
    hashes = (sums[end] - sums[begin]) * INVERSES[begin]
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(32)), counts


def common(hashes: Hashes) -> np.ndarray:
    """Sorted hashes that more than COMMON_SHARE of the rows have, and more than one of them."""
    values, offsets = hashes
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((rows, values))
    values, rows = values[order], rows[order]
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (rows[1:] != rows[:-1])
    found, counts = np.unique(values[new], return_counts=True)
    return found[counts > max(1, COMMON_SHARE * (len(offsets) - 1))]


def without(hashes: Hashes, common: np.ndarray) -> Hashes:
    values, offsets = hashes
    if not len(common):
        return hashes
    own = common[np.minimum(np.searchsorted(common, values), len(common) - 1)] != values
    return values[own], np.concatenate([[0], np.cumsum(own)])[offsets]


def sketch(hashes: Hashes) -> np.ndarray:
    """Min-hashes, rows x SLOTS."""
    from rensa import RMinHash

    values, offsets = hashes
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(values, offsets.astype(np.uint64), SLOTS, SEED)
    slots = array.array("I", itertools.chain.from_iterable(matrix.to_rows()))
    return np.frombuffer(slots, np.uint32).astype(SLOT).reshape(-1, SLOTS)


class Marks:
    """Hashes of rows, 12 bytes each. All are added before the first is looked for."""

    def __init__(self) -> None:
        self._parts = [np.zeros(0, np.uint64)]

    def add(self, marks: np.ndarray) -> None:
        self._parts.append(marks.copy())

    def repeated(self) -> int:
        """Rows that are equal to an earlier one."""
        values, _ = self._in_order
        return int((values[1:] == values[:-1]).sum())

    def find(self, marks: np.ndarray) -> np.ndarray:
        """The first row with each hash; -1 if there is none."""
        values, order = self._in_order
        if not len(values):
            return np.full(len(marks), -1)
        place = np.minimum(np.searchsorted(values, marks), len(values) - 1)
        return np.where(values[place] == marks, order[place], -1)

    def few(self, marks: np.ndarray) -> np.ndarray:
        """Whether each is there, and not of so many rows that it is the template and says nothing about a row."""
        values, _ = self._in_order
        times = np.searchsorted(values, marks, "right") - np.searchsorted(values, marks, "left")
        return (times > 0) & (times <= max(1, COMMON_SHARE * len(values)))

    @functools.cached_property
    def _in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """The marks sorted, and the row of each."""
        marks, self._parts = np.concatenate(self._parts), []
        order = np.argsort(marks, kind="stable").astype(np.int32)
        return marks[order], order


class Index:
    """Finds the row that a new one nearly equals among rows that were added before."""

    def __init__(self) -> None:
        self._sketches: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []
        self._bands = [Marks() for _ in range(SLOTS // BAND)]

    def add(self, sketches: np.ndarray, rows: np.ndarray) -> None:
        """Args: sketches, and what `nearest` shall call each of them."""
        self._sketches.append(sketches)
        self._rows.append(rows)
        for band, keys in zip(self._bands, _band_keys(sketches), strict=True):
            band.add(keys)

    def nearest(self, sketches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The most similar known row of each sketch, -1 for none at THRESHOLD; and the estimated similarity."""
        best, similarity = np.full(len(sketches), -1), np.zeros(len(sketches))
        if not self._rows or not len(sketches):
            return best, similarity
        self._sketches, self._rows = [np.concatenate(self._sketches)], [np.concatenate(self._rows)]
        known, rows = self._sketches[0], self._rows[0]
        for band, asked in zip(self._bands, _band_keys(sketches), strict=True):
            found = band.find(asked)
            hit = np.flatnonzero(found >= 0)
            candidate = found[hit]
            alike = (known[candidate] == sketches[hit]).mean(axis=1)
            better = (alike >= THRESHOLD) & (alike > similarity[hit])
            best[hit[better]], similarity[hit[better]] = rows[candidate[better]], alike[better]
        return best, similarity


def _band_keys(sketches: np.ndarray) -> Iterator[np.ndarray]:
    """One number a row for each band of slots."""
    for start in range(0, SLOTS, BAND):
        yield (sketches[:, start : start + BAND] * POWERS[1 : BAND + 1]).sum(axis=1, dtype=np.uint64)
