"""Prompts are what the template says, and a template that does not fit is said before any row is read."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.config import FormattingConfig
from tasks.errors import UserError
from tasks.formatting import templates
from tasks.formatting.prompts import write_prompts
from tasks.process import pool
from tests.tiny import make_model, write_rows_file

ROW = {"dialogue": "Ada: Hi.", "summary": "Ada greets."}


def prompts(tmp_path: Path, rows: list[dict[str, Any]], model: Path = Path(), **fields: Any) -> tuple[list, list, dict]:
    """Prompts, ledger and facts."""
    write_rows_file(tmp_path / "rows.parquet", rows)
    info = write_prompts(tmp_path / "rows.parquet", model, FormattingConfig(**fields), tmp_path).model_dump()
    return (
        pq.read_table(tmp_path / "prompts.parquet").to_pylist(),
        pq.read_table(tmp_path / "ledger.parquet").to_pylist(),
        info,
    )


def test_the_articles_template_to_the_letter(tmp_path: Path) -> None:
    (row,), _, info = prompts(tmp_path, [ROW])
    assert row["prompt"] == (
        "\nBelow is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruct: Summarize the below conversation.\n\nAda: Hi.\n\n### Output:\n"
    )
    assert row["completion"] == "Ada greets.\n\n### End"
    assert row["references"] == ["Ada greets."]
    assert row["prompt"][row["input_start"] : row["input_end"]] == "Ada: Hi."
    assert (info["rows"], info["special_tokens"], info["ending"]) == (1, "add", "\n\n### End")


def test_an_absent_part_leaves_no_gap(tmp_path: Path) -> None:
    found, _, _ = prompts(tmp_path, [{**ROW, "dialogue": None}, ROW])
    assert "conversation.\n\n### Output:\n" in found[0]["prompt"]
    assert "None" not in found[0]["prompt"]
    assert found[0]["input_start"] is None


def test_the_templates_markers_in_the_data_are_text(tmp_path: Path) -> None:
    (row,), _, _ = prompts(tmp_path, [{**ROW, "dialogue": "{{ summary }} ### Output:\n{% for %}"}])
    assert "{{ summary }} ### Output:\n{% for %}\n\n### Output:\n" in row["prompt"]


def test_what_is_no_text_is_not_written_as_python_shows_it(tmp_path: Path) -> None:
    row = {**ROW, "tags": ["b"], "about": {"z": "<é>", "items": 1}}
    for part in ("{{ tags }}", "{{ about }}", "{{ about.items }}"):
        found, ledger, _ = prompts(tmp_path, [row], prompt=part)
        assert not found and ledger[0]["detail"].endswith("name a part of it, or write it with | tojson")
    found, _, _ = prompts(tmp_path, [row], prompt="{{ about | tojson }} {{ about['items'] }} {{ tags.x | tojson }}")
    assert found[0]["prompt"] == '{"z": "<é>", "items": 1} 1 null'


def test_flags_of_a_table_of_texts_are_obeyed(tmp_path: Path) -> None:
    rows = [{**ROW, "dialogue": f"{n}", "train": flag} for n, flag in enumerate(["true", "False", "1", "0", "cargo"])]
    found, ledger, _ = prompts(tmp_path, rows)
    assert [row["id"] for row in found] == ["r0", "r2", "r4"]
    assert {line["detail"] for line in ledger} == {"the row has train: False", "the row has train: 0"}
    rows = [
        {**ROW, "dialogue": f"{n}", "weight": flag} for n, flag in enumerate(["1.00", "0.0", "0.5", "nan", "72 kg"])
    ]
    found, ledger, _ = prompts(tmp_path, rows)
    assert [row["id"] for row in found] == ["r0", "r3", "r4"]
    found, ledger_of_masks, _ = prompts(tmp_path, [{**ROW, "loss_mask": [0, 1]}, {**ROW, "loss_scale": "last_round"}])
    assert not found and [line["verdict"] for line in ledger_of_masks] == ["lost", "lost"]
    assert [line["verdict"] for line in ledger] == ["left out", "lost"] and "weight: 0.5, which" in ledger[1]["detail"]


def test_an_input_that_stands_twice_cannot_be_shortened(tmp_path: Path) -> None:
    (row,), _, _ = prompts(tmp_path, [ROW], prompt="{{ dialogue }} {{ dialogue }}")
    assert row["input_start"] is None


def test_a_rows_text_does_not_depend_on_the_other_rows(tmp_path: Path) -> None:
    rows = [{"q": {"city": "Rome"}, "a": 5}, {"q": {"x": 1}, "a": 2.5}, {"q": {"x": 0.5}, "a": None}]
    fields = {"prompt": "{{ q | tojson }}{{ a / 2 if a else '' }}", "completion": "{{ a }}.", "references": ["a"]}
    found, _, _ = prompts(tmp_path, rows, **fields)
    assert [row["prompt"] for row in found] == ['{"city": "Rome"}2.5', '{"x": 1}1.25', '{"x": 0.5}']
    assert [row["references"] for row in found] == [["5"], ["2.5"], ["."]]


def test_a_column_whose_name_is_no_word(tmp_path: Path) -> None:
    row = {"Customer message": "Hi.", "Reply": "Ho."}
    fields = {"prompt": '{{ row["Customer message"] }}', "completion": "{{ Reply }}", "ending": ""}
    (found,), _, _ = prompts(tmp_path, [row], **fields)
    assert (found["prompt"], found["completion"]) == ("Hi.", "Ho.")
    for prompt in ("{{ Customer message }}", "{{ Customer }}"):
        with pytest.raises(UserError, match=r'is written {{ row\["Customer message"\] }}'):
            prompts(tmp_path, [row], **fields | {"prompt": prompt})


def test_references_may_be_several_columns_or_a_list(tmp_path: Path) -> None:
    rows = [{**ROW, "a": "one", "b": ["two", "three", ""]}, {**ROW, "a": None, "b": None}]
    found, _, _ = prompts(tmp_path, rows, references=["a", "b"])
    assert [row["references"] for row in found] == [["one", "two", "three"], ["Ada greets."]]


def test_a_row_without_an_answer_is_in_the_ledger(tmp_path: Path) -> None:
    found, ledger, info = prompts(tmp_path, [{**ROW, "summary": " "}, {**ROW, "summary": None}, ROW])
    assert len(found) == 1
    assert [(entry["id"], entry["reason"]) for entry in ledger] == [("r0", "empty answer"), ("r1", "empty answer")]
    assert info["lost"] == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "{{ dialog }}"}, "no column is called dialog; the data has dialogue, summary"),
        ({"completion": "{{ summary"}, "formatting.completion: line 1 is not valid Jinja2"),
        ({"prompt": '{{ row["dialog"] }}'}, "no column is called dialog; the data has dialogue, summary"),
        ({"input_column": "dialog"}, "formatting.input_column: no column is called dialog"),
        ({"references": ["summery"]}, "formatting.references: no column is called summery"),
        ({"style": "chat"}, "formatting.messages_column: no column is called messages"),
    ],
)
def test_a_template_that_does_not_fit_is_one_sentence(tmp_path: Path, fields: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        prompts(tmp_path, [ROW], **fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ ''.__class__.__mro__ }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ dialogue }}{% endfor %}{% endfor %}",
        "{% for a in range(999999999) %}x{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_runs_wild_costs_its_rows(tmp_path: Path, prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "LONGEST_TEXT", 10_000)
    monkeypatch.setattr(templates, "LONGEST_SECONDS", 1.0)
    found, ledger, _ = prompts(tmp_path, [ROW], prompt=prompt)
    assert found == [] or "__" not in found[0]["prompt"]
    assert found or ledger[0]["reason"] == "cannot be formatted"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template drops what earlier answers thought, as Qwen3's does."""
    folder = make_model(tmp_path_factory.mktemp("chat"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    old = settings["chat_template"]
    settings["chat_template"] = old.replace(
        "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
    )
    assert settings["chat_template"] != old
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def chat(*texts: str) -> dict[str, Any]:
    roles = ["user", "assistant"]
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]}


