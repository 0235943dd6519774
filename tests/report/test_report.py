"""The page of a run, from artifacts made by hand: what it says, what it shows as text, and when it is written."""

import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import METRICS
from tasks.download.facts import RowsFacts
from tasks.evaluation.facts import EvaluationFacts
from tasks.evaluation.schema import HEALTH, SCORE_SCHEMA, prediction_schema
from tasks.publishing.facts import VersionFacts
from tasks.report import charts
from tasks.report.answers import marked
from tasks.report.report import write_report
from tasks.report.scores import scores
from tasks.report.words import duration, signed
from tasks.store.artifact import ArtifactRef, write_folder
from tasks.store.facts import Facts, LedgerFacts
from tasks.store.identity import Identity, installed
from tasks.store.ledger import Ledger
from tasks.tokenization.facts import TokenFacts
from tasks.tokenization.preview import write_preview
from tasks.tokenization.schema import IGNORE_INDEX, LEARNT, TOKEN_SCHEMA
from tasks.tokenization.statistics import Statistics
from tasks.training.facts import TrainingFacts
from tests.tiny import noted

STEP = {
    "tokens": 200,
    "learnt_tokens": 40,
    "learning_rate": 2e-4,
    "grad_norm": 0.8,
    "tokens_per_second": 100.0,
    "memory_bytes": 2**31,
    "seconds": 2.0,
}


@dataclass
class Run:
    """What a made-up run has; a test changes what it is about."""

    difference: tuple[float, float, float] = (0.139, 0.102, 0.178)  # mean, low, high
    steps: int = 30
    prompt: str = "Ada : buy milk ? Ben : yes"
    answer: str = "Ben buys milk ."
    base: list[str] = field(default_factory=lambda: ["no", "milk", "Ben buys milk ."])
    tuned: list[str] = field(default_factory=lambda: ["Ben buys milk .", "Ben milk", "no"])
    scores: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.9), (0.3, 0.4), (0.8, 0.1)])
    lost: list[tuple[str, str, str, str]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    champion: float = 0.0  # its distance from the tuned model's score; 0: there is no champion
    validation: dict[int, float] = field(default_factory=dict)  # step: loss


def put(folder: Path, stage: str, write: Callable[[Path], Any], **identity: Any) -> ArtifactRef:
    return write_folder(Identity(stage=stage, **identity), folder / (stage + "-made"), write)


def make_tokenizer(folder: Path, text: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": ["<|end|>"], "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=300, **options))
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def make_run(store: Path, run: Run) -> dict[str, ArtifactRef]:
    """Six artifacts in a store, and a base model's tokenizer where the adapter says it is."""
    artifacts, base = store / "artifacts", store.parent / "base"
    tokenizer = make_tokenizer(base, run.prompt + run.answer)
    splits = ["train"] * 4 + ["test"] * len(run.base)

    def rows(name: str) -> Callable[[Path], Any]:
        def write(folder: Path) -> Facts:
            pq.write_table(pa.table({"split": splits}), folder / name)
            ledger = Ledger("download" if name == "rows.parquet" else "format", folder)
            for entry in run.lost if name == "rows.parquet" else []:
                ledger.add("lost", *entry)
            sources = {"sources": {"support": {"read": 36, "train": 84, "test": 8}}} if name == "rows.parquet" else {}
            return noted(RowsFacts if sources else LedgerFacts, rows=len(splits), **ledger.write(), **sources)

        return write

    def tokens(folder: Path) -> Facts:
        prompt, answer = tokenizer.encode(run.prompt).ids, [*tokenizer.encode(run.answer).ids, 0]
        row = {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer}
        made = [{"id": f"r{n}", "split": split, **row} for n, split in enumerate(splits)]
        pq.write_table(pa.Table.from_pylist(made, TOKEN_SCHEMA), folder / "tokens.parquet")
        statistics = Statistics()
        statistics.add(pa.RecordBatch.from_pylist([{**m, LEARNT: len(answer)} for m in made]), [])
        statistics.write(folder, 2048)
        decode = functools.partial(tokenizer.decode, skip_special_tokens=False)
        write_preview(folder, *statistics.training_rows(), decode)
        return noted(TokenFacts, rows=len(made), limit=2048, **Ledger("tokenize", folder).write())

    def train(folder: Path) -> Facts:
        log = [
            {"step": n, "loss": 3 / n + 1, "validation_loss": run.validation.get(n), **STEP}
            for n in range(1, run.steps + 1)
        ]
        if run.validation:
            ledger = Ledger("train", folder)
            ledger.add("left out", "r3", "train", "held back for validation", "")
            ledger.write()
        pq.write_table(pa.Table.from_pylist(log), folder / "training_log.parquet")
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_text("w")
        return noted(TrainingFacts, **run.info, model=str(base))

    def evaluate(folder: Path) -> Facts:
        made = [
            {"id": f"t{n}", "prompt": run.prompt, "references": [run.answer], "base": before, "tuned": after}
            | {f"{who}_{name}": value for who, value in zip(("base", "tuned"), pair, strict=True) for name in METRICS}
            for n, (before, after, pair) in enumerate(zip(run.base, run.tuned, run.scores, strict=True))
        ]
        pq.write_table(pa.Table.from_pylist(made, prediction_schema([*METRICS])), folder / "predictions.parquet")
        mean, low, high = run.difference if len(made) > 1 else (run.difference[0], None, None)
        score = {
            "rows": len(made),
            "groups": len(made),
            "base": 0.213,
            "tuned": 0.213 + mean,
            "difference": mean,
            "low": low,
            "high": high,
        }
        if run.champion:
            bounds = (f"champion_{name}" for name in ("difference", "low", "high"))
            score |= {"champion": 0.2, **dict.fromkeys(bounds, run.champion)}
            made = [
                row | {name.replace("base", "champion"): row[name] for name in row if "base" in name} for row in made
            ]
            pq.write_table(pa.Table.from_pylist(made, prediction_schema([*METRICS])), folder / "predictions.parquet")
        table = pa.Table.from_pylist([{"metric": name, **score} for name in METRICS], SCORE_SCHEMA)
        pq.write_table(table, folder / "scores.parquet")
        health = {name: {"base": 0.125, "champion": 0.125, "tuned": n} for n, name in enumerate(HEALTH)}
        champion = "v0006" if run.champion else ""
        return noted(EvaluationFacts, rows=len(made), confidence=0.95, health=health, champion=champion)

    def publish(folder: Path) -> Facts:
        (folder / "README.md").write_text("card")
        return noted(VersionFacts, name="milk", version="v0007", base="owner/base")

    return {
        "download": put(artifacts, "download", rows("rows.parquet"), config={"path": "rows.jsonl"}),
        "format": put(artifacts, "format", rows("prompts.parquet"), config={"prompt": "{{ a }}\n{{ b }}"}),
        "tokenize": put(artifacts, "tokenize", tokens),
        "train": put(
            artifacts,
            "train",
            train,
            config={"max_grad_norm": 1.0, "micro_batch_tokens": 100, "batch_size": 8},
            libraries=installed("pyarrow"),
        ),
        "evaluate": put(artifacts, "evaluate", evaluate),
        "publish": put(artifacts, "publish", publish),
    }


