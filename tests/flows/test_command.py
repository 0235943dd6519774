"""The command line: what is wrong is said before anything runs."""

import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.__main__ import _parser, main
from flows.commands.arguments import overrides
from flows.commands.environment import homes_in_store
from flows.config_file import load
from tasks.config import SECTIONS
from tasks.errors import UserError
from tasks.store.root import store_root
from tests.tiny import write_jsonl


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("data: {path: a.jsonl}\ntraning: {}", ["no group 'traning'", "training"]),
        ("data: {path: a.jsonl}\ntraining: {lr: 1}", ["training.lr: there is no such field", "learning_rate"]),
        ("data: {path: a.jsonl}\ntraining: {lora_r: 0}", ["training.lora_r: 0 is wrong", "greater than or equal to 1"]),
        ("data: {path: a.jsonl}\ntraining: {quant_type: int3}", ["training.quant_type", "'nf4' or 'fp4'"]),
        ("data: {path: a.jsonl, hub_id: b/c}", ["either data.path", "or data.hub_id"]),
        ("training: {}", ["either data.path"]),
        ("data: [1]", ["data takes fields"]),
        ("just text", ["at its top level"]),
        ("a: [", ["is not YAML"]),
        ("formatting: {prompt: {{ x }}}", ["is not YAML", "unhashable key"]),
        ("data: {path: a}\ntraining: {lora_r: 4}\ntraining: {seed: 1}", ["training is given twice", "line 3"]),
        ("data: {path: a, on: 1}", ["there is no such field"]),
        ("data: {path: a}\ntraining: {max_grad_norm: .inf}", ["training.max_grad_norm: Infinity is wrong"]),
        ("data: {path: a.jsonl}\ntraning: {}", ["did you mean training?"]),
        ("data: {path: a.jsonl}\nlora_r: 4", ["did you mean training.lora_r?"]),
        ("data: {path: a.jsonl}\ntraining: {learning-rat: 1}", ["did you mean learning_rate?"]),
        ("data: {path: a.jsonl}\ntraining: {max_lenght: 1}", ["did you mean tokenization.max_length?"]),
        ("data: {path: a}\nformatting:\n  completion: {{ summary }}", ["Line 3 holds a template", "in quotes"]),
        ("data: {path: a}\nformatting:\n  completion: {{ a }} and {{ b }}\n  ending: ''", ["Line 3 holds a template"]),
        ("data: {path: a}\nformatting:\n  prompt: {% if x %}y{% endif %}", ["Line 3 holds a template"]),
        ("data: {path: a}\nformatting:\n  prompt: Sum: {{ x }}", ["Line 3 holds a template"]),
        ('data: {path: a}\nformatting:\n  prompt: "{{ row["x"] }}"', ["Line 3 holds a template", "single ones"]),
        ("data: {path: a}\nformatting: {references: [{{ a }}]}", ["Line 2 holds a template"]),
        ("data: {path: a}\nformatting: {completion: {summary}}", ["formatting.completion", "quote it"]),
        ("data: {path: a}\nformatting:\n  ending: ### End", ["formatting.ending: null is wrong", "begins with #"]),
        ("data: {path: a}\ntraining: {lora_r: yes}", ["training.lora_r: 'yes' is wrong", "valid integer"]),
        ("data: {path: a}\ntraining: {lora_r: true}", ["training.lora_r: true is wrong", "valid integer"]),
        ("data: {path: a}\ntraining: {lora_r: '16'}", ["training.lora_r: '16' is wrong: write it without quotes"]),
        ("data: {path: a}\ntraining: {lora_r: 010}", ["training.lora_r: '010' is wrong", "valid integer"]),
        ("data: {path: a}\ntraining: {lora_r: 1_6}", ["training.lora_r: '1_6' is wrong", "valid integer"]),
        ("data: {path: a}\ntraining: {epochs: true}", ["training.epochs: true is wrong", "valid number"]),
        ("data: {path: a}\ntraining: {epochs: 1:30}", ["training.epochs: '1:30' is wrong", "valid number"]),
        ("data: {path: a}\ntraining: {dora: 1}", ["training.dora: 1 is wrong", "valid boolean"]),
        ("data: {path: a}\ntraining: {dora: yes}", ["training.dora: 'yes' is wrong", "valid boolean"]),
        ("data: {path: a}\ntraining: {target_modules: q_proj}", ["a list is written [q_proj]"]),
        (
            "data: {path: a}\nevaluation: {metrics: [rouge1, rougel]}",
            ["evaluation.metrics: 'rougel' is wrong: there is no such metric (did you mean rougeL?)"],
        ),
        ("data: {path: a}\nevaluation: {metrics: rougeL}", ["a list is written [rougeL]"]),
        ("data: {path: 12}", ["data.path: 12 is wrong: quote it"]),
        ("data: {path: a}\npublishing: {name: true}", ["publishing.name: true is wrong: quote it"]),
        ("[" * 5000, ["nested too deeply"]),
        (f"data: {{path: a}}\ntraining: {{seed: {'9' * 5000}}}", ["is not YAML", "4300 digits"]),
        ('data: {path: "a\\0b"}', ["data.path: 'a\\x00b' is wrong: it holds NUL"]),
        ('data: {path: a}\nformatting: {references: ["\\ud800"]}', ["formatting.references", "half a character"]),
        ("data: {path: a}\nexecution: {train_timeout_minutes: 1e9}", ["less than or equal to 5256000"]),
        ("data: {path: a}\nschedule: {min_new_rows: 1, max_age_days: 1e10}", ["less than or equal to 36500"]),
        ("data: {path: a}\nevaluation: {slices: [topic, topic]}", ["evaluation.slices", "topic is given twice"]),
    ],
)
def test_a_wrong_configuration_is_refused(
    tmp_path: Path, text: str, sentences: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert main(["run", str(file)]) == 2
    shown = capsys.readouterr().err
    assert all(sentence in shown for sentence in sentences), shown


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {}\ntraining: {lora_r: 0, seed: -1}\nother: 1")
    with pytest.raises(UserError) as caught:
        load(file, {})
    assert len(str(caught.value).splitlines()) == 4


def test_a_missing_file_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nowhere.yaml"]) == 2
    assert "nowhere.yaml cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--summary", "nowhere/out.json"], "--summary: nowhere/out.json cannot be written"),
        (["--summary", "."], "--summary: . cannot be written"),
        (["--store", "config.yaml"], "config.yaml is a file"),
        (["--store", "config.yaml/store"], "config.yaml is a file"),
        (["--training.lr", "1"], "training.lr: there is no such field; training has quantization"),
        (["--training.lr=1"], "training.lr: there is no such field"),
        (["--training.dora", "yes"], "training.dora: 'yes' is wrong: input should be a valid boolean"),
        (["--training.seed", "9" * 5000], "training.seed: '9999"),
        (["--data.path", "\udcff"], "data.path: '\\udcff' is wrong: it holds NUL or half a character"),
        (["--training.lora_r", "["], "training.lora_r: '[' is wrong: input should be a valid integer"),
        (["--lora_r", "4"], "--lora_r: there is no such flag (did you mean --training.lora_r?)"),
        (["--traning.lora-r=4"], "--traning.lora-r: there is no such flag (did you mean --training.lora_r?)"),
    ],
)
def test_a_wrong_flag_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QLORA_FLOW_STORE", "store")
    (tmp_path / "config.yaml").write_text("data: {path: a.jsonl}")
    assert main(["run", "config.yaml", *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_a_store_that_is_not_there_is_not_cleaned(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean"]) == 2
    assert f"There is no store {store}" in capsys.readouterr().err
    assert not store.exists()


@pytest.mark.parametrize(("value", "folder"), [("", ".qlora-flow"), ("~/store", "home/store")])
def test_the_stores_variable_may_be_empty_or_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QLORA_FLOW_STORE", value)
    assert store_root() == tmp_path / folder
    monkeypatch.setenv("PREFECT_HOME", "")  # Prefect would take it for the working directory
    homes_in_store()
    assert os.environ.get("PREFECT_HOME") is None


def test_a_user_without_a_name_and_a_home_can_give_commands(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setenv("HOME", "is restored")
    monkeypatch.delenv("HOME")
    assert main(["adapters", "list"]) == 0
    assert Path.home() == Path("/")


@pytest.mark.parametrize("command", [["clean", "--keep-days", "9" * 30], ["preview", "a.yaml", "--rows", "-1"]])
def test_a_number_of_things_is_one_from_1(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(command)
    assert "takes a whole number from 1 to 999,999,999" in capsys.readouterr().err


def test_any_locale_will_do_and_who_stops_reading_ends_the_command_silently(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "größe.jsonl", [{"question": "wie groß?", "answer": "größer"}])
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # its encoding is ASCII
    for output, more, status in (("a.yaml", {}, 0), ("b.yaml", locale, 0), ("c.yaml", {}, 128 + signal.SIGPIPE)):
        reading, writing = os.pipe()
        if status:
            os.close(reading)
        command = [sys.executable, "-m", "flows", "init", "größe.jsonl", "--output", output]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | more, stdout=writing, stderr=subprocess.PIPE, text=True
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (status, "")
        assert "größe.jsonl" in (tmp_path / output).read_text("utf-8")


def test_a_list_is_written_with_commas() -> None:
    options = _parser().parse_args(["run", "config.yaml", "--formatting.references", "a, b,"])
    assert overrides(options) == {"formatting": {"references": ["a", "b"]}}


def test_flags_lie_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {path: a.jsonl}\ntraining: {learning_rate: 5e-4, lora_r: 4}")
    training = load(file, {"training": {"learning_rate": "1e-3"}})["training"]
    assert training.model_dump()["learning_rate"] == 0.001
    assert training.model_dump()["lora_r"] == 4


def test_text_that_looks_like_something_else_stays_text(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {path: 2024-01-01, test_path: 1:30, id_column: no, group_column: 010, hub_subset: 1_0}")
    data = load(file, {})["data"].model_dump()
    assert [data[name] for name in ("path", "test_path", "id_column", "group_column", "hub_subset")] == [
        *("2024-01-01", "1:30", "no", "010", "1_0")
    ]


@pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "2E-04", ".0002", "0.0002"])
def test_a_number_may_be_written_in_any_usual_way(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {{path: a}}\ntraining: {{learning_rate: {text}, epochs: 2}}")
    assert load(file, {})["training"].model_dump()["learning_rate"] == 0.0002


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"qlora-flow {importlib.metadata.version('qlora-flow')}\n")


def test_help_writes_numbers_as_people_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "Peak learning rate. [> 0, ≤ 1, default 2e-4]",
        "≤ 1,048,576, default 2,048]",
        "[≥ 0, < 1, default 0]",
    ):
        assert text in shown
    assert "e+0" not in shown and "e-0" not in shown


def test_every_field_says_what_it_is() -> None:
    for group in SECTIONS.values():
        for name, field in group.model_fields.items():
            assert field.description and len(field.description) > 15, name
            assert not field.is_required(), name


@pytest.mark.parametrize(
    ("module", "more"),
    [
        ("flows.retrain", []),
        ("flows.run.plan", ["prefect"]),
        ("flows.__main__", ["prefect"]),
        ("flows.stages", ["prefect"]),
    ],
)
def test_help_and_import_stay_light(module: str, more: list[str]) -> None:
    heavy = ["torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "pyarrow", *more]
    code = f"import sys; import {module}; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_a_broken_model_configuration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{")
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {{path: examples/dialogues.jsonl}}\nmodel: {{base: {tmp_path}}}")
    assert main(["plan", str(file)]) == 2
    assert "config.json is no JSON object" in capsys.readouterr().err


def test_a_hub_out_of_reach_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise httpx.ConnectError("Connection refused")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    file = tmp_path / "config.yaml"
    file.write_text("data: {path: examples/dialogues.jsonl}\nmodel: {base: owner/name}")
    assert main(["plan", str(file)]) == 2  # the tests forbid the network
    assert "model.base: owner/name at this revision is not in the Hub's cache" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert main(["plan", str(file)]) == 1
    sentence = (
        "A disk or the network does not answer, nothing ran: model.base: owner/name cannot be asked for at https://"
    )
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize("command", ["init {}/rows.jsonl", "adapters list --registry {}/registry", "clean --store {}"])
def test_a_folder_of_another_user_is_one_sentence(command: str, tmp_path: Path) -> None:
    (shut := tmp_path / "shut").mkdir(mode=0)
    may_read = "-dac_override,-dac_read_search"  # what lets root read everything
    as_user = ["setpriv", "--bounding-set", may_read, "--inh-caps", may_read] if os.getuid() == 0 else []
    arguments = command.format(shut).split()
    done = subprocess.run([*as_user, sys.executable, "-m", "flows", *arguments], capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert "Permission denied" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