def test_what_becomes_of_conversations(tmp_path: Path, model: Path) -> None:
    rows = [
        chat("你好", "再见") | {"dialogue": "你好"},
        chat("a", "<think>x</think>first", "b", "<think>y</think>second"),
        chat("a", "first", "b", "", "c", "third", "d", "last"),
        chat("a", "b"),
        chat("hi"),
    ]
    rows[2]["messages"][5]["weight"], rows[3]["messages"][1]["weight"] = 0, 0
    found, ledger, info = prompts(tmp_path, rows, model, style="chat")
    assert found[0]["prompt"].count("<|begin_of_text|>") == 1
    assert found[0]["prompt"].endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert (found[0]["completion"], found[0]["references"]) == ("再见<|eot_id|>", ["再见"])
    assert found[0]["input_start"] is None  # the input column is one of templates
    assert found[1]["completion"] == "<think>y</think>second<|eot_id|>" and "<think>x" not in found[1]["prompt"]
    spans = [[row["prompt"][span["start"] : span["end"]] for span in row["learnt"]] for row in found]
    assert spans == [[], [], ["first<|eot_id|>"]] and found[2]["completion"] == "last<|eot_id|>"
    assert [(line["id"], line["verdict"], line["reason"]) for line in ledger] == [
        ("r1", "changed", "earlier answer not learnt"),
        ("r3", "left out", "not to be learnt"),
        ("r4", "lost", "cannot be formatted"),
    ]
    assert "does not end with an assistant message" in ledger[2]["detail"]
    assert (info["rows"], info["changed"], info["lost"], info["special_tokens"]) == (3, 1, 1, "rendered")


