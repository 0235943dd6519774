"""What orchestration costs: of a run that computes, the share that is not the stages' own work; and a fully cached run
beside a bare Prefect flow of six empty tasks, on the same server.

    python -m benchmarks.orchestration [CONFIG.yaml] [--rounds 5] [--ephemeral]

Without a configuration a tiny model made on the spot is retrained first, which takes seconds; with
examples/dialogue-summary.yaml it takes minutes. The stages' own work is as their manifests say: reading, computing and
writing, child processes with their imports included; starting the command, Prefect, keys, hashing and flushing are not.
Then both sides of the comparison run in turns, each in a fresh process; medians count.
--ephemeral: every process starts a Prefect server of its own, as `qlora-flow run` does without PREFECT_API_URL.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.bench import ROOT, Server, environment, write_config

BARE = """
from prefect import flow, task
@task
def empty(n: int) -> int:
    return n
@flow
def bare() -> None:
    for n in range(6):
        empty(n)
bare()
"""
HEAVY = ("torch", "transformers", "datasets", "pyarrow", "pandas", "numpy")
IMPORTED = f"""
import sys
from flows.__main__ import main
main(sys.argv[1:])
print("IMPORTED", *[name for name in {HEAVY} if name in sys.modules])
"""


def timed(command: list[str], environment: dict[str, str], log: Path) -> float:
    """Wall seconds of a process from start to exit."""
    began = time.monotonic()
    with log.open("a") as file:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file, check=True)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", help="what to run [a tiny model]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ephemeral", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="qlora-flow-orchestration-"))
    config = options.config or write_config(folder)
    server = None if options.ephemeral else Server(folder)
    try:
        measure(folder, config.absolute(), server.url if server else "", options.rounds)
    finally:
        if server:
            server.stop()


def own_work(store: Path) -> float:
    """Seconds in which the stages of a store's only run computed."""
    manifests = [*store.glob("artifacts/*/manifest.json"), *store.glob("registry/*/*/manifest.json")]
    return sum(json.loads(file.read_text())["seconds"] for file in manifests)


def measure(folder: Path, config: Path, api: str, rounds: int) -> None:
    there = environment(folder, api, QLORA_FLOW_STORE=str(folder / "store"))
    log = folder / "log"
    run = ["run", str(config)]
    commands = {
        "bare flow": [sys.executable, "-c", BARE],
        "cached run": [sys.executable, "-m", "flows", *run],
    }
    wall, work = timed(commands["cached run"], there, log), own_work(folder / "store")
    share = (wall - work) / work
    print(f"first run  {wall:.1f} s, the stages' own work {work:.1f} s: {share:.1%} more (to reach: 2 %)", flush=True)
    for command in commands.values():  # the first of each also warms the page cache
        timed(command, there, log)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            seconds[name].append(timed(command, there, log))
    for name, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:10} median {statistics.median(values):5.2f} s of {rounds} ({spread})")
    ratio = statistics.median(seconds["cached run"]) / statistics.median(seconds["bare flow"])
    print(f"ratio      {ratio:.2f} (to reach: 1.3), {os.cpu_count()} cores, {'own' if not api else 'one'} server")
    output = subprocess.check_output([sys.executable, "-c", IMPORTED, *run], cwd=ROOT, env=there, text=True)
    print(f"heavy libraries a cached run imports: {output.split('IMPORTED')[-1].strip() or 'none'}")


if __name__ == "__main__":
    main()
