"""The rows to learn, out of the tokenization stage's Parquet file."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from tasks.errors import UserError
from tasks.training.packing import IGNORED

HELD_BACK = "held back for validation"


def read_rows(file: Path) -> Dataset:
    """The training split's `input_ids` and `labels`, in the file's order.

    Raises:
        UserError: there is no training row, or none of them holds a token to learn.
    """
    return _data_set(_training_rows(file))


def read_divided(file: Path, share: float) -> tuple[Dataset, Dataset, list[str]]:
    """The training split without the rows held back for validation, those rows, and their ids.

    A row's side follows from a hash of its group, or else its id, so it never changes as the data grows.

    Args:
        share: of the training rows to hold back, a fraction of 1.
    Raises:
        UserError: one of the two has no row, or none that holds a token to learn.
    """
    table = _training_rows(file, "id", "group")
    names = pc.coalesce(table["group"], table["id"]).to_pylist()
    back = pa.array([_held_back(name, share) for name in names], pa.bool_())
    held = table.filter(back)
    if not len(held) or len(held) == len(table):
        raise UserError(
            f"training.validation_share {share:g} holds back {len(held):,} of {len(table):,} training rows: give a "
            f"{'larger' if not len(held) else 'smaller'} share or more rows (those of one group go together)"
        )
    return _data_set(table.filter(pc.invert(back))), _data_set(held, "validation"), held["id"].to_pylist()


def _held_back(name: str, share: float) -> bool:
    """By a hash of its own: the one that chose the training rows would hold back none of them, or all."""
    digest = hashlib.sha256(f"validation {name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64 < share


def _training_rows(file: Path, *names: str) -> pa.Table:
    table = pq.read_table(file, columns=[*names, "input_ids", "labels"], filters=[("split", "==", "train")])
    if not len(table):
        raise UserError("there is no training row: every row was held out, dropped or unusable")
    return table


def _data_set(table: pa.Table, kind: str = "training") -> Dataset:
    labels = pc.list_flatten(table["labels"])
    if not pc.any(pc.not_equal(labels, IGNORED)).as_py():
        raise UserError(
            f"no {kind} row has a token to learn: all labels are masked. Check formatting.completion, and "
            "tokenization.max_length, which may have cut the answers off"
        )
    return Dataset(table.select(["input_ids", "labels"]))
