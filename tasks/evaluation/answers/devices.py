"""Rows divided among several GPUs: a process for each answers its share and keeps what it computed."""

import functools
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.evaluation.schema import EvaluationJob
from tasks.process.child import run_child
from tasks.store.model import weight_files

_COLUMNS = ("input_ids", "labels", "prompt_ids")
_IN_4_BITS = 0.35  # of the size that weights of 16 bits have, with the layers that stay as they are
_SHARE = 0.6  # of a GPU's memory that the base may take
WORTH = 200_000  # new tokens of one model; with fewer, starting the processes costs more than they save (NOTES.md)


def gpus(job: EvaluationJob) -> list[str]:
    """The GPUs, if each holds the base with room for answers; else one process lays it out over several."""
    from torch import cuda

    if (count := cuda.device_count()) < 2:
        return []
    size = sum((job.model / name).stat().st_size for name in weight_files(job.model))  # mostly in 16 bits
    held = size * (_IN_4_BITS if job.training["quantization"] == "4bit" else 1)
    if held > _SHARE * cuda.get_device_properties(0).total_memory:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",") if visible else [str(n) for n in range(count)]


def divide(rows: list[dict[str, Any]], job: EvaluationJob, devices: list[str]) -> None:
    """Answer rows on several devices, a process each. What each computes it keeps, and `_ask` finds it there."""
    order = sorted(rows, key=lambda row: -len(row["input_ids"]))  # so that all have as much to do
    with tempfile.TemporaryDirectory(dir=job.output) as scratch, ThreadPoolExecutor(len(devices)) as pool:
        running = []
        for n, device in enumerate(devices):
            share = [{name: row[name] for name in _COLUMNS} for row in order[n :: len(devices)]]
            pq.write_table(pa.Table.from_pylist(share), file := Path(scratch, f"{n}.parquet"))
            asked = job.model_copy(update={"share": file, "device": device}).model_dump(mode="json")
            # the first one's progress stands for all
            report = functools.partial(print, f"device {n + 1} of {len(devices)}:") if n else print
            running += [pool.submit(run_child, "tasks.evaluation.worker", asked, report)] if share else []
        for each in running:
            each.result()