def text_of(page: str) -> str:
    """What a reader sees, on one line."""
    body = re.sub(r"<(style|title)\b.*?</\1>", " ", page, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]*>", "", body)).split())


@pytest.mark.parametrize(
    ("difference", "verdict", "sentence"),
    [
        ((0.02, 0.0, 0.0), "A single row, or a single group of rows, allows no interval", ""),
        ((-0.139, -0.178, -0.102), "Better than the base. The interval excludes 0", "−0.178 to −0.102"),
        ((0.05, 0.01, 0.09), "Worse than the base. The interval excludes 0", "+0.010 to +0.090"),
        ((0.02, -0.01, 0.05), "Undecided. The interval includes 0", "−0.010 to +0.050"),
        ((0.02, 0.0, 0.05), "Undecided. The interval includes 0", "0.000 to +0.050"),
    ],
)
def test_verdict_says_what_the_interval_allows(
    store: Path, difference: tuple[float, float, float], verdict: str, sentence: str
) -> None:
    run = Run(difference=difference) if sentence else Run(base=["a"], tuned=["b"], scores=[(0.1, 0.9)])
    page = text_of(write_report(make_run(store, run)).read_text())
    if sentence:
        assert f"Held-out loss (lower is better) 0.213 → {0.213 + difference[0]:.3f} on 3 held-out rows" in page
        assert f"95 % interval of the difference {sentence}." in page
    assert sum(word in page for word in ("Better than", "Worse than", "Undecided. ")) == 1
    assert verdict in page


