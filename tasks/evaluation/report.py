"""One page a run: scores with their intervals, training curves, answers side by side, and where it all came from.

The page is a function of what the six stages wrote and of its own source, and is written once for them. A run that
reused every stage finds it there; nothing here loads torch, and pyarrow only when a page is written.
"""

import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from tasks.evaluation import charts
from tasks.store.artifact import ArtifactRef, content_digest, store_root
from tasks.store.identity import digest_of, file_digest, source_digest
from tasks.store.model import TOKENIZER_FILES

TEMPLATE = Path(__file__).with_name("report.html.j2")
SOURCES = ("tasks.evaluation.report", "tasks.evaluation.charts")
TITLES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
HEADLINE = "rougeL"
FEW_ROWS = 20
"""Held-out rows below which the page warns that the interval itself is unsure."""
LEDGER_ROWS = 8
COLUMNS = ("step", "loss", "grad_norm", "learning_rate", "tokens", "seconds", "tokens_per_second")
LONGEST_TEXT, MOST_LINES = 3000, 60
"""Characters and lines of one text on the page; a longer one loses its middle, and the page says how much."""
BAR = 220
"""Width of the interval bars' picture."""

Part = tuple[str, str]
"""(kind, text): `masked` and `learnt` tokens, `text`, or a `gap` that says what is left out."""


def write_report(stages: dict[str, ArtifactRef]) -> Path:
    """Write the page of these outputs, or return the one that is there.

    Args:
        stages: the references of download, format, tokenize, train, evaluate and publish, in this order.
    Returns:
        STORE/reports/<name>-<version>-<12 hex digits>.html
    """
    manifests = {name: ref.manifest for name, ref in stages.items()}
    published = manifests["publish"]["info"]
    decides = {
        "outputs": {name: [manifests[name]["key"], ref.digest] for name, ref in stages.items()},
        "template": file_digest(TEMPLATE),
        "code": [source_digest(name) for name in SOURCES],
    }
    file = store_root() / "reports" / f"{published['name']}-{published['version']}-{digest_of(decides)[:12]}.html"
    if file.exists():
        return file
    page = render(stages, manifests)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}-{uuid.uuid4().hex[:8]}")
    try:
        aside.write_text(page, encoding="utf-8")
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
    return file


def render(stages: Mapping[str, ArtifactRef], manifests: Mapping[str, dict[str, Any]]) -> str:
    """The page as text."""
    from tasks.tokenization.schema import TOKENS

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(n=number, score=score, signed=signed, duration=duration, date=date, setting=setting)
    published = manifests["publish"]
    scores = score_table(stages["evaluate"].path, manifests["evaluate"])
    tokens = read_lengths(stages["tokenize"].path / TOKENS)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=published["info"]["name"],
        version=published["info"]["version"],
        created=published["created"],
        base=published["identity"]["config"].get("source", ""),
        revision=published["identity"]["config"].get("revision", ""),
        scores=scores,
        training=training(stages["train"].path, manifests["train"]),
        data=data(stages, tokens, manifests["tokenize"]["info"]),
        preview=preview(stages, manifests, tokens.get("train")),
        answers=answers(stages["evaluate"].path, scores["headline"]["metric"]),
        lineage=[(name, stages[name], manifest) for name, manifest in manifests.items()],
        chart=charts,
    )


def score_table(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Every metric with its interval, and in words what the headline metric says."""
    from tasks.evaluation.schema import SCORES

    rows = read(folder / SCORES).to_pylist()
    drawn = charts.intervals([(r["low"], r["difference"], r["high"]) for r in rows], BAR)
    for row, bar in zip(rows, drawn.bars, strict=True):
        row |= {"title": TITLES.get(row["metric"], row["metric"]), "bar": bar}
    headline = next((row for row in rows if row["metric"] == HEADLINE), rows[0])
    confidence = manifest["info"].get("confidence", manifest["identity"]["config"].get("confidence"))
    return {
        "rows": rows,
        "headline": headline,
        "percent": f"{100 * confidence:g} %" if confidence else "",
        "finding": finding(headline),
        "few": 1 < headline["rows"] < FEW_ROWS,
        "drawn": drawn,
        "width": BAR,
    }


def finding(score: Mapping[str, Any]) -> str:
    """`better`, `worse`, `undecided`, or `single` where one row allows no interval."""
    if score["rows"] < 2:
        return "single"
    return "better" if score["low"] > 0 else "worse" if score["high"] < 0 else "undecided"


def training(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Curves over the steps, totals, and a few steps as numbers."""
    log = read(folder / "training_log.parquet").to_pydict()
    info, config, steps = manifest["info"], manifest["identity"]["config"], log["step"]
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        ("loss", "Loss", {}),
        ("grad_norm", "Gradient norm", {"zero": True, "limit": config.get("max_grad_norm")}),
        ("learning_rate", "Learning rate", {"zero": True, "smooth": False}),
        ("seconds", "Seconds per step", {"zero": True}),
    ]
    drawn = [charts.curve(title, steps, log[name], **more) for name, title, more in wanted if name in log]
    count = len(steps)
    sampled = sorted({round(n * (count - 1) / 9) for n in range(10)})
    return {
        "charts": [chart for chart in drawn if chart],
        "facts": [(label, value, note) for label, value, note in training_facts(log, info) if value],
        "columns": [(name, name.replace("_", " ")) for name in COLUMNS if name in log],
        "sampled": [{name: log[name][i] for name in log} for i in sampled],
        "steps": count,
        "config": config,
    }