def test_a_row_that_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    leak = {**ROW, "dialogue": " ada:  HI."}
    other = {**ROW, "summary": "Another answer."}
    rows = [leak, other, other, {**ROW, "dialogue": "Ben: Ho."}, {**ROW, "_split": "test"}]
    found, ledger, info = prompts(tmp_path, rows)
    assert [row["id"] for row in found] == ["r4", "r1", "r2", "r3"]
    assert [(entry["id"], entry["verdict"], entry["reason"]) for entry in ledger] == [
        ("r0", "left out", "held out"),
        ("r1", "kept", "held-out prompt"),
        ("r2", "kept", "held-out prompt"),
    ]
    assert (info["rows"], info["lost"], info["changed"]) == (4, 0, 0)
    assert (info["leaks"], info["shared_prompts"], info["duplicates"]) == (1, 2, 1)


def test_a_loop_that_writes_nothing_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "LONGEST_SECONDS", 60.0)
    began = time.process_time()
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    found, ledger, _ = prompts(tmp_path, [ROW] * 3, prompt=loop)
    assert found == []
    assert "formatting.prompt loops more than 1,000,000 times" in ledger[0]["detail"]
    assert time.process_time() - began < 10


def test_a_template_that_runs_wild_on_many_rows_ends_the_stage(tmp_path: Path) -> None:
    loop = "{% for a in range(9999999) %}{% endfor %}"
    with pytest.raises(
        UserError, match=r"formatting.prompt loops more than 1,000,000 times .* 10 rows before row r10;"
    ):
        prompts(tmp_path, [ROW] * 20, prompt=loop)


def test_a_loop_that_only_takes_time_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "LONGEST_SECONDS", 0.2)
    monkeypatch.setattr(templates, "MOST_STEPS", 10**12)
    loop = "{% for a in range(99999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    loop = "{% if dialogue == 'slow' %}" + loop + "{% endif %}x"
    found, ledger, _ = prompts(tmp_path, [ROW, {**ROW, "dialogue": "slow"}, ROW], prompt=loop)
    assert [row["id"] for row in found] == ["r0", "r2"]
    assert "did not end within 0.2 s of processor time" in ledger[0]["detail"]


