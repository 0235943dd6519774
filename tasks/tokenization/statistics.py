"""What people ask about tokens: how many, how long, how much is learnt, and how well they fill a forward pass.

statistics.json    {"limit", "width", "splits": {split: {"rows", "tokens", "learnt_tokens", "shortened", "lost",
                   "shortest", "median", "longest", "rows_by_length": [rows of 0 to width - 1 tokens, …]}}}
"""

import bisect
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

STATISTICS = "statistics.json"
BINS = 2048
"""Most classes of length; each is one token wide as long as that is enough."""
SAMPLE = 4096
"""Rows drawn to see how well they pack."""


class Statistics:
    """Counts rows while they are written: 9 bytes a row."""

    def __init__(self) -> None:
        self._lengths: list[Any] = []
        self._learnt: Counter[str] = Counter()
        self._train: list[Any] = []
        self._verdicts: Counter[tuple[str, str]] = Counter()

    def add(self, rows: Any, ledger: list[list[str]]) -> None:
        """A batch of rows with their learnt tokens, and the lines about those that are shortened or lost."""
        import numpy as np
        import pyarrow.compute as pc

        train = np.array(pc.equal(rows["split"], "train").to_pylist(), bool)
        learnt = np.array(rows["learnt_tokens"].to_pylist(), np.int64)
        self._lengths.append(np.array(pc.list_value_length(rows["input_ids"]).to_pylist(), np.int32))
        self._train.append(train)
        self._learnt["train"] += int(learnt[train].sum())
        self._learnt["test"] += int(learnt[~train].sum())
        self._verdicts.update((split, verdict) for verdict, _, split, *_ in ledger)

    def write(self, folder: Path, limit: int) -> dict[str, Any]:
        """Write statistics.json and return what it says."""
        import numpy as np

        lengths = np.concatenate([*self._lengths, np.zeros(0, np.int32)])
        train = np.concatenate([*self._train, np.zeros(0, bool)])
        width = -(-(int(lengths.max(initial=0)) + 1) // BINS)
        found: dict[str, Any] = {"limit": limit, "width": width, "splits": {}}
        for split, there in (("train", lengths[train]), ("test", lengths[~train])):
            ordered = np.sort(there)
            found["splits"][split] = {
                "rows": len(there),
                "tokens": int(there.sum(dtype=np.int64)),
                "learnt_tokens": self._learnt[split],
                "shortened": self._verdicts[split, "changed"],
                "lost": self._verdicts[split, "lost"],
                "shortest": int(ordered[0]) if len(ordered) else 0,
                "median": int(ordered[(len(ordered) - 1) // 2]) if len(ordered) else 0,
                "longest": int(ordered[-1]) if len(ordered) else 0,
                "rows_by_length": np.bincount(there // width).tolist(),
            }
        (folder / STATISTICS).write_text(json.dumps(found))
        return found

    def training_rows(self) -> tuple[list[int], list[int]]:
        """Tokens of each training row, and its number in the file."""
        import numpy as np

        train = np.concatenate([*self._train, np.zeros(0, bool)])
        lengths = np.concatenate([*self._lengths, np.zeros(0, np.int32)])
        return lengths[train].tolist(), np.flatnonzero(train).tolist()


def read_statistics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATISTICS).read_text())


def filled(statistics: Mapping[str, Any], capacity: int, rows: int) -> float:
    """Which share of `capacity` tokens a forward pass will hold, when `rows` training rows at a time are packed.

    Rows are drawn at random, and each goes, longest first, into the fullest pass that still holds it.
    """
    by_length, width = statistics["splits"]["train"]["rows_by_length"], statistics["width"]
    if not any(by_length):
        return 0.0
    rows = min(rows, SAMPLE)
    draw = random.Random(0)
    tokens = passes = 0
    for _ in range(max(1, SAMPLE // rows // 4)):
        lengths = draw.choices([n * width for n in range(len(by_length))], by_length, k=rows)
        tokens += sum(min(length, capacity) for length in lengths)
        passes += _best_fit(lengths, capacity)
    return tokens / (passes * capacity)


def _best_fit(lengths: list[int], capacity: int) -> int:
    """How many passes it takes."""
    left: list[int] = []  # ascending: what each pass can still hold
    for length in sorted(lengths, reverse=True):
        place = bisect.bisect_left(left, length)
        room = left.pop(place) if place < len(left) else max(capacity, length)
        bisect.insort(left, room - length)
    return len(left)


def lines(statistics: Mapping[str, Any]) -> Iterator[str]:
    """One line a split."""
    for split, s in statistics["splits"].items():
        if s["rows"]:
            yield (
                f"{split}: {s['rows']:,} rows, {s['tokens']:,} tokens, {s['learnt_tokens'] / s['tokens']:.1%} learnt; "
                f"{s['shortest']:,} to {s['longest']:,} tokens a row, median {s['median']:,}, limit "
                f"{statistics['limit']:,}; {s['shortened']:,} shortened, {s['lost']:,} lost"
            )


def markdown(statistics: Mapping[str, Any], micro_batch_tokens: int, batch_size: int) -> Iterator[str]:
    """The numbers for the Prefect UI."""
    yield "| | rows | tokens | learnt | shortest | median | longest | shortened | lost |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for split, s in statistics["splits"].items():
        yield (
            f"| {split} | {s['rows']:,} | {s['tokens']:,} | {s['learnt_tokens'] / max(1, s['tokens']):.1%} | "
            f"{s['shortest']:,} | {s['median']:,} | {s['longest']:,} | {_share(s, 'shortened')} | {_share(s, 'lost')} |"
        )
    yield ""
    yield packing(statistics, micro_batch_tokens, batch_size) + "\n"


def packing(statistics: Mapping[str, Any], micro_batch_tokens: int, batch_size: int) -> str:
    """A sentence about how full forward passes will be."""
    limit = statistics["limit"]
    step, best = filled(statistics, micro_batch_tokens, batch_size), filled(statistics, limit, SAMPLE)
    return (
        f"A forward pass of {micro_batch_tokens:,} tokens will be {step:.0%} full with {batch_size:,} rows a step; "
        f"sequences of {limit:,} tokens packed from all rows would be {best:.0%} full."
    )


def _share(split: Mapping[str, Any], what: str) -> str:
    """A count, and its share of the rows that came in."""
    count, came = split[what], split["rows"] + split["lost"]
    return f"{count:,} ({count / came:.1%})" if count else "0"