def training_facts(log: Mapping[str, list[Any]], info: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(what, value, note) of the whole run; what the run did not note has no value."""
    tokens, learnt = info.get("tokens", sum(log["tokens"])), info.get("learnt_tokens", sum(log["learnt_tokens"]))
    speed, memory = info.get("tokens_per_second"), info.get("peak_memory_bytes", max(log["memory_bytes"], default=0))
    used, padding = info.get("model_flop_utilisation"), info.get("padding_share")
    device = info.get("device", "")
    resumed, halvings = info.get("resumed_from_step"), info.get("out_of_memory_halvings")
    yield "steps", number(len(log["step"])), f"continued from step {resumed:,}" if resumed else ""
    yield "time in steps", duration(info.get("seconds", sum(log["seconds"]))), ""
    yield "loss, first → last", f"{log['loss'][0]:.3f} → {log['loss'][-1]:.3f}", ""
    yield "tokens read", number(tokens), ""
    yield "tokens learnt", number(learnt), f"{100 * learnt / max(1, tokens):.1f} % of those read"
    yield "tokens per second", number(round(speed)) if speed else "", "without the first step"
    yield "peak memory", f"{memory / 2**30:.2f} GiB" if memory else "", ""
    yield "padding", f"{100 * padding:.1f} %" if padding else "", "of the tokens computed"
    yield "FLOP utilisation", f"{100 * used:.1f} %" if used else "", "of the device's peak"
    yield "batches halved", number(halvings) if halvings else "", "after memory ran out"
    yield "device", str(device), ""


def data(
    stages: Mapping[str, ArtifactRef], tokens: Mapping[str, dict[str, Any]], info: Mapping[str, Any]
) -> dict[str, Any]:
    """Rows and losses of the three data stages, and token lengths."""
    from tasks.download.schema import ROWS
    from tasks.formatting.schema import PROMPTS
    from tasks.tokenization.schema import TOKENS

    files = {"download": ROWS, "format": PROMPTS, "tokenize": TOKENS}
    splits = {name: count_splits(stages[name].path / file) for name, file in files.items()}
    names = sorted(set().union(*splits.values()), key=lambda name: (name != "train", name))
    ledgers = {name: read_ledger(stages[name].path) for name in files}
    longest = max((max(t["lengths"]) for t in tokens.values()), default=0)
    limit = info.get("limit")
    learnt, read = (sum(t[what] for t in tokens.values()) for what in ("learnt", "tokens"))
    label = {"train": "Training rows", "test": "Held-out rows"}
    return {
        "splits": names,
        "stages": [(name, splits[name], ledgers[name]) for name in files],
        "ledger": [entry for ledger in ledgers.values() for entry in ledger["first"]][:LEDGER_ROWS],
        "ledger_rows": sum(ledger["rows"] for ledger in ledgers.values()),
        "ledger_files": [str(stages[name].path / "ledger.parquet") for name in files],
        "reasons": [reason for ledger in ledgers.values() for reason in ledger["reasons"]],
        "tokens": [(name, tokens[name]) for name in names if name in tokens],
        "charts": [
            charts.histogram(label.get(name, name), Counter(tokens[name]["lengths"]), longest, limit)
            for name in names
            if name in tokens
        ],
        "longest": longest,
        "limit": limit,
        "limit_shown": limit is not None and limit <= 1.5 * longest,
        "learnt_share": learnt / max(1, read),
        "learnt": learnt,
        "read": read,
    }


def read(file: Path, columns: list[str] | None = None) -> Any:
    """A Parquet file as a table, without the data set machinery of read_table, which imports pandas."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(file).read(columns)


def count_splits(file: Path) -> dict[str, int]:
    return Counter(read(file, ["split"])["split"].to_pylist())


def read_ledger(folder: Path) -> dict[str, Any]:
    """How many rows a stage lost or changed and why, and the first of them."""
    from tasks.store.ledger import LEDGER

    table = read(folder / LEDGER)
    reasons = Counter(zip(*(table[name].to_pylist() for name in ("verdict", "stage", "reason")), strict=True))
    return {
        "rows": table.num_rows,
        "lost": sum(rows for (verdict, *_), rows in reasons.items() if verdict == "lost"),
        "changed": sum(rows for (verdict, *_), rows in reasons.items() if verdict == "changed"),
        "reasons": [(rows, *reason) for reason, rows in reasons.most_common(LEDGER_ROWS)],
        "first": table.slice(0, LEDGER_ROWS).to_pylist(),
    }


def read_lengths(file: Path) -> dict[str, dict[str, Any]]:
    """Per split: each row's number in the file and its tokens, and how many tokens are learnt; read in slices."""
    import numpy as np
    import pyarrow.parquet as pq

    from tasks.tokenization.schema import NOT_LEARNT

    found: dict[str, dict[str, Any]] = {}
    seen = 0
    for batch in pq.ParquetFile(file).iter_batches(4096, columns=["split", "labels"]):
        ends = integers(batch["labels"].offsets)
        learnt_before = np.concatenate([[0], np.cumsum(integers(batch["labels"].values) != NOT_LEARNT)])[ends]
        rows = zip(batch["split"].to_pylist(), np.diff(ends).tolist(), np.diff(learnt_before).tolist(), strict=True)
        for split, tokens, learnt in rows:
            entry = found.setdefault(split, {"where": [], "lengths": [], "learnt": 0})
            entry["where"].append(seen)
            entry["lengths"].append(tokens)
            entry["learnt"] += learnt
            seen += 1
    return {split: {**entry, "tokens": sum(entry["lengths"])} for split, entry in found.items()}


def integers(array: Any) -> Any:
    """An Arrow array of int32 as NumPy sees its buffer; `to_numpy` would import pandas for it."""
    import numpy as np

    return np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array)]


