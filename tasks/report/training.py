"""How training went, step by step and as a whole."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.report import charts
from tasks.report.tables import read
from tasks.report.words import duration, number
from tasks.store.manifest import Manifest

COLUMNS = ("step", "loss", "validation_loss", "grad_norm", "learning_rate", "tokens", "seconds", "tokens_per_second")


def training(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Curves over the steps, totals, and a few steps as numbers."""
    log = read(folder / "training_log.parquet").to_pydict()
    info, config, steps = manifest.info, manifest.identity.config, log["step"]
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
        "facts": [(label, value, note) for label, value, note in training_facts(log, info) if value],
        "columns": [(name, name.replace("_", " ")) for name in COLUMNS if name in log],
        "sampled": [{name: log[name][i] for name in log} for i in sampled],
        "steps": len(steps),
        "config": config,
    }


def ten_of(rows: Sequence[int]) -> list[int]:
    """At most ten of them, evenly picked, with the first and the last."""
    return [rows[round(n * (len(rows) - 1) / 9)] for n in range(10)] if rows else []


def training_facts(log: Mapping[str, list[Any]], info: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(what, value, note) of the whole run; what the run did not note has no value."""
    tokens, learnt = info.get("tokens", sum(log["tokens"])), info.get("learnt_tokens", sum(log["learnt_tokens"]))
    speed, memory = info.get("tokens_per_second"), info.get("peak_memory_bytes", max(log["memory_bytes"], default=0))
    resumed, halvings = info.get("resumed_from_step"), info.get("out_of_memory_halvings")
    notes = [f"continued from step {resumed:,}"] if resumed else []
    notes += ["stopped early: validation loss no longer fell"] if info.get("stopped_early") else []
    yield "steps", number(len(log["step"])), "; ".join(notes)
    yield "time in steps", duration(info.get("seconds", sum(log["seconds"]))), ""
    yield "loss, first → last", f"{log['loss'][0]:.3f} → {log['loss'][-1]:.3f}", ""
    if held_back := info.get("validation_rows"):
        step = f"step {info['best_step']:,}, whose weights were kept; last {info['validation_loss_last']:.3f}"
        yield "lowest validation loss", f"{info['validation_loss']:.3f}", step
        yield "rows held back", number(held_back), "for validation; named in this stage's ledger.parquet"
    yield "tokens read", number(tokens), ""
    yield "tokens learnt", number(learnt), f"{100 * learnt / max(1, tokens):.1f} % of those read"
    yield "tokens per second", number(round(speed)) if speed else "", "without the first step"
    yield "peak memory", f"{memory / 2**30:.2f} GiB" if memory else "", ""
    yield "tokens at once", number(info.get("micro_batch_tokens", 0)), f"speed: {info.get('speed')}"
    yield "batches halved", number(halvings) if halvings is not None else "", "after memory ran out"
    yield "device", str(info.get("device", "")), ""
