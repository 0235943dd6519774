"""The bundled example from an empty store, then again: wall time, peak memory, scores, what was reused.

    python benchmarks/example.py [FOLDER]

Takes minutes of every core: on a machine that does something else the times mean little.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def tree_memory(process: psutil.Process) -> int:
    """Resident bytes of a process and everything below it."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def run(folder: Path) -> dict:
    """One `qlora-flow run` of the example. Returns its summary with `wall_seconds` and `peak_bytes`."""
    summary = folder / "summary.json"
    environment = {
        **os.environ,
        "QLORA_FLOW_STORE": str(folder / "store"),
        "PREFECT_HOME": str(folder / "prefect"),
    }
    command = [sys.executable, "-m", "flows", "run", "examples/dialogue-summary.yaml", "--summary", str(summary)]
    began, peak = time.monotonic(), 0
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, tree_memory(watched))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.2)
    if process.wait():
        raise SystemExit(f"the run failed; {folder / 'log'} says why")
    return json.loads(summary.read_text()) | {"wall_seconds": time.monotonic() - began, "peak_bytes": peak}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="qlora-flow-example-"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("first run", "second run"):
        result = run(folder)
        stages = result["stages"].items()
        print(f"{name}: {result['wall_seconds']:.1f} s, peak {result['peak_bytes'] / 2**30:.2f} GiB of all processes")
        print("  " + " · ".join(f"{n} {s['outcome']} {s['seconds']:.1f} s" for n, s in stages))
    for metric, s in result["scores"].items():
        interval = f"{s['low']:+.4f} to {s['high']:+.4f}"
        print(f"{metric:10} base {s['base']:.4f} tuned {s['tuned']:.4f} difference {s['difference']:+.4f} ({interval})")


if __name__ == "__main__":
    main()
