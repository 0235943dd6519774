"""The rows to learn, out of the tokenization stage's Parquet file."""

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from tasks.errors import UserError
from tasks.training.packing import IGNORED


def read_rows(file: Path) -> Dataset:
    """The training split's `input_ids` and `labels`, in the file's order.

    Raises:
        UserError: there is no training row, or none of them holds a token to learn.
    """
    table = pq.read_table(file, columns=["input_ids", "labels"], filters=[("split", "==", "train")])
    if not len(table):
        raise UserError("there is no training row: every row was held out, dropped or unusable")
    labels = pc.list_flatten(table["labels"])
    if not pc.any(pc.not_equal(labels, IGNORED)).as_py():
        raise UserError(
            "no training row has a token to learn: all labels are masked. Check formatting.completion, and "
            "tokenization.max_length, which may have cut the answers off"
        )
    return Dataset(table)
