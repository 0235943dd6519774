"""A published adapter is asked as it was trained, and answers as evaluation found it to."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from tasks.config import FormattingConfig
from tasks.publishing.facts import VersionFacts
from tasks.publishing.registry import add_version
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef
from tasks.text import answer_text, visible_lines
from tests.promotion.registry import TRAINING, adapter_with_answers
from tests.tiny import noted

SAID = "Ada: Shall we meet at 9? Ben: Yes, at the market."
TEMPLATE = {"formatting.style": "template", "formatting.prompt": "<|eot_id|> {{ dialogue }}\n### Output:\n"}


@pytest.fixture(autouse=True)
def unsilenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes the environment of its process, which other tests share here."""
    monkeypatch.setattr("tasks.process.quiet.silence", lambda: None)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    adapter_with_answers(folder, tiny_model)
    return folder


def publish(adapter: Path, base: Path, store: Path, formatting: dict[str, Any]) -> Path:
    """The next version, whose prompts were made like this."""
    model = BaseModelRef.of(base, str(base), "")

    def write(aside: Path, version: str) -> VersionFacts:
        shutil.copytree(adapter, aside, dirs_exist_ok=True)
        return noted(VersionFacts)

    inputs = {"adapter": str(formatting), "model": model.digest}
    identity = Identity(stage="publish", inputs=inputs, config={"source": str(base), "revision": "", **formatting})
    return add_version(identity, store / "registry" / "adapter", write).path


def expected(prompt: str, adapter: Path, base: Path, rendered: bool, ending: str = "") -> str:
    from tasks.evaluation.answers import generate
    from tasks.tokenization.vocabulary import Vocabulary

    vocabulary = Vocabulary(base, rendered)
    ids = vocabulary.prefix + vocabulary.encode([prompt])[0]
    made = generate.answer(generate.load(base, adapter, TRAINING), [ids], [1], 24, 8192, lambda line: None)[0]
    return visible_lines(answer_text(generate.tokenizer_of(base).decode(made, skip_special_tokens=True), ending))


def test_a_prompt_a_file_and_a_loop_are_answered_as_in_evaluation(
    adapter: Path,
    tiny_model: Path,
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(adapter, tiny_model, store, TEMPLATE)
    publish(adapter, tiny_model, store, {"formatting.style": "chat"})
    answer = expected(f"<|eot_id|> {SAID}\n### Output:\n", adapter, tiny_model, False, FormattingConfig().ending)
    assert answer
    rows = tmp_path / "rows.jsonl"
    other = json.dumps({"dialogue": SAID, "summary": "x\u2028y"}, ensure_ascii=False)  # which also separates lines
    rows.write_text(f"\ufeff{json.dumps({'dialogue': SAID})}\n\n{other}\n", "utf-8")
    (tmp_path / "one.txt").write_text(SAID)

    def ask(*arguments: str, typed: str = "") -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        capsys.readouterr()
        assert main(["try", *arguments, "--max-new-tokens", "24"]) == 0
        return capsys.readouterr().out.partition("\n")[2]

    first = "adapter@v0001"
    assert ask(first, SAID) == f"{answer}\n"
    assert ask(first, "--file", str(rows)) == f"{answer}\n{answer}\n"
    assert ask(first, "--file", str(tmp_path / "one.txt")) == f"{answer}\n"
    assert ask(first, typed=f"{SAID}\n").startswith(f"A prompt a line; an empty line ends.\n> {answer}\n> ")

    rendered = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nShort.<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{SAID}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    chat = expected(rendered, adapter, tiny_model, True)
    messages = [{"role": "system", "content": "Short."}, {"role": "user", "content": SAID}]
    assert ask("adapter@v0002", json.dumps({"messages": messages})) == f"{chat}\n"
    assert ask("adapter@v0002", json.dumps({"system": "Short.", "messages": messages[1:]})) == f"{chat}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["adapter", "x"], "No version of adapter is in use; name one: adapter@v0001."),
        (["adapter@../x", "x"], "'../x' names no version"),
        (["adapter@v0009", "x"], "There is no version v0009 of adapter; there are v0001, v0002"),
        (["adapter@v0001", "x", "--file", "y"], "Give a prompt or --file, one of the two."),
        (["adapter@v0001", "--file", "nothing.txt"], "--file: nothing.txt cannot be read"),
        (["adapter@v0001", "--file", "rows.jsonl"], "--file: rows.jsonl, line 3: The row is no JSON object"),
        (["adapter@v0001", '{"dialogue"'], "The row is no JSON object"),
        (["adapter@v0002", "x"], "The prompt is made of a, b: give a row as a JSON object with them"),
        (["adapter@v0003", "x"], "v0003 of adapter was published before versions noted how they are asked"),
        (["adapter@v0004", '{"messages": 7}'], "The row cannot be formatted"),
        (["adapter@v0005", "x"], "v0005 of adapter is missing or damaged"),
    ],
)
def test_a_mistake_is_a_sentence(
    arguments: list[str],
    sentence: str,
    adapter: Path,
    tiny_model: Path,
    store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tasks.evaluation.answers import generate

    def load(*_: object) -> None:
        raise AssertionError("the model is loaded before the mistake is said")

    monkeypatch.setattr(generate, "load", load)
    monkeypatch.chdir(store.parent)
    Path("rows.jsonl").write_text(f"{json.dumps({'dialogue': SAID})}\n\n{{dialogue}}\n")
    publish(adapter, tiny_model, store, TEMPLATE)
    publish(adapter, tiny_model, store, TEMPLATE | {"formatting.prompt": "{{ a }} {{ b }}"})
    publish(adapter, tiny_model, store, {})
    publish(adapter, tiny_model, store, {"formatting.style": "chat"})
    (publish(adapter, tiny_model, store, {"formatting.style": "text"}) / "probes.json").write_text("{}")
    assert main(["try", *arguments]) == 2
    assert sentence in capsys.readouterr().err
