"""Scores are what the rows say, and the held-out rows are read as training read them."""

import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import METRICS, EvaluationConfig
from tasks.download.schema import ROW_SCHEMA
from tasks.errors import UserError
from tasks.evaluation.compare import paired_intervals, smallest_gains
from tasks.evaluation.rows import held_out, prompt_length, seen_rows
from tasks.evaluation.scores import health, score
from tasks.evaluation.slices import LENGTH, SHORTENED, add_slices
from tasks.formatting.schema import PROMPT_SCHEMA
from tasks.store.ledger import Ledger
from tasks.text import answer_text
from tasks.tokenization.schema import TOKEN_SCHEMA

BOTH = ("base", "tuned")


def rows(base: str, tuned: str, references: list[str], prompt: str = "") -> list[dict[str, Any]]:
    row = {"base": base, "tuned": tuned, "references": references, "prompt": prompt, "group": None}
    row |= {LENGTH: "all", SHORTENED: "no"}
    row |= {"base_loss": 3.0, "tuned_loss": 2.5}
    return [{"id": f"r{n}", **row, "base_ended": False, "tuned_ended": n > 0} for n in range(3)]


def config(*metrics: str) -> EvaluationConfig:
    return EvaluationConfig(metrics=list(metrics))


def test_the_best_reference_counts(tmp_path: Path) -> None:
    answers = rows("nothing alike", "the cat sat", ["a dog ran off", "the cat sat"])
    scores = {s["metric"]: s for s in score(answers, BOTH, config(*METRICS), tmp_path)}
    assert list(scores) == list(METRICS)
    assert (scores["loss"]["base"], scores["loss"]["difference"], scores["loss"]["high"]) == (3, -0.5, -0.5)
    for name in set(METRICS) - {"chrf", "loss"}:
        assert (scores[name]["base"], scores[name]["tuned"]) == (0, 1)
        assert scores[name]["difference"] == scores[name]["low"] == 1
    assert scores["chrf"]["tuned"] == 1
    assert answers[0]["tuned_rouge2"] == 1


def test_a_loss_that_is_no_number_is_named_with_its_row(tmp_path: Path) -> None:
    answers = rows("a", "a", ["a"])
    answers[1]["tuned_loss"] = float("inf")
    with pytest.raises(UserError, match="the loss of tuned on row 'r1' is no finite number"):
        score(answers, BOTH, config("loss"), tmp_path)


def test_rouge_l_by_hand(tmp_path: Path) -> None:
    # longest common subsequence "police the gunman": 3 of 4 words on both sides
    answers = rows("police ended the gunman", "police ended the gunman", ["police killed the gunman"])
    assert score(answers, BOTH, config("rougeL"), tmp_path)[0]["base"] == pytest.approx(0.75)


def test_metrics_are_computed_in_the_order_asked_and_no_others(tmp_path: Path) -> None:
    answers = rows("a", "a", ["a"])
    assert [s["metric"] for s in score(answers, BOTH, config("token_f1", "rouge1"), tmp_path)] == ["token_f1", "rouge1"]
    assert "base_rougeL" not in answers[0] and "base_exact_match" not in answers[0]


def test_a_killed_evaluation_leaves_temporary_files_in_its_own_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "the machine's"))  # missing, so nothing can be made in it
    score(rows("a", "a", ["a"]), BOTH, config("rouge1"), tmp_path)
    assert not any(tmp_path.iterdir())


def test_health_is_a_mean_over_rows(tmp_path: Path) -> None:
    answers = rows("", "one two three four five six", ["one two three"])
    score(answers, BOTH, config("rouge1"), tmp_path)
    assert health(answers, BOTH) == {
        "empty": {"base": 1, "tuned": 0},
        "never_ending": {"base": 1, "tuned": pytest.approx(1 / 3)},
        "repeating": {"base": 0, "tuned": 0},
        "copied": {"base": 0, "tuned": 0},
        "length": {"base": 0, "tuned": 2},
    }


def intervals(differences: list[float], groups: list[str | None] | None = None) -> Any:
    made = np.array(differences)[:, None]
    return paired_intervals(made, groups or [None] * len(made), 0.95, seed=0)[0]


def test_one_group_says_nothing_about_others() -> None:
    assert intervals([0.2]) == (pytest.approx(0.2), None, None)
    assert intervals([0.2, 0.4], ["a", "a"]) == (pytest.approx(0.3), None, None)


def test_the_interval_covers_no_difference_when_there_is_none() -> None:
    difference, low, high = intervals([0.1, -0.1, -0.1, 0.1] * 10)
    assert difference == pytest.approx(0)
    assert low < 0 < high
    assert intervals([0.1] * 40)[1] == pytest.approx(0.1)


def test_rows_of_one_group_are_drawn_together() -> None:
    """Ten rows that say the same are one observation: the interval is as wide as that of the groups' means."""
    means = np.random.default_rng(1).normal(0.1, 1, 40).tolist()
    names = [f"g{n}" for n in range(40)]
    alone = intervals(means)
    repeated = intervals([mean for mean in means for _ in range(10)], [name for name in names for _ in range(10)])
    assert repeated == pytest.approx(alone)
    apart = intervals([mean for mean in means for _ in range(10)])
    assert apart[2] - apart[1] < 0.5 * (repeated[2] - repeated[1])


def test_the_smallest_gain_is_shown_in_four_of_five_test_sets() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 1, (200, 1))
    (gain,) = smallest_gains(noise, [None] * 200, 0.95)
    assert gain == pytest.approx(2.8 * noise.std() / 200**0.5, rel=0.02)
    shown = [intervals((generator.normal(gain, 1, 200)).tolist())[1] > 0 for _ in range(100)]
    assert 0.7 <= np.mean(shown) <= 0.9
    assert smallest_gains(np.repeat(noise, 5, axis=0), [f"g{n}" for n in range(200) for _ in range(5)], 0.95) == [
        pytest.approx(gain)
    ]
    assert smallest_gains(noise, ["one"] * 200, 0.95) == [None]


