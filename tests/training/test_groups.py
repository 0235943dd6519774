"""Rows of one group are all for training or all for validation: from the source to the trainer."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.config import DataConfig, FormattingConfig, TokenizationConfig
from tasks.download.formats import blocks
from tasks.download.rows import write_rows
from tasks.formatting.prompts import write_prompts
from tasks.tokenization.encode import write_tokens
from tasks.training.data import read_rows
from tests.tiny import write_jsonl

SHARE = 0.3


def turns(conversations: int, **more: Any) -> list[dict[str, Any]]:
    """Four rows of each conversation, far from one another in the file."""
    return [
        {"id": f"{turn}-{n}", "conversation": f"c{n}", "dialogue": f"Question {turn} of {n}", "summary": str(n), **more}
        for turn in range(4)
        for n in range(conversations)
    ]


HELD_OUT = {"id": "held-out", "conversation": None, "dialogue": "x", "summary": "y", "split": "test"}


def divided(folder: Path, model: Path, rows: list[dict[str, Any]], **fields: Any) -> tuple[set[str], set[str]]:
    """Ids of the training and of the validation rows; `fields` are of `data`."""
    folder.mkdir()
    write_rows(DataConfig(path=str(write_jsonl(folder / "source.jsonl", rows)), **fields), folder)
    write_prompts(folder / "rows.parquet", model, FormattingConfig(), folder)
    write_tokens(folder / "prompts.parquet", "add", model, 512, TokenizationConfig(), folder)
    tokens = folder / "tokens.parquet"
    split = pq.read_table(tokens, columns=["id"], filters=[("split", "==", "train")])["id"].to_pylist()
    rest, validation, ids = read_rows(tokens, SHARE)
    assert len(validation) == len(ids) and len(rest) + len(ids) == len(split)
    return set(split) - set(ids), set(ids)


def conversations(ids: set[str]) -> set[str]:
    return {id.split("-")[1] for id in ids}


@pytest.mark.parametrize("split", [{}, {"split": "train"}], ids=["split by hash", "split by the source"])
def test_a_group_is_never_on_both_sides(tmp_path: Path, tiny_model: Path, split: dict[str, str]) -> None:
    rows = [*turns(40, **split), HELD_OUT] if split else turns(40)
    training, validation = divided(tmp_path / "run", tiny_model, rows, group_column="conversation")
    assert not conversations(training) & conversations(validation)
    assert 4 <= len(conversations(validation)) <= 20  # of 40, or of the about 32 that are not held out
    assert len(validation) == 4 * len(conversations(validation))


def test_groups_keep_their_side_as_the_data_grows(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with a column that comes late, for which download writes its file a second time."""
    training, validation = divided(tmp_path / "few", tiny_model, turns(20), group_column="conversation")
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 16)
    grown = [*turns(40)[::-1], {**turns(41)[40], "late": 1}]
    more_training, more_validation = divided(tmp_path / "many", tiny_model, grown, group_column="conversation")
    assert training < more_training and validation < more_validation
    assert not conversations(more_training) & conversations(more_validation)


@pytest.mark.parametrize("none", [None, ""])
def test_rows_without_a_group_are_chosen_by_their_id(tmp_path: Path, tiny_model: Path, none: str | None) -> None:
    rows = [*turns(40, split="train"), HELD_OUT]
    for row in rows[:-1:2]:  # those of conversations 0, 2, 4, …
        row["conversation"] = none
    grouped = divided(tmp_path / "grouped", tiny_model, rows, group_column="conversation")
    by_id = divided(tmp_path / "by_id", tiny_model, rows)
    alone = [{id for id in side if int(id.split("-")[1]) % 2 == 0} for side in grouped]
    assert alone == [{id for id in side if int(id.split("-")[1]) % 2 == 0} for side in by_id]
    assert conversations(alone[0]) & conversations(alone[1])  # rows without a group are none together
    files = [(tmp_path / name / "rows.parquet").read_bytes() for name in ("grouped", "by_id")]
    assert files[0] != files[1]  # the same rows, but no later stage takes one for the other


def test_columns_of_the_source_are_no_groups_unasked(tmp_path: Path, tiny_model: Path) -> None:
    """Whatever they are called: names that the stages use, and the empty one of a table's index."""
    plain = divided(tmp_path / "plain", tiny_model, turns(20))
    named = turns(20, group="one", group_column="one", **{"": "one"})
    assert divided(tmp_path / "named", tiny_model, named) == plain
    training, validation = divided(
        tmp_path / "asked",
        tiny_model,
        [{**row, "group": row["conversation"], "group_column": 1} for row in turns(40)],
        group_column="group",
    )
    assert not conversations(training) & conversations(validation)
