"""A child process: every model answers the held-out rows, and the answers are scored."""

import contextlib
import functools
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import TRUSTED
from tasks.evaluation.answers.devices import WORTH, divide, gpus
from tasks.evaluation.answers.kept import Kept
from tasks.evaluation.facts import WATCH, EvaluationFacts
from tasks.evaluation.identity import answers_identity
from tasks.evaluation.metrics import check_references, try_own
from tasks.evaluation.rows import rows_to_answer
from tasks.evaluation.schema import (
    FACTS,
    MODELS,
    PREDICTIONS,
    SCORE_SCHEMA,
    SCORES,
    WATCHED,
    EvaluationJob,
    prediction_schema,
)
from tasks.evaluation.scores import health, score
from tasks.evaluation.slices import LENGTH, SHORTENED, add_slices
from tasks.process.child import main
from tasks.process.progress import Progress
from tasks.process.quiet import silence
from tasks.store.model import length_limit
from tasks.text import answer_text
from tasks.tokenization.schema import IGNORE_INDEX


def evaluate(work: dict[str, Any]) -> None:
    """Do an `EvaluationJob`."""
    silence()
    job = EvaluationJob.model_validate(work, context=TRUSTED)
    if job.device:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.device  # before torch looks
    from tasks.evaluation.answers import generate

    config = job.config
    if job.share:
        rows, loaded, stop = pq.read_table(job.share).to_pylist(), _Loaded(job), generate.stop_ids(job.model, job.eos)
        for who in MODELS if job.champion else ("base", "tuned"):
            _ask(loaded, who, rows, job, stop)
        return
    rows, watched, left_out, why_not = rows_to_answer(job)
    everything = [*rows, *watched]
    add_slices(rows, job.tokens.parent, job.rows, config.slices)
    check_references(everything, config.metrics)
    try_own(rows[0], config.metrics)
    loaded, tokenizer = _Loaded(job), generate.tokenizer_of(job.model)
    print(f"{len(rows):,} held-out rows" + (f", {len(watched):,} of watch sets" if watched else ""))
    stop = generate.stop_ids(job.model, job.eos)
    seconds = {}
    champion = job.champion.name if job.champion and not why_not else ""
    models = [who for who in MODELS if who != "champion" or champion]
    began = time.monotonic()
    if len(everything) * config.max_new_tokens >= WORTH and len(devices := gpus(job)) > 1:
        divide(everything, job if champion else job.model_copy(update={"champion": None}), devices)
    divided = (time.monotonic() - began) / len(models)
    for who in models:
        began = time.monotonic()
        _ask(loaded, who, everything, job, stop)
        seconds[who] = round(time.monotonic() - began + divided, 2)
        for row in everything:
            ids = row[who]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            row[who] = answer_text(text, row["ending"])
            row[f"{who}_ended"] = len(ids) < config.max_new_tokens or row[who] != answer_text(text)
    for row in everything:
        row["prompt"] = tokenizer.decode(row["prompt_ids"])
    scores = score(rows, models, config, job.output, watched)
    schema = prediction_schema(config.metrics, models, [*config.slices, LENGTH, SHORTENED])
    pq.write_table(pa.Table.from_pylist(rows, schema), job.output / PREDICTIONS)
    schema = prediction_schema(config.metrics, models, [WATCH])
    pq.write_table(pa.Table.from_pylist(watched, schema), job.output / WATCHED)
    pq.write_table(pa.Table.from_pylist(scores, SCORE_SCHEMA), job.output / SCORES)
    facts = EvaluationFacts(
        rows=len(rows),
        left_out=left_out,
        champion=champion,
        champion_left_out=why_not,
        scores=[line for line in scores if line["slice"] is None],
        watch=[line for line in scores if line["slice"] == WATCH],
        health=health(rows, models),
        generation_seconds=seconds,
        confidence=config.confidence,
        stop=stop,
    )
    (job.output / FACTS).write_text(facts.model_dump_json())


def prepare() -> None:
    """Import what answering and scoring import."""
    silence()
    from tasks.evaluation.answers import generate  # noqa: F401
    from tasks.evaluation.metrics.rouge import rouge  # noqa: F401


class _Loaded:
    """The base with one adapter at a time; it is loaded when it is first needed."""

    def __init__(self, job: EvaluationJob) -> None:
        self.job, self.adapter = job, job.adapter
        self.model: Any = None

    @contextlib.contextmanager
    def model_of(self, who: str) -> Iterator[Any]:
        """The model that answers as `who`; for `base` the adapter is off in the context."""
        from tasks.evaluation.answers import generate

        adapter = (self.job.champion if who == "champion" else None) or self.job.adapter
        if self.model is None:
            began = time.monotonic()
            self.model, self.adapter = generate.load(self.job.model, adapter, self.job.training), adapter
            print(f"base and adapter loaded in {time.monotonic() - began:.0f} s")
        elif who != "base" and adapter != self.adapter:
            self.model, self.adapter = generate.exchange(self.model, adapter, self.job.training), adapter
        with self.model.disable_adapter() if who == "base" else contextlib.nullcontext():
            yield self.model


def _ask(loaded: _Loaded, who: str, rows: list[dict[str, Any]], job: EvaluationJob, stop: list[int]) -> None:
    """Write a model's loss and the token ids of its answer into every row."""
    from torch import cuda, tensor

    from tasks.evaluation.answers import generate
    from tasks.training.packing import Row

    report, config = functools.partial(print, f"{who}:"), job.config
    device = cuda.get_device_name() if cuda.is_available() else "cpu"
    decoding = {"max_new_tokens": config.max_new_tokens, "stop": stop}
    identity = answers_identity(job.digests["model"], job.digests.get(who, ""), device, job.training, decoding)
    kept = Kept(identity, report)
    # a first token that is a target is predicted from an end-of-sequence token, if the model has room for one more
    limit = length_limit(json.loads((job.model / "config.json").read_bytes()))
    before = [stop[:1] if row["labels"][0] != IGNORE_INDEX and len(row["input_ids"]) < limit else [] for row in rows]
    whole = [
        (first + row["input_ids"], [IGNORE_INDEX] * len(first) + row["labels"])
        for first, row in zip(before, rows, strict=True)
    ]
    prompts = [row["prompt_ids"] or stop[:1] for row in rows]

    known: dict[int, float] = {}  # losses from the passes that began the answers

    def row(number: int) -> Row:
        return Row(*map(tensor, whole[number]))

    def answer(numbers: list[int]) -> list[list[int]]:
        found: dict[int, float] = {}
        both = (list(map(row, numbers)), found) if "loss" in config.metrics else (None, None)
        asked = [prompts[n] for n in numbers]
        with loaded.model_of(who) as model:
            answers = generate.answer(model, asked, stop, config.max_new_tokens, config.batch_tokens, report, *both)
        known.update({numbers[n]: loss for n, loss in found.items()})
        return answers

    def predict(numbers: list[int]) -> list[float]:
        if left := [n for n in numbers if n not in known]:
            with loaded.model_of(who) as model:
                progress = Progress(len(left), "losses", report)
                known.update(zip(left, generate.losses(model, list(map(row, left)), report, progress), strict=True))
        return [known[n] for n in numbers]

    for each, ids in zip(rows, kept.all("answer", [(ids,) for ids in prompts], answer), strict=True):
        each[who] = ids
    if "loss" in config.metrics:
        for each, loss in zip(rows, kept.all("loss", whole, predict), strict=True):
            each[f"{who}_loss"] = loss


if __name__ == "__main__":
    main(evaluate, prepare=prepare)
