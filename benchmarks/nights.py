"""Nights in which nothing has changed, one after the other: what grows, and how long each takes.

    python -m benchmarks.nights [--nights 1000] [--deployed 20]

A tiny model is retrained once. Then the same run is made again and again: in this process on a Prefect server of its
own, and by `qlora-flow serve` through the deployment `retrain-file/quick`. At nights 1, 10, 100, 1,000 and the last it
prints resident memory of this process and of the server, files and bytes of the store, and rows of the server's tables.
A night should take less than 10 seconds.
"""

import argparse
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.faults.bench import Server, environment, write_config


def rows(database: Path) -> dict[str, int]:
    """Table → rows, of tables that have any."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as there:
        names = [name for (name,) in there.execute("select name from sqlite_master where type = 'table'")]
        counts = {name: there.execute(f'select count(*) from "{name}"').fetchone()[0] for name in names}
    return {name: count for name, count in sorted(counts.items()) if count}


def measure(night: int, seconds: list[float], store: Path, database: Path, processes: list[psutil.Process]) -> None:
    files: dict[str, list[int]] = {}
    for file in store.rglob("*"):
        if file.is_file():
            files.setdefault(file.relative_to(store).parts[0], []).append(file.stat().st_size)
    memory = [f"{process.memory_info().rss / 2**20:.0f}" for process in processes]
    recent = seconds[-100:]
    print(f"night {night}: {min(recent):.1f} to {max(recent):.1f} s; MiB resident {', '.join(memory)}")
    print("   store:", ", ".join(f"{name} {len(sizes)} ({sum(sizes):,})" for name, sizes in sorted(files.items())))
    print("   server:", ", ".join(f"{name} {count}" for name, count in rows(database).items()), flush=True)


def repeat(nights: int, one: Callable[[], None], look: Callable[[int, list[float]], None]) -> None:
    seconds: list[float] = []
    for night in range(1, nights + 1):
        began = time.monotonic()
        one()
        seconds.append(time.monotonic() - began)
        if night in (1, 10, 30, 100, 300, 1000, nights):
            look(night, seconds)


def in_this_process(nights: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="qlora-flow-nights-"))
    config, server = write_config(folder), Server(folder)
    os.environ.clear()
    there = environment(folder, server.url, QLORA_FLOW_STORE=str(folder / "store"))
    os.environ.update(there, PREFECT_RESULTS_LOCAL_STORAGE_PATH=str(folder / "store/results"), HF_HUB_OFFLINE="1")
    try:
        from flows.config_file import load
        from flows.retrain import retrain

        groups = dict(load(config, {}))
        print("first run:", retrain(**groups)["said"], flush=True)
        processes = [psutil.Process(), psutil.Process(server.process.pid)]

        def night() -> None:
            assert retrain(**groups)["outcome"] == "unchanged"

        database = folder / "prefect/prefect.db"
        repeat(nights, night, lambda n, seconds: measure(n, seconds, folder / "store", database, processes))
    finally:
        server.stop()


def through_the_deployment(nights: int) -> None:
    from tests.e2e.served import Served, wait_for

    folder = Path(tempfile.mkdtemp(prefix="qlora-flow-nights-"))
    config, served = write_config(folder), Served(folder)
    try:
        served.start()
        quick = served.api("/deployments/name/retrain-file/quick")["id"]
        took: list[float] = []

        def night() -> None:
            id = served.api(f"/deployments/{quick}/create_flow_run", {"parameters": {"configuration": str(config)}})[
                "id"
            ]
            run = wait_for(lambda: served.finished(id), "it goes on")
            assert run["state_type"] == "COMPLETED", run["state"]["message"]
            took.append(run["total_run_time"])

        night()
        processes = [psutil.Process(served.process.pid), *psutil.Process(served.process.pid).children()]
        database = folder / "home/prefect.db"
        repeat(nights, night, lambda n, seconds: measure(n, seconds, folder / "store", database, processes))
        print("seconds from the flow's start:", json.dumps(took[1:]))
    finally:
        served.end()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--deployed", type=int, default=20)
    options = parser.parse_args()
    if options.nights:
        in_this_process(options.nights)
    if options.deployed:
        through_the_deployment(options.deployed)