def test_shares_have_one_axis_and_other_metrics_their_own(store: Path) -> None:
    ref = make_run(store, Run(difference=(0.1, 0.05, 0.15)))["evaluate"]
    alone = scores(ref.path, ref.manifest)["tables"]["all"]
    table = pq.read_table(ref.path / "scores.parquet").to_pylist()
    wide = {**table[0], "metric": "judge:points", "tuned": 60.213, "difference": 60.0, "low": 40.0, "high": 80.0}
    three = [
        line | {"champion": 0.2, **dict.fromkeys(("champion_difference", "champion_low", "champion_high"), 0.1)}
        for line in [wide, *table]
    ]
    pq.write_table(pa.Table.from_pylist(three, SCORE_SCHEMA), ref.path / "scores.parquet")
    first, *others = scores(ref.path, ref.manifest)["tables"]["all"]["lines"]
    assert [dict(line["dots"])["tuned"] for line in others] == [dict(line["dots"])["tuned"] for line in alone["lines"]]
    places = dict(first["dots"])
    assert [*places] == ["base", "champion", "tuned"]
    assert places["champion"] <= places["base"] < first["low"] < places["tuned"] < first["high"]
    assert first["cells"][2] == "0.2000" and first["cells"][-2:] == ["+0.1000", "+0.1000 to +0.1000"]


def test_a_plain_run_has_its_scores_figures_sources_and_tokens_and_asks_for_nothing(store: Path) -> None:
    source = write_report(make_run(store, Run())).read_text()
    assert not re.search(r"https?://|@import|url\(|<script|<iframe|<link(?![^>]*data:,)", source)
    page = text_of(source)
    for metric in METRICS.values():
        assert f"{metric.label} 0.21300.3520+0.1390 +0.1020 to +0.1780" in page
    assert "empty0.1250.000 never-ending0.1251.000" in page and "length ÷ reference0.1254.000" in page
    assert "Sources sourcerows readto train onheld out support36848" in page
    tokens = pq.read_table(next(store.glob("artifacts/tokenize-*/tokens.parquet"))).to_pylist()
    read, learnt = (
        sum(label != IGNORE_INDEX or whole for row in tokens for label in row["labels"]) for whole in (1, 0)
    )
    assert f"{100 * learnt / read:.1f} % of the tokens are learnt: {learnt:,} of {read:,}" in page
    assert "A forward pass of 100 tokens will be " in page and "with 8 rows a step" in page
    assert source.count("4 rows</title>") == source.count("3 rows</title>") == 1  # a bar for each split
    training = source[source.index('id="training"') : source.index('id="data"')]
    assert "validation" not in training and 'class="mark"' not in training


def test_better_than_the_base_and_worse_than_the_champion_is_no_good_news(store: Path) -> None:
    page = write_report(make_run(store, Run(difference=(-0.139, -0.178, -0.102), champion=0.1))).read_text()
    assert '<div class="finding" style="--tone: var(--worse)">' in page
    assert "Better than the base." in page and "Against the version in use, v0006: worse." in text_of(page)


def test_second_call_finds_the_page(store: Path) -> None:
    stages = make_run(store, Run())
    file = write_report(stages)
    assert re.fullmatch(r"milk-v0007-[0-9a-f]{12}\.html", file.name)
    assert [p.name for p in (store / "reports").iterdir()] == [file.name]
    file.write_text("kept")
    assert write_report(stages) == file
    assert file.read_text() == "kept"
    decided = text_of(write_report(stages, "Kept v0006: v0007 is no better.").read_text())
    assert decided.index("Kept v0006: v0007 is no better.") < decided.index("Held-out loss")
    assert "Worse than the base:" not in decided  # the decision is the verdict
    shutil.rmtree(store.parent / "base")
    assert write_report(make_run(store, Run(steps=7))) != file


def test_text_of_rows_is_never_markup(store: Path) -> None:
    evil = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> {{ 7 * 7 }}"
    run = Run(prompt=evil, answer=evil, base=[evil] * 3, tuned=[evil] * 3, lost=[(evil, "train", evil, evil)])
    page = write_report(make_run(store, run)).read_text()
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(1)" in page and "{{ 7 * 7 }}" in page


