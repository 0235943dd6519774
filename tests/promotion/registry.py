"""A registry with published versions, for tests."""

import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import ExecutionConfig, PromotionConfig, PublishingConfig
from tasks.evaluation.facts import EvaluationFacts
from tasks.promotion import champion, task
from tasks.promotion.schema import Decision
from tasks.publishing.facts import VersionFacts
from tasks.publishing.registry import add_version
from tasks.publishing.schema import PROBES, Probe, Probes
from tasks.publishing.task import write_sums
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef
from tasks.store.root import store_root
from tests.publishing.test_program import adapter
from tests.tiny import noted

TRAINING = {"quantization": "4bit", "quant_type": "nf4", "compute_dtype": "bfloat16", "double_quant": False}
BASE = BaseModelRef(
    folder="/nowhere", digest="b" * 64, tokenizer_digest="t", source="owner/base", revision="", max_length=512
)


def folder() -> Path:
    return store_root() / "registry" / "adapter"


def publish(weights: str, loss: float = 2.0, base: BaseModelRef = BASE, adapter: Path | None = None) -> ArtifactRef:
    """The next version; what it is made of is told by `weights`.

    Args:
        adapter: folder of an adapter that loads.
    """

    def write(aside: Path, version: str) -> VersionFacts:
        if adapter:
            shutil.copytree(adapter, aside, dirs_exist_ok=True)
        else:
            (aside / "adapter_model.safetensors").write_text(weights)
        write_sums(aside)
        score = {"metric": "loss", "rows": 60, "base": 3.0, "tuned": loss, "difference": loss - 3, "low": -1, "high": 0}
        return noted(VersionFacts, name="adapter", version=version, scores=[score])

    made_from = {"adapter": weights, "model": base.digest}
    identity = Identity(stage="publish", inputs=made_from, config={"source": base.source, "revision": ""})
    return add_version(identity, folder(), write)


def scored(
    rows: list[dict[str, Any]], name: str = "scores", left_out: str = "", watched: list[dict[str, Any]] | None = None
) -> ArtifactRef:
    """What evaluation leaves: rows with their per-row scores, and those of watch sets."""
    rows = [
        {"id": f"r{n:03d}", "group": None, "prompt": f"p{n}", "references": ["r"]} | row for n, row in enumerate(rows)
    ]

    def write(aside: Path) -> EvaluationFacts:
        pq.write_table(pa.Table.from_pylist(rows), aside / "predictions.parquet")
        pq.write_table(pa.Table.from_pylist(watched or []), aside / "watched.parquet")
        return noted(EvaluationFacts, rows=len(rows), champion_left_out=left_out)

    return produce(Identity(stage="evaluate", config={"name": name}), write)


def rows(shift: float, other: str = "champion", count: int = 200, **more: float) -> list[dict[str, Any]]:
    """Scores of rows on which the candidate has `shift` more loss, and noise."""
    chance = random.Random(7)
    made = []
    for n in range(count):
        loss = chance.gauss(2, 0.5)
        after = loss + shift + chance.gauss(0, 0.1) * (shift != 0)
        row = {
            "base_loss": loss + 1,
            f"{other}_loss": loss,
            "tuned_loss": after,
            "topic": "travel" if n % 2 else "food",
        }
        for name, fall in more.items():
            row |= {f"{other}_{name}": 0.5 + chance.gauss(0, 0.01), f"tuned_{name}": 0.5 - fall}
        made.append(row)
    return made


def decide(
    version: ArtifactRef, scores: ArtifactRef, compared: ArtifactRef | None, base: BaseModelRef = BASE, **fields: Any
) -> Decision:
    from prefect.logging import disable_run_logger

    settings = PublishingConfig(), PromotionConfig(**fields), ExecutionConfig()
    with disable_run_logger():
        return task.promote.fn(version, scores, compared, base, *settings)


def run(
    weights: str,
    shift: float,
    name: str = "",
    base: BaseModelRef = BASE,
    adapter: Path | None = None,
    **fields: Any,
) -> Decision:
    """As a retrain does: begin, evaluate against the champion, publish, promote."""
    champion.begin(folder(), "a test")
    compared = champion.opponent(folder(), weights)
    scores = scored(rows(shift, "champion" if compared else "base"), name or weights)
    return decide(publish(weights, base=base, adapter=adapter), scores, compared, base, **fields)


def adapter_with_answers(folder: Path, base: Path) -> None:
    """An adapter and its probes: the answers are the adapter's own, so it is better on them than the base."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tasks.model.quantization import load_options
    from tasks.promotion.clean_room import loss

    adapter(folder, base, dora=False)
    loaded: Any = AutoModelForCausalLM.from_pretrained(base, **load_options(**TRAINING))
    model = PeftModel.from_pretrained(loaded.dequantize().to(torch.bfloat16), folder, autocast_adapter_dtype=False)
    rows = []
    for first in range(8):
        prompt = torch.arange(first + 5, first + 15)[None]
        ids = model.generate(input_ids=prompt, max_new_tokens=8, do_sample=False, eos_token_id=399)[0].tolist()
        row = Probe(input_ids=ids, labels=[-100] * 10 + ids[10:], base=9.0, tuned=0.0)
        rows.append(row.model_copy(update={"tuned": loss(model, row)}))
    (folder / PROBES).write_text(Probes(training=TRAINING, rows=rows).model_dump_json())