def test_slices_are_scored_apart(tmp_path: Path) -> None:
    """By a column, whatever type it has, by length in quarters, and by what the ledger calls shortened."""
    rows = [{"id": f"r{n}", "split": "test", "row": json.dumps({"topic": ["a", None, 3][n % 3]})} for n in range(12)]
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), tmp_path / "rows.parquet")
    ledger = Ledger("tokenize", tmp_path)
    ledger.add("changed", "r1", "test", "shortened", "")
    ledger.write()
    answers = [
        {"id": f"r{n}", "group": None, "prompt_ids": [0] * n, "base_loss": 2.0, "tuned_loss": 2.0 - n}
        for n in range(12)
    ]
    add_slices(answers, tmp_path, tmp_path, ["topic"])
    for row in answers:
        row |= {"prompt": "", "references": ["a"], **{f"{who}{more}": "a" for who in BOTH for more in ("", "_ended")}}
    scored = score(answers, BOTH, EvaluationConfig(metrics=["loss"], slices=["topic"]), tmp_path)
    found = {(line["slice"], line["value"]): (line["rows"], line["difference"]) for line in scored}
    assert found == {
        (None, None): (12, -5.5),
        ("topic", "a"): (4, -4.5),
        ("topic", "null"): (4, -5.5),
        ("topic", "3"): (4, -6.5),
        **{("prompt_tokens", f"{n}–{n + 2}"): (3, -n - 1.0) for n in (0, 3, 6, 9)},
        ("shortened", "yes"): (1, -1.0),
        ("shortened", "no"): (11, pytest.approx(-65 / 11)),
    }


def test_groups_count_by_their_rows() -> None:
    mean, low, high = intervals([1.0] * 98 + [0.0, 0.0], ["large"] * 98 + [None, ""])
    assert mean == pytest.approx(0.98) and low == 0 and high == 1


@pytest.mark.parametrize(
    ("labels", "length"), [([-100, -100, 5, 6], 2), ([-100, 4, -100, 6], 3), ([5], 0), ([-100], 1)]
)
def test_the_prompt_ends_before_the_last_answer(labels: list[int], length: int) -> None:
    assert prompt_length(labels) == length


@pytest.mark.parametrize(
    ("answer", "ending", "kept"),
    [(" a b\n\n### End", "\n\n### End", "a b"), ("a ### End b", "\n\n### End", "a"), (" a ", "", "a")],
)
def test_an_answer_is_cut_where_the_ending_begins(answer: str, ending: str, kept: str) -> None:
    assert answer_text(answer, ending) == kept


def tables(folder: Path, split: str) -> tuple[Path, Path]:
    ids = [f"r{n}" for n in range(10)]
    tokens = [{"id": id, "split": split, "input_ids": [1, 2, 3], "labels": [-100, -100, 3]} for id in ids]
    prompts = [{"id": id, "split": split, "references": [id]} for id in reversed(ids)]
    pq.write_table(pa.Table.from_pylist(tokens, TOKEN_SCHEMA), folder / "tokens.parquet")
    pq.write_table(pa.Table.from_pylist(prompts, PROMPT_SCHEMA), folder / "prompts.parquet")
    return folder / "tokens.parquet", folder / "prompts.parquet"


def test_held_out_rows_keep_their_references(tmp_path: Path) -> None:
    found = held_out(*tables(tmp_path, "test"), max_rows=0)
    assert [row["references"] for row in found] == [[row["id"]] for row in found]
    assert found[0]["prompt_ids"] == [1, 2]


def test_a_limit_takes_the_same_rows_every_time(tmp_path: Path) -> None:
    files = tables(tmp_path, "test")
    few = {row["id"] for row in held_out(*files, max_rows=3)}
    assert few < {row["id"] for row in held_out(*files, max_rows=5)}
    assert len(few) == 3


def test_a_prompt_with_another_answer_counts_unless_both_were_trained_on_it(tmp_path: Path) -> None:
    tokens, _ = tables(tmp_path, "test")
    texts = [{"id": f"r{n}", "prompt": f"question {n}", "completion": "yes"} for n in range(10)]

    def prompts(name: str, training: list[dict[str, str]]) -> Path:
        sides = [row | {"split": "test", "references": []} for row in texts]
        sides += [row | {"id": f"t{n}", "split": "train", "references": []} for n, row in enumerate(training)]
        pq.write_table(pa.Table.from_pylist(sides, PROMPT_SCHEMA), tmp_path / name)
        return tmp_path / name

    champion = prompts("champion", [texts[2], texts[3] | {"completion": "no"}, texts[4] | {"completion": "no"}])
    assert seen_rows(tokens, prompts("own", []), [champion]) == ({"r2", "r3", "r4"}, 10)
    own = prompts("own", [texts[4] | {"completion": "maybe"}])
    assert seen_rows(tokens, own, [champion]) == ({"r2", "r3"}, 10)
    rows = held_out(tokens, own, 0, {"r2", "r3"})
    assert [row["id"] for row in rows] == ["r0", "r1", *(f"r{n}" for n in range(4, 10))]


def test_no_held_out_row_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no held-out row is left"):
        held_out(*tables(tmp_path, "train"), max_rows=0)


@pytest.mark.parametrize("module", ["tasks.training.worker", "tasks.evaluation.worker", "tasks.promotion.clean_room"])
def test_a_child_that_waits_for_its_job_imports_what_exists(module: str) -> None:
    with mock.patch.dict(os.environ):
        importlib.import_module(module).prepare()
