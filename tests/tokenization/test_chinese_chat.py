"""A Chinese conversation, from the file to the training rows: the assistant's turns are learnt, nothing else."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.config import DataConfig, FormattingConfig, TokenizationConfig
from tasks.download.rows import write_rows
from tasks.formatting.prompts import write_prompts
from tasks.tokenization.encode import write_tokens
from tasks.tokenization.vocabulary import Vocabulary
from tasks.training.data import read_rows
from tests.tiny import write_jsonl

CITIES = ["北京", "上海", "广州", "深圳", "成都", "杭州", "武汉", "西安", "南京", "重庆"]


def turns(n: int) -> list[tuple[str, str]]:
    """(sender, text) of a conversation with two answers."""
    city = CITIES[n % len(CITIES)]
    return [
        ("system", "你是一个乐于助人的助手。"),
        ("human", f"请问从{city}到机场要多久？我有{n}件行李。"),
        ("gpt", f"从{city}市中心出发大约{n + 20}分钟，「早高峰」请提前。😀"),
        ("human", "谢谢！要带什么证件吗？"),
        ("gpt", f"请带好身份证；第{n}号航站楼可以自助值机。"),
    ]


def sharegpt(n: int) -> dict[str, Any]:
    return {"id": f"对话{n}", "messages": [{"from": who, "value": text} for who, text in turns(n)]}


def messages(n: int) -> dict[str, Any]:
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    return {"id": f"对话{n}", "messages": [{"role": roles[who], "content": text} for who, text in turns(n)]}


@pytest.mark.parametrize("row", [sharegpt, messages])
def test_only_the_assistants_turns_are_learnt(row: Any, tmp_path: Path, tiny_model: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [row(n) for n in range(40)])
    for name in ("rows", "prompts", "tokens"):
        (tmp_path / name).mkdir()
    downloaded = write_rows(DataConfig(path=str(file)), tmp_path / "rows")
    chat = FormattingConfig(style="chat")
    formatted = write_prompts(tmp_path / "rows/rows.parquet", tiny_model, chat, tmp_path / "prompts")
    tokenized = write_tokens(
        tmp_path / "prompts/prompts.parquet",
        formatted.special_tokens,
        tiny_model,
        2048,
        TokenizationConfig(),
        tmp_path / "tokens",
    )
    assert [(info.rows, info.lost, info.changed) for info in (downloaded, formatted, tokenized)] == [(40, 0, 0)] * 3

    vocabulary = Vocabulary(tiny_model, rendered=True)
    for found in pq.read_table(tmp_path / "tokens/tokens.parquet").to_pylist():
        said = turns(int(found["id"].removeprefix("对话")))
        pairs = list(zip(found["input_ids"], found["labels"], strict=True))
        assert all(label in (-100, token) for token, label in pairs)
        learnt = vocabulary.decode([token for token, label in pairs if label != -100])
        assert learnt.replace("<|eot_id|>", "") == "".join(text for who, text in said if who == "gpt")
        assert found["input_ids"].count(0) == 1  # one beginning of text
        assert sum(token == 1 and label == 1 for token, label in pairs) == 2  # both ends of turns are learnt
        whole = vocabulary.decode(found["input_ids"])
        assert all(text in whole for _, text in said)

    rows = read_rows(tmp_path / "tokens/tokens.parquet")[0]
    assert len(rows) == tokenized.train > 20
