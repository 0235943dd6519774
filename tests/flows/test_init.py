"""`qlora-flow init` looks at the rows of a file and writes a configuration that `plan` and `run` accept."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from flows.config_file import load
from tests.tiny import write_jsonl

ROOT = Path(__file__).parents[2]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


def test_a_configuration_for_the_bundled_data_is_accepted_by_plan(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "my.yaml")
    assert main(["init", str(ROOT / "examples/dialogues.jsonl"), "--output", output]) == 0
    assert main(["plan", output]) == 0
    assert "publish will run" in capsys.readouterr().out
    text = Path(output).read_text()
    assert "dialogue is the prompt, summary the answer" in text
    assert "Columns: id, dialogue, summary, topic" in text
    assert "a look at 300 rows" in text


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"messages": TURNS}, {"style": "chat"}),
        ({"talk": json.dumps(TURNS)}, {"style": "chat", "messages_column": "talk"}),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
            {"style": "chat", "messages_column": "conversations"},
        ),
        (
            {"instruction": "Add.", "input": "1+1", "output": "2"},
            {"completion": "{{ output }}", "input_column": "input"},
        ),
        ({"instruction": "Add.", "response": "2"}, {"completion": "{{ response }}", "input_column": "instruction"}),
        ({"prompt": "1+1=", "completion": "2"}, {"completion": "{{ completion }}", "input_column": "prompt"}),
        ({"the question": "1+1=", "Answer": "2"}, {"completion": "{{ Answer }}", "input_column": "the question"}),
        ({"prompt": TURNS[:1], "chosen": TURNS[1:]}, {"messages_column": "prompt", "answer_column": "chosen"}),
        ({"id": "a", "page": "Once upon a time."}, {"style": "text", "text_column": "page"}),
        ({"id": "a" * 40, "passage": "1+1=", "label": "2"}, {"completion": "{{ label }}", "input_column": "passage"}),
    ],
)
def test_a_format_is_recognised_by_its_columns(
    row: dict[str, Any], fields: dict[str, str], tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "My rows.jsonl", [row] * 3)
    assert main(["init", "My rows.jsonl"]) == 0
    groups = {name: group.model_dump() for name, group in load(Path("my-rows.yaml"), {}).items()}
    assert {name: groups["formatting"][name] for name in fields} == fields
    assert (groups["data"]["path"], groups["publishing"]["name"]) == ("My rows.jsonl", "my-rows")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": "x", "b": "y"}\n', "no column is called like an answer"),
        ('{"answer": "x"}\n', "with one to ask beside it; there are answer."),
        ("[1, 2]", "holds no row with columns"),
        ("", "is not one JSON list"),
    ],
)
def test_what_cannot_be_guessed_is_one_sentence_and_no_file(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.json").write_text(text)
    assert main(["init", "rows.json"]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("rows.yaml").exists()


def test_a_file_that_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("mine")
    assert main(["init", str(ROOT / "examples/dialogues.jsonl"), "--output", str(file)]) == 2
    assert "my.yaml cannot be written: File exists" in capsys.readouterr().err
    assert file.read_text() == "mine"
