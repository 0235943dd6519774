"""A model that answers exactly what is learnt scores 1 with every metric: references are the text that is learnt."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.config import METRICS, EvaluationConfig, FormattingConfig, TokenizationConfig
from tasks.evaluation import worker
from tasks.evaluation.answers import generate
from tasks.evaluation.rows import held_out
from tasks.evaluation.schema import PREDICTIONS, SCORES, EvaluationJob
from tasks.formatting.prompts import write_prompts
from tasks.tokenization.encode import write_tokens
from tests.formatting.test_chat_templates import ANSWERED, ASKED, BOTH, OPENAI, TEMPLATES, THOUGHT, WEATHER, model, said
from tests.tiny import write_rows_file

INSIDE = [ASKED, said("assistant", "<think>\nClouds.\n</think>\n\nIt rains.")]
TWICE = [ASKED, ANSWERED, ASKED, {**THOUGHT[1], "content": "It still rains, e\u0301té comme hiver."}]
CALLED = {"messages": OPENAI[:2], "tools": [WEATHER]}
CASES: dict[str, list[Any]] = {
    "qwen-3": [[ASKED, ANSWERED], THOUGHT, BOTH, INSIDE, TWICE, {"messages": OPENAI}, CALLED],
    "qwen-2.5": [[ASKED, ANSWERED], BOTH, INSIDE, CALLED],
    "llama-3.1": [[ASKED, ANSWERED], CALLED, INSIDE],
    "generation": [[ASKED, ANSWERED], OPENAI],
}


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_perfect_model_scores_1(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model(tmp_path / "base", (TEMPLATES / f"{name}.jinja").read_text())
    (base / "config.json").write_text("{}")
    given = json.loads(json.dumps([case if isinstance(case, dict) else {"messages": case} for case in CASES[name]]))
    for n, row in enumerate(given):
        row["messages"][0]["content"] += f" {n}"  # each prompt has one answer
    folders = {stage: tmp_path / stage for stage in ("rows", "prompts", "tokens", "scores")}
    for folder in folders.values():
        folder.mkdir()
    rows = [{**row, "_split": "test"} for row in given]
    file = write_rows_file(folders["rows"] / "rows.parquet", rows)
    formatted = write_prompts(file, base, FormattingConfig(style="chat"), folders["prompts"])
    prompts, tokens = folders["prompts"] / "prompts.parquet", folders["tokens"] / "tokens.parquet"
    tokenized = write_tokens(
        prompts, formatted.special_tokens, base, 4096, TokenizationConfig(), folders["tokens"], print
    )
    assert tokenized.test == len(given)

    stop = generate.stop_ids(base, tokenized.eos)
    perfect = {}
    for row in held_out(tokens, prompts, 0):
        learnt = row["input_ids"][len(row["prompt_ids"]) :]
        perfect[tuple(row["prompt_ids"])] = learnt[: next(n for n, id in enumerate(learnt) if id in stop)]
    monkeypatch.setattr(generate, "answer", lambda _, asked, *__: [perfect[tuple(ids)] for ids in asked])
    monkeypatch.setattr(worker._Loaded, "model_of", lambda *_: contextlib.nullcontext())
    job = EvaluationJob(
        tokens=tokens,
        prompts=prompts,
        rows=None,
        watch={},
        ending=formatted.ending,
        eos=tokenized.eos,
        model=base,
        adapter=base,
        champion=None,
        trained_before=[],
        digests={"model": "m", "tuned": "t"},
        training={},
        config=EvaluationConfig(metrics=[name for name in METRICS if name != "loss"]),
        output=folders["scores"],
    )
    worker.evaluate(job.model_dump())
    answers = pq.read_table(folders["scores"] / PREDICTIONS).to_pylist()
    for row in answers:
        assert [row["tuned"]] == row["references"]
    for line in pq.read_table(folders["scores"] / SCORES).to_pylist():
        assert line["tuned"] == 1, line["metric"]
