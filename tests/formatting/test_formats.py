"""Every input format of examples/formats: its rows, as its first lines describe them, become prompts and answers."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.config_file import load
from tasks.config import DataConfig, FormattingConfig
from tasks.download.rows import write_rows
from tasks.formatting.prompts import write_prompts
from tests.tiny import read_rows_file

FORMATS = Path(__file__).parents[2] / "examples/formats"
COUNT = 30
CLOCK = {"name": "clock", "description": "Tells the time"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": "{}"}}]}
TEMPLATE = (Path(__file__).parent / "chat_templates/qwen-2.5.jinja").read_text().replace("<|im_end|>", "<|eot_id|>")


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def rows_of(name: str, n: int) -> dict[str, Any]:
    ask, answer = f"How much is {n} plus {n}?", f"It is {2 * n}."
    return {
        "instruction": {"instruction": ask, "input": f"Think of {n} apples." if n % 2 else "", "output": answer},
        "prompt-completion": {"prompt": ask, "completion": answer},
        "messages": {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]},
        "sharegpt": {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]},
        "tools": {
            "tools": [CLOCK],
            "messages": [said("user", ask), CALL, said("tool", "noon"), said("assistant", answer)],
        },
        "sharegpt-tools": {
            "system": "Be brief.",
            "tools": json.dumps([CLOCK]),
            "conversations": [
                {"from": "human", "value": ask},
                {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'},
                {"from": "observation", "value": "noon"},
                {"from": "gpt", "value": answer},
            ],
        },
        "glaive": {
            "system": "SYSTEM: Be brief.",
            "chat": f"USER: {ask}\n\n\n"
            'ASSISTANT: <functioncall> {"name": "clock", "arguments": \'{}\'} <|endoftext|>\n\n\n'
            f"FUNCTION RESPONSE: noon\n\n\nASSISTANT: {answer} <|endoftext|>",
        },
        "preference": {
            "prompt": [said("user", ask)],
            "chosen": [said("assistant", answer)],
            "rejected": [said("assistant", "No.")],
        },
        "text": {"text": f"{ask} {answer}"},
        "references": {"id": f"a{n}", "dialogue": ask, "summary": answer},
        "csv": {"number": f"{n:03d}", "question": ask, "answer": answer, "topic": f"topic {n % 15}"},
        "hub": {"instruction": ask, "context": "", "response": answer, "category": "sums"},
    }[name]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the file that an example names, and gives its groups."""

    def make(name: str) -> tuple[DataConfig, FormattingConfig]:
        groups: dict[str, Any] = dict(load(FORMATS / f"{name}.yaml", {}))
        data, rows = groups["data"], [rows_of(name, n) for n in range(COUNT)]
        monkeypatch.chdir(tmp_path)
        if data.hub_id:
            import datasets

            monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
            monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["train"])
        elif data.path.endswith(".csv"):
            with Path(data.path).open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            Path(data.path).write_text("".join(json.dumps(row) + "\n" for row in rows))
        if data.test_path:
            held_out = {"id": "b", "dialogue": "How much is 50 plus 50?", "summary1": "100", "summary2": "It is 100."}
            Path(data.test_path).write_text(json.dumps({**held_out, "summary3": "A hundred."}) + "\n")
        return data, groups["formatting"]

    return make


@pytest.mark.parametrize("name", sorted(path.stem for path in FORMATS.glob("*.yaml")))
def test_an_example_formats_its_rows(name: str, source: Any, tmp_path: Path, tiny_model: Path) -> None:
    data, formatting = source(name)
    out = tmp_path / "out"
    out.mkdir()
    info = write_rows(data, out)
    expected = COUNT + bool(data.test_path)
    assert (info.rows, info.lost) == (expected, 0)
    (tmp_path / "prompts").mkdir()
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)  # one that writes tools
    found = write_prompts(out / "rows.parquet", model, formatting, tmp_path / "prompts")
    prompts = pq.read_table(tmp_path / "prompts/prompts.parquet").to_pylist()
    assert (found.rows, found.lost, found.changed) == (expected, 0, 0)
    if name == "text":
        assert all(row["prompt"] == "" and row["references"] == [row["completion"]] for row in prompts)
        return
    if "tools" in name or name == "glaive":
        assert all('"name": "clock"' in row["prompt"] and row["learnt"] for row in prompts)
    asked = {f"How much is {n} plus {n}?" for n in range(COUNT)}
    for row in prompts:
        if row["split"] == "test" and data.test_path:
            assert row["references"] == ["100", "It is 100.", "A hundred."] and "100" in row["completion"]
            continue
        (question,) = [question for question in asked if question in row["prompt"]]
        number = int(question.split()[3])
        assert f"It is {2 * number}." in row["completion"] and f"It is {2 * number}." not in row["prompt"]
        assert row["references"] == [f"It is {2 * number}."]


def test_a_topic_of_the_table_is_in_one_split(source: Any, tmp_path: Path) -> None:
    write_rows(source("csv")[0], tmp_path)
    splits: dict[str, set[str]] = {}
    for row in read_rows_file(tmp_path / "rows.parquet"):
        splits.setdefault(row["topic"], set()).add(row["_split"])
    assert len(splits) == 15 and all(len(side) == 1 for side in splits.values())
