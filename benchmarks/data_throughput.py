"""Data stages: speed beside the bare tokenizer and `datasets.map`, and memory over the number of rows.

    python benchmarks/data_throughput.py TOKENIZER_FOLDER [--rows 20000] [--memory 10000 100000]

TOKENIZER_FOLDER holds tokenizer.json and tokenizer_config.json. Rows are made up, about 1 KB each. The speeds are taken
in turn in one process and given as ratios, because machines are shared; the memory of each size is the peak of a child
process that writes rows.parquet, prompts.parquet and tokens.parquet.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks.config import DataConfig, FormattingConfig, TokenizationConfig
from tasks.download.rows import write_rows
from tasks.formatting.prompts import write_prompts
from tasks.tokenization.encode import write_tokens
from tasks.tokenization.vocabulary import Vocabulary

LIMIT = 2048


def make_file(path: Path, count: int) -> Path:
    """JSON lines with `id`, `dialogue` (about 900 characters) and `summary`."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]
    with path.open("w") as file:
        for number in range(count):
            row = {
                "id": f"r{number}",
                "dialogue": " ".join(draw.choices(words, k=140)),
                "summary": " ".join(words[:15]),
            }
            file.write(json.dumps(row) + "\n")
    return path


def stages(source: Path, tokenizer: Path, folder: Path) -> None:
    """The three data stages one after the other."""
    write_rows(DataConfig(path=str(source)), folder)
    format_and_tokenize(tokenizer, folder)


def format_and_tokenize(tokenizer: Path, folder: Path) -> None:
    write_prompts(folder / "rows.parquet", tokenizer, FormattingConfig(), folder)
    write_tokens(folder / "prompts.parquet", "add", tokenizer, LIMIT, TokenizationConfig(), folder)


def with_datasets_map(source: Path, tokenizer: Path, folder: Path) -> None:
    """As a script does it: one function a row for the prompt, then the tokenizer over batches."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    encode = AutoTokenizer.from_pretrained(tokenizer)

    def prompt(row: dict[str, Any]) -> dict[str, Any]:
        parts = [
            "\nBelow is an instruction.",
            "### Instruct: Summarize.",
            row["dialogue"],
            f"### Output:\n{row['summary']}",
        ]
        return {"text": "\n\n".join([*parts, "### End"])}

    rows = datasets.Dataset.from_json(str(source), cache_dir=str(folder)).map(prompt)
    rows.map(lambda batch: encode(batch["text"], max_length=LIMIT, truncation=True), batched=True)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(tokenizer: Path, count: int, rounds: int = 3) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_file(folder / "source.jsonl", count)
        stages(source, tokenizer, folder)
        import pyarrow.parquet as pq

        table = pq.read_table(folder / "prompts.parquet")
        texts = table["prompt"].to_pylist() + table["completion"].to_pylist()
        vocabulary = Vocabulary(tokenizer, rendered=False)
        bare, ours, maps = [], [], []
        for _ in range(rounds):
            bare.append(seconds(lambda: vocabulary.encode(texts)))
            ours.append(seconds(lambda: format_and_tokenize(tokenizer, folder)))
            maps.append(seconds(lambda: with_datasets_map(source, tokenizer, folder)))
        tokens = sum(map(len, vocabulary.encode(texts)))
    for what, times in (("encode_batch_fast alone", bare), ("format + tokenize", ours), ("datasets.map", maps)):
        best = min(times)
        print(
            f"{what:24} {best:7.2f} s (of {', '.join(f'{t:.2f}' for t in times)})  {tokens / best / 1e6:.2f} M tokens/s"
        )
    print(f"share of the bare tokenizer {min(bare) / min(ours):.0%} · times datasets.map {min(maps) / min(ours):.1f}")


def memory(tokenizer: Path, sizes: list[int]) -> None:
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            source = make_file(Path(name) / "source.jsonl", size)
            print(f"{size:>9,} rows: ", end="", flush=True)
            subprocess.run([sys.executable, __file__, str(tokenizer), "--child", str(source), name], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--memory", type=int, nargs="*", default=[10_000, 100_000], metavar="ROWS")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        began = time.perf_counter()
        stages(options.child[0], options.tokenizer, options.child[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak {peak:.2f} GiB, {time.perf_counter() - began:.1f} s", flush=True)
        return
    compare(options.tokenizer, options.rows)
    memory(options.tokenizer, options.memory)


if __name__ == "__main__":
    main()
