"""Statistics of the tokens: number of rows and tokens, lengths, and the learnt share."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.tokenization.facts import STATISTICS

BINS = 2048
"""Most bins of the length histogram. A bin is one token wide if that is enough."""


class Statistics:
    """Counts rows while they are written: 9 bytes a row."""

    def __init__(self) -> None:
        import numpy as np

        self._lengths, self._train = [np.zeros(0, np.int32)], [np.zeros(0, bool)]
        self._learnt: Counter[str] = Counter()
        self._verdicts: Counter[tuple[str, str]] = Counter()

    def add(self, rows: Any, ledger: list[list[str]]) -> None:
        """Count a batch of rows, and the ledger lines of rows that were shortened or lost."""
        import numpy as np
        import pyarrow.compute as pc

        splits = rows["split"].to_pylist()
        self._lengths.append(np.array(pc.list_value_length(rows["input_ids"]).to_pylist(), np.int32))
        self._train.append(np.array([split == "train" for split in splits], bool))
        for split, learnt in zip(splits, rows["learnt_tokens"].to_pylist(), strict=True):
            self._learnt[split] += learnt
        self._verdicts.update((split, verdict) for verdict, _, split, *_ in ledger)

    def write(self, folder: Path, limit: int) -> dict[str, Any]:
        """Write statistics.json and return what it says."""
        import numpy as np

        lengths, train = np.concatenate(self._lengths), np.concatenate(self._train)
        width = -(-(int(lengths.max(initial=0)) + 1) // BINS)
        found: dict[str, Any] = {"limit": limit, "width": width, "splits": {}}
        for split, there in (("train", lengths[train]), ("test", lengths[~train])):
            ordered = np.sort(there) if len(there) else np.zeros(1, np.int32)
            found["splits"][split] = {
                "rows": len(there),
                "tokens": int(there.sum(dtype=np.int64)),
                "learnt_tokens": self._learnt[split],
                "shortened": self._verdicts[split, "changed"],
                "lost": self._verdicts[split, "lost"],
                "shortest": int(ordered[0]),
                "median": int(ordered[(len(ordered) - 1) // 2]),
                "longest": int(ordered[-1]),
                "rows_by_length": np.bincount(there // width).tolist(),
            }
        (folder / STATISTICS).write_text(json.dumps(found))
        return found

    def training_rows(self) -> tuple[Any, Any]:
        """Tokens of each training row, and its number in the file, as arrays."""
        import numpy as np

        train = np.concatenate(self._train)
        return np.concatenate(self._lengths)[train], np.flatnonzero(train)


def read_statistics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATISTICS).read_text())


def lines(statistics: Mapping[str, Any]) -> Iterator[str]:
    """One line a split."""
    for split, s in statistics["splits"].items():
        if s["rows"]:
            yield (
                f"{split}: {s['rows']:,} rows, {s['tokens']:,} tokens, {s['learnt_tokens'] / s['tokens']:.1%} learnt; "
                f"{s['shortest']:,} to {s['longest']:,} tokens a row, median {s['median']:,}, limit "
                f"{statistics['limit']:,}; {s['shortened']:,} shortened, {s['lost']:,} lost"
            )


def markdown(statistics: Mapping[str, Any]) -> Iterator[str]:
    """The statistics for the Prefect UI."""
    yield "| | rows | tokens | learnt | shortest | median | longest | shortened | lost |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for split, s in statistics["splits"].items():
        yield (
            f"| {split} | {s['rows']:,} | {s['tokens']:,} | {s['learnt_tokens'] / max(1, s['tokens']):.1%} | "
            f"{s['shortest']:,} | {s['median']:,} | {s['longest']:,} | {_share(s, 'shortened')} | {_share(s, 'lost')} |"
        )


def _share(split: Mapping[str, Any], what: str) -> str:
    """A count and its share of the stage's input rows."""
    count, came = split[what], split["rows"] + split["lost"]
    return f"{count:,} ({count / came:.1%})" if count else "0"
