"""Losses and answers are kept in the store, so that the next evaluation computes only those of new rows.

    STORE/artifacts/answers-<key>/answers.parquet    one folder for each model: a base, or an adapter on it

The key has everything that decides an answer except the prompt's tokens. A damaged folder is not read; its answers are
computed again.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.evaluation.facts import AnswerFacts
from tasks.store.artifact import check_folder, locked, write_folder
from tasks.store.identity import Identity
from tasks.store.manifest import DamagedArtifact
from tasks.store.root import store_root

ANSWERS = "answers.parquet"
SCHEMA = pa.schema(
    [
        ("tokens", pa.string()),  # digest of the model's input
        ("loss", pa.float64()),
        ("answer", pa.list_(pa.int32())),  # token ids, end of sequence left out
    ]
)


class Kept:
    """The kept losses and answers of one model.

    Args:
        identity: `tasks.evaluation.identity.answers_identity`.
        report: is called with the number of kept rows, and if the folder is damaged.
    """

    def __init__(self, identity: Identity, report: Callable[[str], None]) -> None:
        self.identity, self.report = identity, report
        self.folder = store_root() / "artifacts" / identity.key

    def all(
        self, column: str, asked: Sequence[Sequence[list[int]]], compute: Callable[[list[int]], Sequence[Any]]
    ) -> list[Any]:
        """The loss or answer of each row: the kept one, or the result of `compute` for the numbers of the other rows.

        Args:
            column: `loss` or `answer`.
            asked: the model's input for each row, as lists of token ids.
        """
        table = self._table()
        rows = zip(table["tokens"].to_pylist(), table[column].to_pylist(), strict=True)
        known = {digest: value for digest, value in rows if value is not None}
        digests = [_digest(ids) for ids in asked]
        missing = list({digest: n for n, digest in enumerate(digests) if digest not in known}.values())
        self.report(f"{_PLURAL[column]} kept before: {len(digests) - len(missing):,} of {len(digests):,}")
        if missing:
            new = {digests[n]: value for n, value in zip(missing, compute(missing), strict=True)}
            known |= new
            self._add(column, new)
        return [known[digest] for digest in digests]

    def _table(self) -> pa.Table:
        if self.folder.exists():
            try:
                check_folder(self.folder)
                return pq.read_table(self.folder / ANSWERS, schema=SCHEMA)
            except DamagedArtifact as error:
                self.report(f"what was kept is computed again: {error}")
        return SCHEMA.empty_table()

    def _add(self, column: str, new: dict[str, Any]) -> None:
        rows = [{"tokens": digest, column: value} for digest, value in new.items()]
        with locked(self.identity.key):
            table = pa.concat_tables(
                [self._table(), pa.Table.from_pylist(rows, SCHEMA)]
            )  # read again: others may have written

            def write(folder: Path) -> AnswerFacts:
                pq.write_table(table, folder / ANSWERS, compression="zstd")
                return AnswerFacts(rows=len(table))

            write_folder(self.identity, self.folder, write)


_PLURAL = {"loss": "losses", "answer": "answers"}


def _digest(lists: Sequence[list[int]]) -> str:
    digest = hashlib.sha256()
    for ids in lists:
        digest.update(len(ids).to_bytes(8) + np.asarray(ids, np.int32).tobytes())
    return digest.hexdigest()
