"""A process pool over the units of a file; the results come in order, whatever the number of cores.

A module for the pool has `work(job, units)`, which yields one `Result` per unit in their order, and ends with
`if __name__ == "__main__": serve(work)`. Each of n processes takes every n-th unit and sends its results through a pipe
of its own. A full pipe blocks its process, so memory does not grow with the number of units.

Not concurrent.futures.ProcessPoolExecutor: that one pickles results, imports the caller's main module (Prefect) in
every process, and cannot end a busy process when the run is interrupted.
"""

import contextlib
import importlib
import json
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from tasks.process.child import Child, main, started
from tasks.process.failures import ChildFailed

UNITS_A_PROCESS = 4
"""Fewer units take less time than the start of a process."""


class Result(NamedTuple):
    """Rows, and JSON-able notes about them."""

    rows: pa.RecordBatch
    notes: Any


Work = Callable[[dict[str, Any], Iterable[int]], Iterator[Result]]


def spread(
    module: str, job: dict[str, Any], units: int, log: Callable[[str], None], apart: bool = False
) -> Generator[Result, None, None]:
    """Yield the result of every unit in order. Few units are computed in this process, unless they shall be `apart`.

    Outside the main thread they are always computed in another process: the timer that ends a unit that takes too long
    works in main threads only. Close the generator (`contextlib.closing`), so that an interruption ends all processes.

    Args:
        module: has `work`.
        job: JSON-able arguments of `work`.
        log: receives every line that a process prints.
        apart: the work loads what would stay in this process's memory for the rest of the run.
    Raises:
        UserError: a mistake in configuration or data.
        ChildFailed: a process failed.
    """
    processes = max(1, min(cores(), units // UNITS_A_PROCESS))
    if not apart and processes < 2 and threading.current_thread() is threading.main_thread():
        yield from importlib.import_module(module).work(job, range(units))
        return
    with contextlib.ExitStack() as stack:
        shares = [range(n, units, processes) for n in range(processes)]
        at_work = [stack.enter_context(_process(module, job, share, log)) for share in shares]
        for unit in range(units):
            if (result := next(at_work[unit % processes], None)) is None:
                raise ChildFailed(f"{module} ended before its work was done", transient=False)
            yield result
        for results in at_work:
            next(results, None)  # until its process has ended


def cores() -> int:
    """Number of processors that this process may use, by its affinity and its container's quota."""
    allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or the quota is `max`
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        return max(1, min(allowed, round(quota / period)))
    return allowed


@contextlib.contextmanager
def _process(module: str, job: dict[str, Any], units: range, log: Callable[[str], None]) -> Iterator[Iterator[Result]]:
    receiving, sending = os.pipe()
    with os.fdopen(receiving, "rb") as source, contextlib.ExitStack() as stack:
        given = {"job": job, "units": [units.start, units.stop, units.step], "pipe": sending}
        try:
            child = stack.enter_context(started(module, given, log, pass_fds=(sending,)))
        finally:
            os.close(sending)
        yield _results(child, source)


def _results(child: Child, source: BinaryIO) -> Iterator[Result]:
    with contextlib.suppress(pa.ArrowInvalid, OSError):  # the stream breaks off where the child does
        for message in pa.ipc.open_stream(source).iter_batches_with_custom_metadata():
            yield Result(message.batch, json.loads(message.custom_metadata[b"notes"]))
    child.finish()


def serve(work: Work) -> None:
    """Entry point of a child: send the results of its units."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other processes have the other cores
    pa.set_cpu_count(1)
    main(lambda given: _send(work(given["job"], range(*given["units"])), given["pipe"]))


def _send(results: Iterator[Result], pipe: int) -> None:
    """Send each result while the next one is computed."""
    with os.fdopen(pipe, "wb") as sink, ThreadPoolExecutor(1) as sender, contextlib.ExitStack() as stack:
        writer: Any = None
        sent: Future[None] | None = None
        for rows, notes in results:
            if sent:
                sent.result()
            writer = writer or stack.enter_context(pa.ipc.new_stream(sink, rows.schema))
            sent = sender.submit(writer.write_batch, rows, {"notes": json.dumps(notes)})
        if sent:
            sent.result()