def preview(
    stages: Mapping[str, ArtifactRef], manifests: Mapping[str, dict[str, Any]], rows: Mapping[str, list[int]] | None
) -> list[dict[str, Any]]:
    """Shortest, median and longest training row, decoded from the arrays the trainer reads; none without tokenizer."""
    folder = tokenizer_folder(manifests["train"]["info"].get("model"), manifests["tokenize"])
    if folder is None or not rows:
        return []
    from tokenizers import Tokenizer

    from tasks.tokenization.schema import TOKENS

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [
        {
            "label": label,
            "id": row["id"],
            "tokens": len(row["input_ids"]),
            "learnt": sum(learnt_of(row)),
            "parts": [part for kind, text in decoded(tokenizer, row) for part in shortened(text, kind)],
        }
        for label, row in typical_rows(stages["tokenize"].path / TOKENS, rows)
    ]


def tokenizer_folder(base: str | None, tokenize: Mapping[str, Any]) -> Path | None:
    """The folder with the very tokenizer that made the tokens: training's own, or one in the store."""
    wanted = tokenize["identity"]["inputs"].get("tokenizer")
    for folder in [*([Path(base)] if base else []), *sorted(store_root().glob("artifacts/model-*"))]:
        if (folder / "tokenizer.json").is_file():
            files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
            if wanted == digest_of({file.name: content_digest(file) for file in files}):
                return folder
    return None