def test_preview_shows_what_the_trainer_reads(store: Path) -> None:
    run = Run(prompt="Ada : ¿kaufst du 牛奶 ?\n", answer="Бен buys 🥛 .")
    page = write_report(make_run(store, run)).read_text()
    section = page[page.index('id="learnt"') : page.index('id="lineage"')]
    texts = re.findall(r'<div class="text whole" dir="auto">(.*?)</div>', section, flags=re.S)
    assert len(texts) == 3
    for text in texts:
        parts = re.findall(r'<span class="(\w+)">(.*?)</span>', text, flags=re.S)
        assert [(kind, unescape(part)) for kind, part in parts] == [
            ("masked", run.prompt),
            ("learnt", run.answer + "<|end|>"),
        ]


def test_answers_are_picked_by_rule(store: Path) -> None:
    values = [(0.5, 0.5 + n / 100) for n in range(-9, 11)]
    texts = ["a"] * len(values)
    page = text_of(write_report(make_run(store, Run(base=texts, tuned=texts, scores=values))).read_text())
    rows = [
        re.findall(r"row (t\d+) ·", part) for part in re.split("Largest gains|Largest losses|A random sample", page)[1:]
    ]
    assert rows[:2] == [["t0", "t1", "t2", "t3"], ["t19", "t18", "t17", "t16"]]
    assert len(rows[2]) == 4 and not {*rows[2]} & {*rows[0], *rows[1]}
    assert "row t19 · held-out loss 0.500 → 0.600, +0.100" in page
    assert "Tuned was better than the base on 9 rows, worse on 10, the same on 1." in page


def test_differences_of_two_answers_are_marked(store: Path) -> None:
    run = Run(base=["Ben buys cold milk ."] * 3, tuned=["Ben buys milk today ."] * 3)
    page = write_report(make_run(store, run)).read_text()
    assert '<span class="plain">Ben buys </span><span class="gone">cold </span><span class="plain">milk </span>' in page
    assert '<span class="new">today </span>' in page
    assert marked("你买牛奶吗", "你卖牛奶吗")[1] == [("text", "你"), ("new", "卖"), ("text", "牛奶吗")]
    assert marked("中" * 2990, "中" * 2980)[0] == [("text", "中" * 2990)]  # to compare them would take seconds
    assert marked("one two three", "a b c d e") == ([("text", "one two three")], [("text", "a b c d e")])


def test_a_version_stands_beside_the_earlier_ones(store: Path) -> None:
    stages = make_run(store, Run())
    score = {"metric": "loss", "rows": 60, "base": 3.0, "tuned": 2.25}
    for name, adapter in (("v0001", "gone"), ("v0002", stages["train"].part("adapter"))):
        facts = noted(VersionFacts, name="milk", version=name, scores=[score])
        identity = Identity(stage="publish", inputs={"adapter": adapter})
        stages["publish"] = write_folder(
            identity, store / "registry" / "milk" / name, lambda folder, facts=facts: facts
        )
    page = text_of(write_report(stages).read_text())
    assert "v0001not compared—602.2500———" in page  # what trained it is not in this store any more
    assert "v0002not compared—602.25000.000000.0" in page


def test_lost_rows_are_named(store: Path) -> None:
    lost = [(f"x{n}", "train", "duplicate id", f"seen before {n}") for n in range(20)]
    page = text_of(write_report(make_run(store, Run(lost=lost))).read_text())
    assert "20 lost in download: duplicate id." in page
    assert "seen before 7" in page and "seen before 8" not in page
    assert "The first 8 of 20" in page


@pytest.mark.parametrize("steps", [1, 2, 25, 50_000])
def test_any_number_of_steps_draws(store: Path, steps: int) -> None:
    page = write_report(make_run(store, Run(steps=steps))).read_text()
    assert f"over {steps:,} steps" in page
    assert len(page.encode()) < 300_000
    assert not re.search(r"\bnan\b", page)
    assert (">step 1: 4<" in page) == (steps <= 200)
    assert ("Every step as numbers" in page) == (steps <= 10)


def test_totals_the_run_noted_are_shown(store: Path) -> None:
    info = {"tokens_per_second": 1379.0, "resumed_from_step": 10, "device": "a GPU"}
    info |= {"out_of_memory_halvings": 0, "speed": "lean"}
    page = text_of(write_report(make_run(store, Run(info=info))).read_text())
    assert all(text in page for text in ("1,379", "continued from step 10", "a GPU", "speed: lean"))
    assert "batches halved0" in page


