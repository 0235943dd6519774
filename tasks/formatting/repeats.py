"""Repeated rows: training rows that repeat a held-out row are left out; repeats within a split are counted."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tasks.formatting import similar
from tasks.store.ledger import Ledger

SIZE = 8
"""Bytes of a hash. In two million rows a collision occurs once in ten million data sets."""


def common_part(texts: Sequence[tuple[str, str]]) -> np.ndarray:
    """What many of these prompts and answers share, such as the template; it is no reason to call two rows alike."""
    return similar.common(similar.shingles([_plain(asked) + b" " + _plain(answer) for asked, answer in texts]))


def signs(texts: Sequence[tuple[str, str]], common: np.ndarray) -> list[bytes]:
    """What each pair of prompt and answer is recognised by; case and white space make no difference.

    Returns:
        for each a mark of its prompt, one of both texts, and a sketch of both, which a short row does not have.
    """
    plain = [(_plain(asked), _plain(answer)) for asked, answer in texts]
    hashes = similar.without(similar.shingles([asked + b" " + answer for asked, answer in plain]), common)
    sketches = similar.sketch(hashes)
    long = (np.diff(hashes[1]) >= similar.FEWEST).tolist()
    return [
        _marks(asked, answer) + (sketch.tobytes() if enough else b"")
        for (asked, answer), sketch, enough in zip(plain, sketches, long, strict=True)
    ]


class Repeats:
    """Remembers the signs of rows, in arrays: 8 bytes of a training row, 250 of a held-out one."""

    def __init__(self) -> None:
        self._counts = {"leaks": 0, "near_leaks": 0, "shared_prompts": 0}
        self._ids: list[str] = []  # of held-out rows
        self._held_out = similar.Marks()
        self._held_out_prompts = similar.Marks()
        self._index = similar.Index()
        self._training = similar.Marks()

    def kept(self, split: str, ids: Sequence[str], signs: Sequence[bytes], ledger: Ledger) -> list[bool]:
        """Which rows are handed on; a line in the ledger names the held-out row that another one repeats.

        Args:
            split: of all rows. All held-out rows come before the first training row.
        """
        asked, both = _both_marks(signs)
        rows, sketches = _sketches(signs)
        if split != "train":
            self._index.add(sketches, rows + len(self._ids))
            self._held_out.add(both)
            self._held_out_prompts.add(asked)
            self._ids += ids
            return [True] * len(ids)
        same = self._held_out.find(both)
        near, similarity = np.full(len(ids), -1), np.zeros(len(ids))
        near[rows], similarity[rows] = self._index.nearest(sketches)
        for row in np.flatnonzero((same >= 0) | (near >= 0)).tolist():
            if same[row] >= 0:
                reason, detail = "held out", f"held-out row {self._ids[same[row]]} has the same prompt and answer"
            else:
                reason = "nearly held out"
                detail = f"held-out row {self._ids[near[row]]} is nearly the same (similarity {similarity[row]:.2f})"
            ledger.add("left out", ids[row], split, reason, detail)
        kept = (same < 0) & (near < 0)
        self._counts["leaks"] += int((same >= 0).sum())
        self._counts["near_leaks"] += int(((same < 0) & (near >= 0)).sum())
        shared = kept & self._held_out_prompts.few(asked)
        self._counts["shared_prompts"] += int(shared.sum())
        for row, other in zip(np.flatnonzero(shared).tolist(), self._held_out_prompts.find(asked[shared]), strict=True):
            detail = f"held-out row {self._ids[other]} has the same prompt and another answer"
            ledger.add("kept", ids[row], split, "held-out prompt", detail)
        self._training.add(both[kept])
        return kept.tolist()

    def totals(self) -> dict[str, Any]:
        """The counts of `PromptFacts`, after the last row."""
        return {**self._counts, "duplicates": self._training.repeated() + self._held_out.repeated()}


def trained_on(held_out: Sequence[bytes], trained: Iterable[Sequence[bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """Of each held-out row whether a training row is a copy or a near copy of it, and whether one has its prompt.

    Args:
        held_out: signs of the held-out rows.
        trained: signs of training rows, batch by batch.
    Returns:
        two arrays, bool `[rows]`. A prompt of many held-out rows is the template and says nothing about a row.
    """
    asked, both = _both_marks(held_out)
    rows, sketches = _sketches(held_out)
    _, which, times = np.unique(asked, return_inverse=True, return_counts=True)
    few = times[which] <= max(1, similar.COMMON_SHARE * len(held_out))
    copied, prompted = np.zeros((2, len(held_out)), bool)
    for signs in trained:
        their_prompts, theirs = _both_marks(signs)
        index = similar.Index()
        index.add(*_sketches(signs)[::-1])
        copied[rows[index.nearest(sketches)[0] >= 0]] = True
        copied |= np.isin(both, theirs)
        prompted |= few & np.isin(asked, their_prompts)
    return copied, prompted


def _both_marks(signs: Sequence[bytes]) -> np.ndarray:
    """Marks of the prompts, and of prompts with answers: uint64 `[2, rows]`."""
    return np.frombuffer(b"".join(sign[: 2 * SIZE] for sign in signs), np.uint64).reshape(-1, 2).T


def _sketches(signs: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have a sketch, and the sketches."""
    rows = [row for row, sign in enumerate(signs) if len(sign) > 2 * SIZE]
    joined = b"".join([signs[row][2 * SIZE :] for row in rows])
    return np.array(rows, np.int64), np.frombuffer(joined, similar.SLOT).reshape(-1, similar.SLOTS)


def _plain(text: str) -> bytes:
    return " ".join(text.casefold().split()).encode()


def _marks(asked: bytes, answer: bytes) -> bytes:
    one = hashlib.blake2b(asked, digest_size=SIZE)
    both = one.copy()
    both.update(b"\0" + answer)
    return one.digest() + both.digest()
