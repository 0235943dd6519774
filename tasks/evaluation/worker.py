"""A child process that answers the held-out rows twice and scores both."""

import functools
import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.errors import UserError
from tasks.evaluation.metrics import check_references, try_own
from tasks.evaluation.schema import HEALTH, PREDICTIONS, SCORE_SCHEMA, SCORES, prediction_schema
from tasks.process.child import main
from tasks.process.quiet import silence
from tasks.tokenization.schema import NOT_LEARNT


def evaluate(job: dict[str, Any]) -> None:
    """Job: tokens, prompts (files), ending, eos, model, adapter, output (folders), training, config (fields)."""
    silence()
    from tasks.evaluation import generate

    config = job["config"]
    rows = held_out(Path(job["tokens"]), Path(job["prompts"]), config["max_rows"])
    check_references(rows, config["metrics"])
    try_own(rows[0], config["metrics"])
    began = time.monotonic()
    model = generate.load(Path(job["model"]), Path(job["adapter"]), job["training"])
    tokenizer = generate.tokenizer_of(Path(job["model"]))
    print(f"base and adapter loaded in {time.monotonic() - began:.0f} s; {len(rows):,} held-out rows")
    stop = generate.stop_ids(Path(job["model"]), job["eos"])
    prompts = [row["prompt_ids"] or stop[:1] for row in rows]  # without one, an answer begins where the last one ended
    options = (stop, config["max_new_tokens"], config["batch_tokens"])
    seconds = {}
    for who in ("base", "tuned"):
        began = time.monotonic()
        report = functools.partial(print, f"{who}:")
        if who == "base":
            with model.disable_adapter():
                ids = generate.answer(model, prompts, *options, report)
        else:
            ids = generate.answer(model, prompts, *options, report)
        seconds[who] = round(time.monotonic() - began, 2)
        for row, answer in zip(rows, ids, strict=True):
            text = tokenizer.decode(answer, skip_special_tokens=True)
            row[who] = until_ending(text, job["ending"])
            row[f"{who}_ended"] = len(answer) < config["max_new_tokens"] or row[who] != text.strip()
    for row in rows:
        row["prompt"] = tokenizer.decode(row.pop("prompt_ids"))
    output = Path(job["output"])
    scores = score(rows, config, output)
    pq.write_table(pa.Table.from_pylist(rows, prediction_schema(config["metrics"])), output / PREDICTIONS)
    pq.write_table(pa.Table.from_pylist(scores, SCORE_SCHEMA), output / SCORES)
    (output / "evaluation.json").write_text(
        json.dumps(
            {
                "rows": len(rows),
                "scores": scores,
                "health": health(rows),
                "generation_seconds": seconds,
                "confidence": config["confidence"],
                "stop": stop,
            }
        )
    )


def held_out(tokens: Path, prompts: Path, max_rows: int) -> list[dict[str, Any]]:
    """The held-out rows with their prompt as token ids; with max_rows the same ones in every run.

    Raises:
        UserError: no held-out row is left.
    """
    test = pc.field("split") == "test"
    ids = pq.read_table(tokens, filters=test)
    references = {
        row["id"]: row["references"]
        for row in pq.read_table(prompts, columns=["id", "references"], filters=test).to_pylist()
    }
    rows = ids.to_pylist()
    if not rows:
        raise UserError("evaluation: no held-out row is left after tokenization; the ledger says why each was lost.")
    if max_rows:
        rows = sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).digest())[:max_rows]
    return [
        {
            "id": row["id"],
            "prompt_ids": row["input_ids"][: prompt_length(row["labels"])],
            "references": references[row["id"]],
        }
        for row in rows
    ]


def prompt_length(labels: list[int]) -> int:
    """Tokens before the last answer."""
    last = len(labels)
    while last > 0 and labels[last - 1] != NOT_LEARNT:
        last -= 1
    return last


def until_ending(answer: str, ending: str) -> str:
    mark = ending.strip()
    return (answer.split(mark)[0] if mark else answer).strip()


def health(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Figure → base and tuned → mean over rows, of rows that `score` has seen."""
    return {
        name: {who: sum(row[f"{who}_{name}"] for row in rows) / len(rows) for who in ("base", "tuned")}
        for name in HEALTH
    }


def score(rows: list[dict[str, Any]], config: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Score both answers of every row (written into the rows) and compare them.

    Args:
        folder: for temporary files; one that is removed when this process is killed.
    """
    from tasks.evaluation.compare import paired_interval
    from tasks.evaluation.metrics import scores as scores_of

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for who in ("base", "tuned"):
            for name, values in scores_of(rows, who, config["metrics"], scratch).items():
                for row, value in zip(rows, values, strict=True):
                    row[f"{who}_{name}"] = value
    scores = []
    for name in config["metrics"]:
        base, tuned = ([row[f"{who}_{name}"] for row in rows] for who in ("base", "tuned"))
        difference, low, high = paired_interval(base, tuned, config["confidence"], config["seed"])
        scores.append(
            {
                "metric": name,
                "rows": len(rows),
                "base": sum(base) / len(rows),
                "tuned": sum(tuned) / len(rows),
                "difference": difference,
                "low": low,
                "high": high,
            }
        )
    return scores


if __name__ == "__main__":
    main(evaluate)
