"""Training step by step and in total."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.config import TrainingConfig
from tasks.report import charts
from tasks.report.tables import read
from tasks.report.words import duration, number
from tasks.store.manifest import Manifest
from tasks.training.facts import TrainingFacts

COLUMNS = ("step", "loss", "validation_loss", "grad_norm", "learning_rate", "tokens", "seconds", "tokens_per_second")


def training(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Curves over the steps, totals, and a few steps as numbers."""
    log = read(folder / "training_log.parquet").to_pydict()
    config, steps = manifest.fields(TrainingConfig).model_dump(), log["step"]
    validation = log.get("validation_loss", [])
    if not any(validation):
        validation = []
        log.pop("validation_loss", None)
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        ("loss", "Loss", {"second": validation}),
        ("grad_norm", "Gradient norm", {"zero": True, "limit": config.get("max_grad_norm")}),
        ("learning_rate", "Learning rate", {"zero": True, "smooth": False}),
        ("seconds", "Seconds per step", {"zero": True}),
    ]
    drawn = [charts.curve(title, steps, log[name], **more) for name, title, more in wanted if name in log]
    sampled = sorted({*ten_of(range(len(steps))), *ten_of([n for n, loss in enumerate(validation) if loss])})
    return {
        "charts": [chart for chart in drawn if chart],
        "facts": list(training_facts(manifest.facts(TrainingFacts))),
        "columns": [(name, name.replace("_", " ")) for name in COLUMNS if name in log],
        "sampled": [{name: log[name][i] for name in log} for i in sampled],
        "steps": len(steps),
        "config": config,
    }


def ten_of(rows: Sequence[int]) -> list[int]:
    """Ten of them, evenly spaced, with the first and the last."""
    return [rows[round(n * (len(rows) - 1) / 9)] for n in range(10)] if rows else []


def training_facts(facts: TrainingFacts) -> Iterator[tuple[str, str, str]]:
    """(name, value, note) of the whole run."""
    notes = [f"continued from step {facts.resumed_from_step:,}"] if facts.resumed_from_step else []
    notes += ["stopped early: validation loss no longer fell"] if facts.stopped_early else []
    yield "steps", number(facts.steps), "; ".join(notes)
    yield "time in steps", duration(facts.seconds), ""
    yield "loss, first → last", f"{facts.loss_first:.3f} → {facts.loss_last:.3f}", ""
    if facts.validation_rows:
        step = f"step {facts.best_step:,}, whose weights were kept; last {facts.validation_loss_last:.3f}"
        yield "lowest validation loss", f"{facts.validation_loss:.3f}", step
        yield "validation rows", number(facts.validation_rows), "named in this stage's ledger.parquet"
    yield "tokens read", number(facts.tokens), ""
    share = 100 * facts.learnt_tokens / max(1, facts.tokens)
    yield "target tokens", number(facts.learnt_tokens), f"{share:.1f} % of those read"
    yield "tokens per second", number(round(facts.tokens_per_second)), "without the first step"
    yield "peak memory", f"{facts.peak_memory_bytes / 2**30:.2f} GiB", ""
    yield "tokens at once", number(facts.micro_batch_tokens), f"speed: {facts.speed}"
    yield "batches halved", number(facts.out_of_memory_halvings), "after memory ran out"
    yield "device", facts.device, ""
