"""Download: rows a second, processor time and peak memory over the number of rows, each size in a fresh process.

    python benchmarks/download.py [10000 100000 1000000 2000000]

Rows are made up, about 1 KB each, in one .jsonl file. Processor time counts on a shared machine; a thread packs Parquet
while the next rows are read, so the wall clock can be shorter.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def write_source(file: Path, count: int) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    with file.open("w") as out:
        for number in range(count):
            text, answer = (" ".join(draw.choices(words, k=k)) for k in (125, 18))
            row = {"id": f"row{number:08d}", "dialogue": text, "summary": answer, "topic": draw.choice(words)}
            out.write(json.dumps(row) + "\n")


def measure(file: Path) -> None:
    from tasks.config import DataConfig
    from tasks.download.rows import write_rows

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        wall, processor = time.perf_counter(), time.process_time()
        rows = write_rows(DataConfig(path=str(file)), Path(folder)).rows
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{rows:>9,} {rows / wall:>12,.0f} {1e6 * processor / rows:>18.1f} {peak:>9,}", flush=True)


def main(sizes: list[int]) -> None:
    print(f"{'rows':>9} {'rows/s':>12} {'processor µs/row':>18} {'peak MiB':>9}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            file = Path(folder) / "rows.jsonl"
            write_source(file, size)
            subprocess.run([sys.executable, __file__, "measure", str(file)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(Path(sys.argv[2]))
    else:
        main([int(size) for size in sys.argv[1:]] or [10_000, 100_000, 1_000_000, 2_000_000])
