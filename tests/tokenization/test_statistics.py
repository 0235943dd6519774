"""What people are told about tokens is what is in the file."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import TokenizationConfig
from tasks.formatting.schema import PROMPT_SCHEMA
from tasks.tokenization.encode import write_tokens
from tasks.tokenization.fill import filled
from tasks.tokenization.preview import lines as preview_lines
from tasks.tokenization.preview import markdown, read_preview
from tasks.tokenization.statistics import lines, read_statistics
from tests.tiny import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of 40 rows, of which two are too long and one of these is shortened."""
    folder = tmp_path_factory.mktemp("tokens")
    model = make_model(folder / "model")
    rows = [made(n, f"Read this {n}. " * (1 + n % 9)) for n in range(38)]
    rows += [made(38, "x" * 300) | {"input_start": 0, "input_end": 300}, made(39, "y" * 300)]
    pq.write_table(pa.Table.from_pylist(rows, PROMPT_SCHEMA), folder / "prompts.parquet", row_group_size=7)
    write_tokens(folder / "prompts.parquet", "add", model, 200, TokenizationConfig(), folder)
    return folder


def made(number: int, prompt: str) -> dict[str, Any]:
    split = "test" if number % 4 == 0 else "train"
    return {
        "id": f"r{number}",
        "split": split,
        "prompt": prompt,
        "completion": "```\n牛奶 is learnt.",
        "references": [],
    }


def test_numbers_are_those_of_the_file(folder: Path) -> None:
    tokens = pq.read_table(folder / "tokens.parquet").to_pylist()
    found = read_statistics(folder)
    for split, numbers in found["splits"].items():
        there = [row for row in tokens if row["split"] == split]
        lengths = sorted(len(row["input_ids"]) for row in there)
        assert numbers["rows"] == len(there) == sum(numbers["rows_by_length"])
        assert numbers["tokens"] == sum(lengths)
        assert numbers["learnt_tokens"] == sum(label != -100 for row in there for label in row["labels"])
        assert (numbers["shortest"], numbers["longest"]) == (lengths[0], lengths[-1])
        assert numbers["median"] == lengths[(len(lengths) - 1) // 2]
        assert [n for n, rows in enumerate(numbers["rows_by_length"]) for _ in range(rows)] == lengths
    assert [found["splits"][split]["shortened"] for split in ("train", "test")] == [1, 0]
    assert [found["splits"][split]["lost"] for split in ("train", "test")] == [1, 0]
    assert next(lines(found)).startswith("train: 29 rows, ")


def test_preview_is_what_the_trainer_reads(folder: Path) -> None:
    rows = {row["label"]: row for row in read_preview(folder)}
    assert set(rows) == {"first", "shortest", "median", "longest"} or set(rows) == {"shortest", "median", "longest"}
    tokens = pq.read_table(folder / "tokens.parquet").to_pylist()
    for row in rows.values():
        there = next(t for t in tokens if t["id"] == row["id"])
        assert there["split"] == "train"
        assert (row["tokens"], row["learnt"]) == (len(there["labels"]), sum(label != -100 for label in there["labels"]))
        (masked, prompt), (learnt, answer) = row["parts"]
        assert (masked, learnt) == ("masked", "learnt")
        assert prompt.startswith("<|begin_of_text|>")
        assert answer == "```\n牛奶 is learnt.<|eot_id|>"
    assert rows["longest"]["tokens"] == 200


def test_preview_for_log_and_ui(folder: Path) -> None:
    (line,) = preview_lines(folder)
    assert "«```⏎牛奶 is learnt.<|eot_id|>»" in line and "\n" not in line
    text = "\n".join(markdown(folder))
    assert "**learnt:**\n\n````text\n```\n牛奶 is learnt.<|eot_id|>\n````" in text  # no text ends its block


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40), capacity=st.integers(100, 1000))
def test_a_pass_is_never_more_than_full(lengths: list[int], capacity: int) -> None:
    by_length = [0] * 301
    for length in lengths:
        by_length[length] += 1
    share = filled({"width": 1, "splits": {"train": {"rows_by_length": by_length}}}, capacity, 8)
    assert 0 < share <= 1


def test_rows_that_fit_exactly_fill_a_pass() -> None:
    statistics = {"width": 1, "splits": {"train": {"rows_by_length": [0] * 25 + [7]}}}
    assert filled(statistics, 100, 8) == 1.0
    assert filled(statistics, 125, 4) == pytest.approx(0.8)
    assert filled({"width": 1, "splits": {"train": {"rows_by_length": []}}}, 100, 8) == 0.0