def typical_rows(file: Path, rows: Mapping[str, list[int]]) -> list[tuple[str, dict[str, Any]]]:
    """Shortest, median and longest of some rows with their labels; fewer where there are fewer rows."""
    where, lengths = rows["where"], rows["lengths"]
    order = sorted(range(len(where)), key=lengths.__getitem__)
    last = len(order) - 1
    picks = {0: "shortest", last // 2: "median", last: "longest"}
    found = rows_at(file, {where[order[pick]] for pick in picks})
    return [(label, found[where[order[pick]]]) for pick, label in sorted(picks.items())]


def rows_at(file: Path, wanted: set[int]) -> dict[int, dict[str, Any]]:
    """Rows of a Parquet file by their number; the others pass by in slices."""
    import pyarrow.parquet as pq

    found: dict[int, dict[str, Any]] = {}
    first = 0
    for batch in pq.ParquetFile(file).iter_batches(1024):
        for index in wanted & set(range(first, first + len(batch))):
            found[index] = batch.slice(index - first, 1).to_pylist()[0]
        first += len(batch)
    return found


def learnt_of(row: Mapping[str, Any]) -> list[bool]:
    from tasks.tokenization.schema import NOT_LEARNT

    return [label != NOT_LEARNT for label in row["labels"]]


def decoded(tokenizer: Any, row: Mapping[str, Any]) -> Iterator[Part]:
    """Stretches of masked and learnt tokens as text, special tokens included."""
    ids, learnt = row["input_ids"], learnt_of(row)
    start, before = 0, ""
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learnt[end] != learnt[start]:
            # decoded from the row's beginning: a space depends on the token before it
            whole = tokenizer.decode(ids[:end], skip_special_tokens=False)
            alone = tokenizer.decode(ids[start:end], skip_special_tokens=False)
            yield ("learnt" if learnt[start] else "masked"), whole[len(before) :] if whole.startswith(before) else alone
            start, before = end, whole


def answers(folder: Path, metric: str) -> dict[str, Any]:
    """Most improved, median and most worsened held-out row by a metric, and how the differences spread."""
    from tasks.evaluation.schema import PREDICTIONS

    file = folder / PREDICTIONS
    table = read(file, [f"base_{metric}", f"tuned_{metric}"])
    base, tuned = (column.to_pylist() for column in table.columns)
    ranked = sorted(((b - a), n) for n, (b, a) in enumerate(zip(base, tuned, strict=True)))  # largest gain first
    change = [-loss for loss, _ in ranked]
    last = len(ranked) - 1
    picks = {last // 2: "median change"}
    picks[last] = "most worsened" if change[last] < 0 else "least improved" if change[last] > 0 else "least changed"
    picks[0] = "most improved" if change[0] > 0 else "least worsened" if change[0] < 0 else "least changed"
    if last == 0:
        picks = {0: "the only row"}
    rows = rows_at(file, {ranked[pick][1] for pick in picks})
    return {
        "chart": charts.sorted_bars("Difference by row", "held-out rows, lowest difference to highest", change),
        "better": sum(c > 0 for c in change),
        "worse": sum(c < 0 for c in change),
        "equal": sum(c == 0 for c in change),
        "title": TITLES.get(metric, metric),
        "rows": [answer_row(rows[ranked[pick][1]], label, metric) for pick, label in sorted(picks.items())],
    }


def answer_row(row: Mapping[str, Any], label: str, metric: str) -> dict[str, Any]:
    return {
        "label": label,
        "id": row["id"],
        "base_score": row[f"base_{metric}"],
        "tuned_score": row[f"tuned_{metric}"],
        "prompt": shortened(row["prompt"], times=4),
        "references": [shortened(text) for text in row["references"][:5]],
        "more_references": max(0, len(row["references"]) - 5),
        "base": shortened(row["base"]),
        "tuned": shortened(row["tuned"]),
    }


def shortened(text: str, kind: str = "text", times: int = 1) -> list[Part]:
    """A text in parts, its middle left out where it is `times` too long for a page."""
    characters, lines = LONGEST_TEXT * times // 2, MOST_LINES * times // 2
    if len(text) <= 2 * characters and text.count("\n") < 2 * lines:
        return [(kind, text)]
    first = "".join(text[:characters].splitlines(keepends=True)[:lines])
    last = "".join(text[-characters:].splitlines(keepends=True)[-lines:])
    left_out = len(text) - len(first) - len(last)
    return (
        [(kind, first), ("gap", f"{left_out:,} characters left out"), (kind, last)] if left_out > 0 else [(kind, text)]
    )


def number(value: int | float) -> str:
    """12,345"""
    return f"{value:,}"


def score(value: float) -> str:
    return f"{value:.3f}"


def signed(value: float) -> str:
    """+0.139 or −0.020; more decimals where three would show a difference as none."""
    decimals = next((d for d in (3, 4, 5, 6) if round(value, d)), 3)
    return f"{value:+.{decimals}f}".replace("-", "−") if round(value, decimals) else "0.000"


def duration(seconds: float) -> str:
    """0.41 s · 12.3 s · 8 min 45 s · 3 h 12 min"""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def date(text: str) -> str:
    """24 November 2026, 08:52 UTC"""
    moment = datetime.fromisoformat(text)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def setting(value: Any) -> str:
    """A field's value as the YAML file would have it."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(v, str) for v in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)
