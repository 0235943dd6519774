"""Tiny random models on disk and token files, so that every test trains in a second or two."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported; see worker.py

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tasks.tokenization.schema import TOKEN_SCHEMA
from tasks.training.worker import silence

silence()

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 97
_SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
ARCHITECTURES = {
    "llama": lambda: LlamaConfig(**_SHAPE),
    "qwen2": lambda: Qwen2Config(**_SHAPE),
    "qwen3": lambda: Qwen3Config(**_SHAPE, head_dim=16),
    "mistral": lambda: MistralConfig(**_SHAPE, sliding_window=7),
    "phi3": lambda: Phi3Config(**_SHAPE),
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`bases("llama")`: folder of a random model of that architecture."""
    folders: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in folders:
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](), dtype=torch.float32)
            for parameter in model.parameters():  # biases and norms too, so that none of them is trivially right
                torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15)
            folders[architecture] = tmp_path_factory.mktemp(architecture)
            model.save_pretrained(folders[architecture])
        return folders[architecture]

    return make


@pytest.fixture(scope="module")
def job(bases: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """`job("name", processes, **settings)`; see `launched.make_job`."""
    from tests.training.launched import make_job

    folder = tmp_path_factory.mktemp("jobs")
    return lambda name, *arguments, **settings: make_job(bases("llama"), folder / name, *arguments, **settings)


@pytest.fixture
def build(bases: Any, tmp_path: Path) -> Callable[..., Any]:
    """`build("name", batch_size=4)`: a trainer on 22 rows whose checkpoints live in a folder of that name."""

    from tasks.config import TrainingConfig
    from tasks.model import base
    from tasks.training.data import read_rows
    from tasks.training.trl_adapter import PackedTrainer

    def make(name: str = "run", architecture: str = "llama", start: str = "", **settings: Any) -> PackedTrainer:
        tokens = write_tokens(tmp_path / "tokens.parquet", make_token_rows(22))
        config = TrainingConfig(**{"lora_r": 4, "batch_size": 4, "learning_rate": 3e-3, "epochs": 2.0, **settings})
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        said: list[str] = []
        model = base.load(bases(architecture), config, torch.device("cpu"), start=start)
        trainer = PackedTrainer(model, read_rows(tokens)[0], config, folder, said.append)
        trainer.said = said
        return trainer

    return make


def make_token_rows(count: int, seed: int = 0, longest: int = 24) -> list[dict[str, Any]]:
    """Rows of different lengths whose second half is learnt."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        length = int(torch.randint(6, longest + 1, (1,), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        labels = [-100] * (length // 2) + ids[length // 2 :]
        rows.append({"id": str(number), "split": "train", "input_ids": ids, "labels": labels})
    return rows


def write_tokens(file: Path, rows: list[dict[str, Any]]) -> Path:
    """A token file as the tokenization stage writes it."""
    pq.write_table(pa.Table.from_pylist(rows, schema=TOKEN_SCHEMA), file)
    return file
