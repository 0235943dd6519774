"""Data stages: speed beside the bare tokenizer and `datasets.map`, and memory over the number of rows.

    python benchmarks/data_throughput.py TOKENIZER_FOLDER [--rows 50000] [--rounds 3] [--memory 10000 100000]

TOKENIZER_FOLDER holds tokenizer.json and tokenizer_config.json. Rows are made up, about 1 KB each, and start as
rows.parquet. Sides take turns, each time in a fresh process that times itself after its imports; medians count, and
processor seconds beside them, because machines are shared. The memory of a size is the peak of a fresh process that
formats and tokenizes, and of the largest process it starts.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # for the processes of the stages

LIMIT = 2048
AT_ONCE = 128


def write_source(file: Path, count: int) -> None:
    """rows.parquet with `dialogue` (about 900 characters) and `summary`; a fifth is held out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tasks.download.schema import COLUMNS, ROW_SCHEMA

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]
    with pq.ParquetWriter(file, ROW_SCHEMA, compression="zstd") as writer:
        for first in range(0, count, 10_000):
            numbers = range(first, min(count, first + 10_000))
            rows = [
                {"dialogue": " ".join(draw.choices(words, k=140)), "summary": " ".join(draw.choices(words, k=15))}
                for _ in numbers
            ]
            columns = [
                [f"r{number}" for number in numbers],
                ["test" if draw.random() < 0.2 else "train" for _ in numbers],
                [None] * len(numbers),
                [json.dumps(row) for row in rows],
            ]
            writer.write_table(pa.table(columns, schema=ROW_SCHEMA))
        writer.add_key_value_metadata({COLUMNS: json.dumps(["dialogue", "summary"])})


def format_and_tokenize(tokenizer: Path, folder: Path) -> Callable[[], None]:
    from tasks.config import FormattingConfig, TokenizationConfig
    from tasks.formatting.prompts import write_prompts
    from tasks.tokenization.encode import write_tokens

    def work() -> None:
        write_prompts(folder / "rows.parquet", tokenizer, FormattingConfig(), folder)
        write_tokens(folder / "prompts.parquet", "add", tokenizer, LIMIT, TokenizationConfig(), folder)

    return work


def bare(tokenizer: Path, folder: Path, at_once: int | None) -> Callable[[], None]:
    """The tokenizer alone, on all cores, its ids not even looked at; loading texts and tokenizer is not timed."""
    import pyarrow.parquet as pq

    from tasks.tokenization.vocabulary import Vocabulary

    table = pq.ParquetFile(folder / "prompts.parquet").read(["prompt", "completion"])
    pairs = zip(*(column.to_pylist() for column in table.columns), strict=True)
    texts = [text for pair in pairs for text in pair]
    encode = Vocabulary(tokenizer, rendered=False).tokenizer.encode_batch_fast
    size = at_once or len(texts)

    def work() -> None:
        for first in range(0, len(texts), size):
            encode(texts[first : first + size], add_special_tokens=False)

    return work


def datasets_map(tokenizer: Path, folder: Path) -> Callable[[], None]:
    """As a script does it: one function a row for the prompt, then the tokenizer over batches; loading is not timed."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    encode = AutoTokenizer.from_pretrained(tokenizer)
    rows = datasets.Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(folder / "cache"))

    def prompt(row: dict[str, Any]) -> dict[str, Any]:
        row = json.loads(row["row"])
        head = "\nBelow is an instruction that describes a task. "
        head += "Write a response that appropriately completes the request."
        instruct = "### Instruct: Summarize the below conversation."
        parts = [head, instruct, row["dialogue"], f"### Output:\n{row['summary']}", "### End"]
        return {"text": "\n\n".join(part for part in parts if part)}

    def work() -> None:
        made = rows.map(prompt)
        made.map(
            lambda batch: encode(batch["text"], max_length=LIMIT, truncation=True),
            batched=True,
            remove_columns=made.column_names,
        )

    return work


SIDES: dict[str, Callable[[Path, Path], Callable[[], None]]] = {
    "encode_batch_fast, one call": lambda tokenizer, folder: bare(tokenizer, folder, None),
    f"encode_batch_fast, {AT_ONCE} texts a call": lambda tokenizer, folder: bare(tokenizer, folder, AT_ONCE),
    "format + tokenize": format_and_tokenize,
    "datasets.map": datasets_map,
}


def measured(side: str, tokenizer: Path, folder: Path) -> dict[str, float]:
    """Run a side in a fresh process."""
    command = [sys.executable, __file__, str(tokenizer), "--side", side, "--folder", str(folder)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure_here(work: Callable[[], None]) -> dict[str, float]:
    began, used = time.perf_counter(), sum(os.times()[:4])
    work()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "wall": time.perf_counter() - began,
        "cpu": sum(os.times()[:4]) - used,
        # ru_maxrss of this process would count the one that started it as well
        "parent_gib": int(status["VmHWM"].split()[0]) / 2**20,
        "child_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
    }


def compare(tokenizer: Path, count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder / "rows.parquet", count)
        tokens = tokens_of(tokenizer, folder)
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side in SIDES:
                runs[side].append(measured(side, tokenizer, folder))
    print(f"{count:,} rows, {tokens:,} tokens, {rounds} rounds in turn, load {os.getloadavg()[0]:.1f} at the end\n")
    print("| side | wall s | M tokens/s | all walls | CPU s |\n|---|---:|---:|---|---:|")
    median = {}
    for side, results in runs.items():
        walls = [run["wall"] for run in results]
        median[side] = statistics.median(walls), statistics.median(run["cpu"] for run in results)
        wall, cpu = median[side]
        print(f"| {side} | {wall:.1f} | {tokens / wall / 1e6:.2f} | {_listed(walls)} | {cpu:.1f} |")
    once, calls, ours, maps = median.values()
    for what, n in (("wall", 0), ("CPU", 1)):
        print(
            f"\n{what}: {once[n] / ours[n]:.0%} of the tokenizer in one call, {calls[n] / ours[n]:.0%} of it in small "
            f"calls; {maps[n] / ours[n]:.1f} times datasets.map"
        )


def tokens_of(tokenizer: Path, folder: Path) -> int:
    """Format and tokenize once, for the prompts that the bare tokenizer takes."""
    measured("format + tokenize", tokenizer, folder)
    splits = json.loads((folder / "statistics.json").read_text())["splits"].values()
    return sum(split["tokens"] for split in splits)


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:.1f}" for number in numbers)


def memory(tokenizer: Path, sizes: list[int]) -> None:
    print("\n| rows | parent GiB | largest child GiB | wall s |\n|---:|---:|---:|---:|", flush=True)
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            write_source(Path(name) / "rows.parquet", size)
            run = measured("format + tokenize", tokenizer, Path(name))
            print(f"| {size:,} | {run['parent_gib']:.2f} | {run['child_gib']:.2f} | {run['wall']:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--rows", type=int, default=50_000, help="for the speeds; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="*", default=[10_000, 100_000], metavar="ROWS")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure_here(SIDES[options.side](options.tokenizer, options.folder))))
        return
    if options.rows:
        compare(options.tokenizer, options.rows, options.rounds)
    memory(options.tokenizer, options.memory)


if __name__ == "__main__":
    main()
