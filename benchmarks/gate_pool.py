"""Trains ten and more adapters on one data set and leaves each one's row scores: what `gate.py` resamples.

    python benchmarks/gate_pool.py CONFIG.yaml OUT
    python benchmarks/gate.py OUT/*.parquet

Seeds, learning rates, ranks and halves of the training rows vary; the held-out rows are the same for all. Give the
configuration a `data.group_column` where rows belong together. One line an adapter: mean loss and score.
"""

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from prefect.logging import disable_run_logger

from flows.config_file import load
from tasks.download.identity import pin
from tasks.download.task import download
from tasks.evaluation.facts import EvaluationFacts
from tasks.evaluation.schema import PREDICTIONS
from tasks.evaluation.task import evaluate
from tasks.formatting.task import format_prompts
from tasks.tokenization.task import tokenize
from tasks.training.task import train

VARIANTS: list[dict[str, dict[str, Any]]] = [
    *({"training": {"seed": seed}} for seed in range(4)),
    {"training": {"learning_rate": 2e-4}},
    {"training": {"learning_rate": 1e-3}},
    {"training": {"lora_r": 4, "lora_alpha": 8}},
    {"training": {"lora_r": 64, "lora_alpha": 128}},
    {"training": {"epochs": 2}},
    {"training": {"epochs": 3, "learning_rate": 2e-4}},
    {"data": {"max_train_rows": 250}},
    {"data": {"max_train_rows": 250}, "training": {"epochs": 2, "seed": 1}},
]


def trained(config: Path, variant: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Sections of the configuration; adapter, tokens, prompts and base."""
    groups: dict[str, Any] = dict(load(config, variant))
    data, model = pin(groups["data"], groups["model"])
    source = download.fn(data, model)
    prompts = format_prompts.fn(source.rows, source.model, groups["formatting"])
    tokens = tokenize.fn(prompts, source.model, groups["tokenization"])
    adapter = train.fn(tokens, source.model, groups["training"], groups["execution"])
    return groups, (adapter, tokens, prompts, source.model)


def adapter_scores(config: Path, variant: dict[str, dict[str, Any]], copy: Path) -> None:
    began = time.monotonic()
    groups, made = trained(config, variant)
    scores = evaluate.fn(*made, groups["evaluation"], groups["execution"])
    shutil.copyfile(scores.path / PREDICTIONS, copy)
    means = {row["metric"]: row["tuned"] for row in scores.facts(EvaluationFacts).scores if row["slice"] is None}
    print(copy.name, variant, json.dumps(means), f"{time.monotonic() - began:.0f} s", flush=True)


def main(config: Path, out: Path, at_once: int = 3) -> None:
    """Args: at_once: adapters made at the same time; training and evaluation are processes of their own."""
    out.mkdir(parents=True, exist_ok=True)
    with disable_run_logger():
        adapter_scores(config, VARIANTS[0], out / "00.parquet")  # makes what the others share
        with ThreadPoolExecutor(at_once) as pool:
            made = [
                pool.submit(adapter_scores, config, variant, out / f"{number:02}.parquet")
                for number, variant in enumerate(VARIANTS[1:], 1)
            ]
        for one in made:
            one.result()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
