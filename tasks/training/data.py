"""The training and validation rows, from the tokenization stage's Parquet file."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from tasks.errors import UserError
from tasks.tokenization.schema import IGNORE_INDEX

HELD_BACK = "held back for validation"
"""The reason in the ledger."""


def read_rows(file: Path, validation_share: float = 0.0) -> tuple[Dataset, Dataset | None, list[str]]:
    """`input_ids` and `labels` of the training split in the file's order, divided into training and validation rows.

    A hash of a row's group, or else of its id, decides whether it is for validation. So this never changes as the data
    grows.

    Args:
        validation_share: of the training rows, a fraction of 1.
    Returns:
        training rows, validation rows (None where the share is 0), and the ids of the latter.
    Raises:
        UserError: one of the two has no row, or none with a target token.
    """
    names = ["id", "group"] if validation_share else []
    table = pq.read_table(file, columns=[*names, "input_ids", "labels"], filters=[("split", "==", "train")])
    if not len(table):
        raise UserError("there is no training row: all rows are in the test split, lost or left out")
    if not validation_share:
        return _data_set(table), None, []
    groups = pc.coalesce(table["group"], table["id"]).to_pylist()
    # with a prefix: by the hash that decides the split, all training rows would be on the same side
    digests = (hashlib.sha256(f"validation {name}".encode("utf-8", "surrogatepass")).digest() for name in groups)
    chosen = pa.array([int.from_bytes(digest[:8]) / 2**64 < validation_share for digest in digests], pa.bool_())
    validation = table.filter(chosen)
    if not len(validation) or len(validation) == len(table):
        raise UserError(
            f"training.validation_share {validation_share:g} holds back {len(validation):,} of {len(table):,} training "
            f"rows: give a {'smaller' if len(validation) else 'larger'} share or more rows (those of one group go "
            "together)"
        )
    training = _data_set(table.filter(pc.invert(chosen)))
    return training, _data_set(validation, "validation"), validation["id"].to_pylist()


def _data_set(table: pa.Table, kind: str = "training") -> Dataset:
    labels = pc.list_flatten(table["labels"])
    if not pc.any(pc.not_equal(labels, IGNORE_INDEX)).as_py():
        raise UserError(
            f"no {kind} row has a target token: all labels are masked. Check formatting.completion, and "
            "tokenization.max_length, which may have cut the answers off"
        )
    return Dataset(table.select(["input_ids", "labels"]))
