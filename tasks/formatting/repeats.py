"""Rows that come twice: what is held out must not be trained on, and what repeats within a side is counted."""

import hashlib
from collections.abc import Sequence

import numpy as np

from tasks.formatting import similar
from tasks.store.ledger import Ledger

SIZE = 12
"""Bytes of a mark."""
COARSE = 32
"""Slots of a sketch that are kept of every training row: enough to count near copies, at 64 bytes a row."""


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
    """Remembers the signs of rows."""

    def __init__(self) -> None:
        self._counts = {"leaks": 0, "near_leaks": 0, "shared_prompts": 0, "duplicates": 0}
        self._held_out: dict[bytes, int] = {}
        self._held_out_prompts: set[bytes] = set()
        self._training: set[bytes] = set()
        self._ids: list[str] = []
        self._index = similar.Index()
        self._coarse: list[np.ndarray] = []  # of training rows

    def kept(self, split: str, ids: Sequence[str], signs: Sequence[bytes], ledger: Ledger) -> list[bool]:
        """Which rows are handed on; a line in the ledger names the held-out row that another one repeats.

        Args:
            split: the side of all rows. All held-out rows come before the first training row.
        """
        if split != "train":
            self._hold_out(ids, signs)
            return [True] * len(ids)
        near = self._near(signs)
        kept, unseen = [], []
        for number, (id, sign) in enumerate(zip(ids, signs, strict=True)):
            asked, both = sign[:SIZE], sign[SIZE : 2 * SIZE]
            same = self._held_out.get(both)
            if same is not None:
                self._counts["leaks"] += 1
                ledger.left_out(id, split, "held out", f"held-out row {self._ids[same]} has the same prompt and answer")
            elif number in near:
                self._counts["near_leaks"] += 1
                row, similarity = near[number]
                detail = f"held-out row {self._ids[row]} is nearly the same (similarity {similarity:.2f})"
                ledger.left_out(id, split, "nearly held out", detail)
            else:
                self._counts["shared_prompts"] += asked in self._held_out_prompts
                if both in self._training:
                    self._counts["duplicates"] += 1
                else:
                    self._training.add(both)
                    unseen.append(sign)
            kept.append(same is None and number not in near)
        self._coarse.append(_sketches(unseen)[1][:, :COARSE].copy())
        return kept

    def totals(self) -> dict[str, int]:
        """Counts for the manifest, after the last row.

        Left out: `leaks` and `near_leaks`, training rows equal, or nearly equal, to a held-out one. Kept:
        `shared_prompts`, training rows with a held-out row's prompt and another answer; `duplicates`, rows equal to an
        earlier one of their side; `near_copies`, training rows that nearly equal an earlier one.
        """
        coarse = np.concatenate(self._coarse) if self._coarse else np.zeros((0, COARSE), similar.SLOT)
        return {**self._counts, "near_copies": similar.near_copies(coarse)}

    def _hold_out(self, ids: Sequence[str], signs: Sequence[bytes]) -> None:
        rows, sketches = _sketches(signs)
        self._index.add(sketches, rows + len(self._ids))
        for id, sign in zip(ids, signs, strict=True):
            both = sign[SIZE : 2 * SIZE]
            self._counts["duplicates"] += both in self._held_out
            self._held_out.setdefault(both, len(self._ids))
            self._held_out_prompts.add(sign[:SIZE])
            self._ids.append(id)

    def _near(self, signs: Sequence[bytes]) -> dict[int, tuple[int, float]]:
        """Rows with a held-out row that is nearly the same: its number, and the similarity."""
        rows, sketches = _sketches(signs)
        nearest, similarity = self._index.nearest(sketches)
        return {
            row: (other, alike)
            for row, other, alike in zip(rows.tolist(), nearest.tolist(), similarity.tolist(), strict=True)
            if other >= 0
        }


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