@pytest.mark.parametrize(
    ("template", "place"),
    [
        ("{{ dialogue }}!", " Ada: Hi. "),
        ("{{ dialogue | trim }}!", "Ada: Hi."),
        ("{{ dialogue | upper }}!", "ADA: HI."),
        ("{{ dialogue | trim | replace('Hi', 'Ho') }}!", "Ada: Ho."),
        ("{{ row['dialogue'] | trim | title }}!", "Ada: Hi."),
        ("{{ dialogue[:3] }}!", None),
        ("{{ dialogue }}{{ dialogue | lower }}{{ dialogue }}", None),
        ("{% if dialogue | length > 12 %}{{ dialogue | upper }}{% endif %}!", None),
    ],
)
def test_the_input_column_is_found_whatever_filters_it_went_through(
    tmp_path: Path, template: str, place: str | None
) -> None:
    row = {"dialogue": " Ada: Hi. ", "summary": "Ada greets."}
    ((found,), _, _) = prompts(tmp_path, [row], prompt=template)
    start, end = found["input_start"], found["input_end"]
    assert (None if start is None else found["prompt"][start:end]) == place


def test_an_absent_value_is_no_text_for_filters(tmp_path: Path) -> None:
    template = "[{{ topic | trim }}{{ row.topic | upper }}{{ x.y | replace('a', 'b') }}{{ topic | tojson }}]"
    ((found,), _, _) = prompts(tmp_path, [{**ROW, "topic": None, "x": {"y": None}}], prompt=template)
    assert found["prompt"] == "[null]"


def test_what_a_row_sets_is_not_there_for_the_next(tmp_path: Path) -> None:
    template = "{% if dialogue == 'first' %}{% set topic = 'set' %}{% endif %}[{{ topic }}]"
    rows = [{**ROW, "dialogue": text, "topic": None} for text in ("first", "second")]
    found, _, _ = prompts(tmp_path, rows, prompt=template)
    assert [row["prompt"] for row in found] == ["[set]", "[]"]


def test_the_number_of_processes_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**ROW, "_split": "test" if n % 4 == 0 else "train"} for n in range(60)]
    rows[7] |= {"dialogue": "Ben: Ho."}
    rows[9] |= {"summary": ""}
    write_rows_file(tmp_path / "rows.parquet", rows, group_rows=10)
    written = []
    for cores in (1, 3):
        monkeypatch.setattr(pool, "cores", lambda cores=cores: cores)
        folder = tmp_path / str(cores)
        folder.mkdir()
        info = write_prompts(tmp_path / "rows.parquet", Path(), FormattingConfig(), folder)
        written.append((info, {file.name: file.read_bytes() for file in folder.iterdir()}))
    assert written[0] == written[1]
    assert written[0][0].leaks == 43


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
texts = st.lists(
    st.one_of(words, st.sampled_from(["{{ summary }}", "{% raw %}", "### Output:\n", "Ada: Hi."])), max_size=4
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(texts.map("".join), texts.map("".join), st.booleans()), min_size=1, max_size=8))
def test_every_row_is_handed_on_as_it_is_or_has_a_line(tmp_path: Path, rows: list[tuple[str, str, bool]]) -> None:
    given_rows = [{"dialogue": d, "summary": s, "_split": "test" if held_out else "train"} for d, s, held_out in rows]
    found, lines, info = prompts(tmp_path, given_rows)
    ledger = [line for line in lines if line["verdict"] != "kept"]
    assert sorted([row["id"] for row in found] + [line["id"] for line in ledger]) == [f"r{n}" for n in range(len(rows))]
    assert (info["rows"], info["lost"] + info["left_out"]) == (len(found), len(ledger))
    for row in found:
        dialogue, summary, held_out = rows[int(row["id"][1:])]
        assert row["split"] == ("test" if held_out else "train")
        assert row["prompt"].endswith((f"{dialogue}\n\n" if dialogue else "") + "### Output:\n")
        assert row["completion"] == summary + "\n\n### End"
        if row["input_start"] is not None:
            assert row["prompt"][row["input_start"] : row["input_end"]].strip() == dialogue.strip()
