"""Divides rows among several GPUs: one process for each GPU answers its share and keeps the results."""

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
_IN_4_BITS = 0.35  # size relative to 16 bits, with the layers that are not quantized
_SHARE = 0.6  # of a GPU's memory that the base may use
WORTH = 200_000  # new tokens of one model; with fewer, starting the processes takes longer than it saves (NOTES.md)


def gpus(job: EvaluationJob) -> list[str]:
    """The GPUs, if the base fits on each with room for answers; else none, and one process uses all of them."""
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
    """Answer rows on several devices, one process for each. The results are kept answers, which `_ask` reads."""
    order = sorted(rows, key=lambda row: -len(row["input_ids"]))  # for shares of about the same work
    with tempfile.TemporaryDirectory(dir=job.output) as scratch, ThreadPoolExecutor(len(devices)) as pool:
        running = []
        for n, device in enumerate(devices):
            share = [{name: row[name] for name in _COLUMNS} for row in order[n :: len(devices)]]
            pq.write_table(pa.Table.from_pylist(share), file := Path(scratch, f"{n}.parquet"))
            asked = job.model_copy(update={"share": file, "device": device}).model_dump(mode="json")
            # the progress of the first process is shown as that of all
            report = functools.partial(print, f"device {n + 1} of {len(devices)}:") if n else print
            running += [pool.submit(run_child, "tasks.evaluation.worker", asked, report)] if share else []
        for each in running:
            each.result()