def test_validation_is_drawn_beside_the_training_loss(store: Path) -> None:
    info = {"validation_rows": 1, "validation_loss": 1.5, "validation_loss_last": 2.0, "best_step": 14}
    run = Run(validation={7: 1.75, 14: 1.5, 21: 2.0}, info=info | {"stopped_early": True})
    page = write_report(make_run(store, run)).read_text()
    assert [f"step {n}: {loss}" in page for n, loss in ((7, "1.75"), (14, "1.5"), (21, "2"))] == [True] * 3
    assert page.count('class="mark"') == 3 and page.count('class="line second"') == 1
    text = text_of(page)
    assert "dashed: validation" in text and "1.500step 14, whose weights were kept; last 2.000" in text
    assert "stopped early: validation loss no longer fell" in text
    assert "1 left out in train: held back for validation" in text
    assert "1.5000" in text  # its row is among those shown as numbers


def test_very_long_answers_lose_their_middle(store: Path) -> None:
    run = Run(base=["x" * 1_000_000] * 3, tuned=["y\n" * 100] * 3)
    page = write_report(make_run(store, run)).read_text()
    assert "997,000 characters left out" in page and "80 characters left out" in page
    assert page.count("y\n") == 3 * 60
    assert len(page) < 200_000


def test_page_takes_neither_torch_nor_pandas(store: Path) -> None:
    stages = make_run(store, Run())
    references = {name: ref.model_dump() for name, ref in stages.items()}
    code = (
        "import json, sys\n"
        "from tasks.store.artifact import ArtifactRef\n"
        "from tasks.report.report import write_report\n"
        "assert 'pyarrow' not in sys.modules\n"
        "write_report({k: ArtifactRef(**v) for k, v in json.loads(sys.argv[1]).items()})\n"
        "assert not {'torch', 'pandas', 'matplotlib', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(references)], check=True, env=dict(os.environ))


def test_thinned_line_keeps_every_spike() -> None:
    points = [(float(n), math.sin(n / 500)) for n in range(50_000)]
    points[31_234] = (31_234.0, 99.0)
    points[7] = (7.0, -99.0)
    thin = charts.thinned(points)
    assert len(thin) <= charts.POINTS + 2
    assert points[31_234] in thin and points[7] in thin and thin[0] == points[0] and thin[-1] == points[-1]
    assert thin == sorted(thin)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 5e-4, ["0", "2e-4", "4e-4", "6e-4"]),
        (1.98, 3.65, ["1.5", "2.0", "2.5", "3.0", "3.5", "4.0"]),
        (0, 50_000, ["0", "20k", "40k", "60k"]),
        (-0.3, 0.5, ["−0.4", "−0.2", "0", "0.2", "0.4", "0.6"]),
        (2.0, 2.0, ["1.8", "1.9", "2.0", "2.1", "2.2"]),
    ],
)
def test_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in charts.Scale(low, high, 0, 100).ticks()] == labels


def test_a_spike_does_not_flatten_the_curve() -> None:
    drawn = charts.curve("Loss", range(1000), [50.0 if n == 700 else 1 + n % 7 / 10 for n in range(1000)])
    assert drawn is not None
    assert drawn.beyond == " · 1 beyond the axis, up to 50"
    assert float(drawn.y_ticks[-1][1]) < 3
    assert all(charts.TOP <= float(p.split(",")[1]) <= charts.BOTTOM for p in drawn.line.split())


def test_values_that_are_not_finite_are_left_out() -> None:
    assert charts.curve("Loss", [1, 2], [math.nan, math.inf]) is None
    drawn = charts.curve("Loss", [1, 2, 3], [1.0, math.nan, 2.0])
    assert drawn is not None and len(drawn.dots) == 2


def test_limit_is_drawn_where_rows_come_near_it() -> None:
    lengths = charts.Counter({100: 3, 500: 1})
    assert charts.histogram("Rows", lengths, 500, 2048).upright is None
    near = charts.histogram("Rows", lengths, 500, 512)
    assert near.upright is not None and near.upright.text == "limit 512"
    assert sum(int(bar.text.split(": ")[1].split()[0]) for bar in near.bars) == 4


def test_numbers_read_well() -> None:
    assert [signed(v) for v in (0.1394, -0.02, 0.0, 0.00012)] == ["+0.139", "−0.020", "0.000", "+0.0001"]
    assert [duration(v) for v in (0.411, 12.34, 525.3, 11_520)] == ["0.41 s", "12.3 s", "8 min 45 s", "3 h 12 min"]
