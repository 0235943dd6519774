"""Rows of each data stage with what was lost or changed, their lengths, and a preview."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.config import TrainingConfig
from tasks.download.facts import RowsFacts
from tasks.report import charts
from tasks.report.tables import read
from tasks.store.artifact import ArtifactRef
from tasks.tokenization.facts import PREVIEW, STATISTICS
from tasks.tokenization.fill import packing

LEDGER_ROWS = 8
VERDICTS = ("lost", "left out", "changed")
LABEL = {"train": "Training rows", "test": "Held-out rows"}


def data(stages: Mapping[str, ArtifactRef], training: TrainingConfig) -> dict[str, Any]:
    """Rows and ledgers of the data stages, and token counts; `training` decides how passes are filled."""
    from tasks.download.schema import ROWS
    from tasks.formatting.schema import PROMPTS
    from tasks.store.ledger import LEDGER
    from tasks.tokenization.schema import TOKENS

    files = {"download": ROWS, "format": PROMPTS, "tokenize": TOKENS}
    splits = {name: count_splits(stages[name].path / file) for name, file in files.items()}
    names = sorted(set().union(*splits.values()), key=lambda name: (name != "train", name))
    ledgers = {name: read_ledger(stages[name].path) for name in files}
    for name in ("train", "evaluate"):  # rows held back for validation; held-out rows that were trained on
        if (stages[name].path / LEDGER).exists():
            ledgers[name] = read_ledger(stages[name].path)
    return {
        "splits": names,
        "sources": stages["download"].facts(RowsFacts).sources.items(),
        "verdicts": VERDICTS,
        "stages": [(name, splits[name], ledgers[name]) for name in files],
        "ledger": [entry for ledger in ledgers.values() for entry in ledger["first"]][:LEDGER_ROWS],
        "ledger_rows": sum(ledger["rows"] for ledger in ledgers.values()),
        "reasons": [reason for ledger in ledgers.values() for reason in ledger["reasons"]],
        **lengths(json.loads((stages["tokenize"].path / STATISTICS).read_text()), training),
    }


def lengths(statistics: Mapping[str, Any], training: TrainingConfig) -> dict[str, Any]:
    """Token counts of each split, as charts and numbers."""
    found = {split: numbers for split, numbers in statistics["splits"].items() if numbers["rows"]}
    longest, limit = max((s["longest"] for s in found.values()), default=0), statistics["limit"]
    learnt, read = (sum(s[what] for s in found.values()) for what in ("learnt_tokens", "tokens"))
    return {
        "tokens": list(found.items()),
        "charts": [
            charts.histogram(LABEL[split], by_length(statistics, s), longest, limit) for split, s in found.items()
        ],
        "longest": longest,
        "limit": limit,
        "limit_shown": limit <= 1.5 * longest,
        "learnt_share": learnt / max(1, read),
        "learnt": learnt,
        "read": read,
        "packing": packing(statistics, training.micro_batch_tokens, training.batch_size),
    }


def by_length(statistics: Mapping[str, Any], split: Mapping[str, Any]) -> Counter[int]:
    """Number of rows by number of tokens (the smallest of a class, if classes are wider than one token)."""
    return Counter({n * statistics["width"]: rows for n, rows in enumerate(split["rows_by_length"]) if rows})


def preview(folder: Path) -> list[dict[str, Any]]:
    """A few training rows as the trainer reads them, from the tokenize stage."""
    return json.loads((folder / PREVIEW).read_text(encoding="utf-8"))


def count_splits(file: Path) -> dict[str, int]:
    import pyarrow.compute as pc

    return {count["values"]: count["counts"] for count in pc.value_counts(read(file, ["split"])["split"]).to_pylist()}


def read_ledger(folder: Path) -> dict[str, Any]:
    """Numbers and reasons of the rows that a stage lost, left out or changed, and the first of them."""
    from tasks.store.ledger import LEDGER

    table = read(folder / LEDGER)
    reasons = Counter(zip(*(table[name].to_pylist() for name in ("verdict", "stage", "reason")), strict=True))
    return {
        "rows": table.num_rows,
        **{verdict: sum(rows for (v, *_), rows in reasons.items() if v == verdict) for verdict in VERDICTS},
        "reasons": [(rows, *reason) for reason, rows in reasons.most_common(LEDGER_ROWS)],
        "first": table.slice(0, LEDGER_ROWS).to_pylist(),
    }
