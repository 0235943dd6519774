"""Rows that try to forge log lines, steer the terminal and write markup into pages: every output of the data stages."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from flows.run.data import check_losses
from flows.run.logs import Readable
from tasks.config import DataConfig, FormattingConfig, TokenizationConfig, TrainingConfig
from tasks.download.rows import write_rows
from tasks.errors import UserError
from tasks.formatting.prompts import write_prompts
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.identity import Identity
from tasks.tokenization.encode import write_tokens
from tests.tiny import make_rows, read_rows_file, write_jsonl

HOSTILE = (
    "x\nFORGED | INFO | all is well\r\x1b]0;title\x07\x1b[2J\x9b31m\u202e\u2028|``` `<script>alert(1)</script>"
    "[link](javascript:alert(1)) [red]![i](http://evil.invalid/x.png)"
)
UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]|^FORGED", re.M)


@pytest.fixture
def stages(tmp_path: Path, tiny_model: Path, store: Path) -> dict[str, ArtifactRef]:
    rows: list[dict[str, Any]] = [
        {**row, "id": f"{HOSTILE}{n}", "dialogue": f"{HOSTILE} {row['dialogue']}", HOSTILE: HOSTILE}
        for n, row in enumerate(make_rows(40))
    ]
    rows += [rows[0], {**rows[1], "id": "no answer " + HOSTILE, "summary": ""}]
    data = DataConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    made = {"download": produce(Identity(stage="download"), lambda folder: write_rows(data, folder))}
    made["format"] = produce(
        Identity(stage="format"),
        lambda folder: write_prompts(
            made["download"].path / "rows.parquet", tiny_model, FormattingConfig(), folder, print
        ),
    )
    made["tokenize"] = produce(
        Identity(stage="tokenize"),
        lambda folder: write_tokens(
            made["format"].path / "prompts.parquet", "add", tiny_model, 512, TokenizationConfig(), folder, print
        ),
    )
    return made


def test_a_log_line_is_one_line(stages: dict[str, ArtifactRef], monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.run import data

    lines: list[str] = []
    pages: list[str] = []
    monkeypatch.setattr(data, "get_run_logger", lambda: logger)
    monkeypatch.setattr(data, "create_markdown_artifact", lambda page, **_: pages.append(page))
    logger = logging.getLogger("test of hostile rows")
    logger.setLevel(logging.INFO)
    logger.addFilter(Readable())
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    data.show_data(stages, TrainingConfig(), "data-x")
    assert any("FORGED" in line for line in lines)
    assert not any("\n" in line or UNSEEN.search(line) for line in lines)

    (page,) = pages
    assert "FORGED" in page
    assert not re.search(UNSEEN.pattern.removesuffix("|^FORGED"), page)
    prose = re.sub(r"^(`{3,}).*?^\1$", "", page, flags=re.M | re.S)
    prose = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", prose)
    prose = re.sub(r"\(data:image/svg\+xml;base64,[\w+/=]+\)", "", prose)
    assert "### Longest: row " in prose and "![Training rows]" in prose
    assert not re.search(r"FORGED|<script|javascript:|\[red\]|evil", prose)


def test_a_mistake_that_quotes_rows_is_one_line(stages: dict[str, ArtifactRef], tiny_model: Path) -> None:
    rows = stages["download"].path / "rows.parquet"
    with pytest.raises(UserError, match=r"The first: row x\\nFORGED.*duplicate id") as lost:
        check_losses(list(stages.values()), 0)
    with pytest.raises(UserError, match="no column is called nothing") as unknown:
        write_prompts(rows, tiny_model, FormattingConfig(completion="{{ nothing }}"), rows.parent, print)
    for error in (lost, unknown):
        assert not UNSEEN.search(str(error.value))
        assert "\n" not in str(error.value)


def test_the_rows_themselves_keep_what_they_held(stages: dict[str, ArtifactRef]) -> None:
    held = HOSTILE.replace("\x07", "")  # which download takes out, and says so in its ledger
    row = read_rows_file(stages["download"].path / "rows.parquet")[0]
    assert row["_id"].startswith(held) and row["dialogue"].startswith(held)
    assert json.loads((stages["tokenize"].path / "preview.json").read_text())[0]["id"].startswith(held)


def test_a_childs_output_is_one_log_line_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.process.child import ChildFailed, run_child

    (tmp_path / "hostile_child.py").write_text("print('a\\x1b[2J\\x85\\u2028b'); raise SystemExit(5)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lines: list[str] = []
    with pytest.raises(ChildFailed) as failed:
        run_child("hostile_child", {}, lines.append)
    assert lines == ["a\\x1b[2J\\x85\\u2028b"]
    assert lines[0] in str(failed.value)
