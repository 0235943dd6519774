"""Ids and labels: only the answer and its end are learnt, and nothing is cut without a line in the ledger."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.run.data import check_losses, check_sides
from tasks.config import TokenizationConfig
from tasks.errors import UserError
from tasks.formatting.schema import PROMPT_SCHEMA
from tasks.process import pool
from tasks.store.artifact import produce
from tasks.store.facts import LedgerFacts
from tasks.store.identity import Identity
from tasks.store.ledger import Ledger
from tasks.tokenization.encode import write_tokens
from tasks.tokenization.facts import TokenFacts
from tasks.tokenization.truncation import shorten
from tasks.tokenization.vocabulary import Vocabulary
from tests.tiny import make_model

BOS, EOS = 0, 1
BEFORE, AFTER = "Summarize: ", "\n\n### Output:\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def row(text: str, answer: str = "An answer.\n\n### End", id: str = "r0") -> dict[str, Any]:
    prompt = BEFORE + text + AFTER
    place = {"input_start": len(BEFORE), "input_end": len(BEFORE) + len(text)} if text else {}
    return {"id": id, "split": "train", "prompt": prompt, "completion": answer, "references": [], **place}


def tokens(
    tmp_path: Path, model: Path, rows: list[dict], special_tokens: str = "add", limit: int = 512, **fields: Any
) -> tuple[list, list, dict]:
    """Token rows, ledger and manifest info."""
    pq.write_table(pa.Table.from_pylist(rows, PROMPT_SCHEMA), tmp_path / "prompts.parquet")
    config = TokenizationConfig(**fields)
    info = write_tokens(tmp_path / "prompts.parquet", special_tokens, model, limit, config, tmp_path).model_dump()
    return (
        pq.read_table(tmp_path / "tokens.parquet").to_pylist(),
        pq.read_table(tmp_path / "ledger.parquet").to_pylist(),
        info,
    )


def parts(model: Path, found: dict[str, Any]) -> tuple[str, str]:
    """Prompt and answer as text, without the first and last token."""
    vocabulary = Vocabulary(model, rendered=False)
    masked = [i for i, label in zip(found["input_ids"], found["labels"], strict=True) if label == -100]
    learnt = [i for i, label in zip(found["input_ids"], found["labels"], strict=True) if label != -100]
    return vocabulary.decode(masked[1:]), vocabulary.decode(learnt[:-1])


def test_the_answer_and_its_end_are_learnt(tmp_path: Path, model: Path) -> None:
    (found,), _, info = tokens(tmp_path, model, [row("some text")])
    assert found["input_ids"][0] == BOS and found["input_ids"].count(BOS) == 1
    assert found["labels"][-1] == found["input_ids"][-1] == EOS
    assert parts(model, found) == (BEFORE + "some text" + AFTER, "An answer.\n\n### End")
    assert info["tokens"] == len(found["input_ids"]) == info["longest"]
    assert info["learnt_tokens"] == sum(label != -100 for label in found["labels"])


@pytest.mark.parametrize("text", ["<|eot_id|>", "a<|begin_of_text|>b", "### Output:\n", "### End"])
def test_text_never_becomes_a_control_token(tmp_path: Path, model: Path, text: str) -> None:
    (found,), ledger, _ = tokens(tmp_path, model, [row(text, answer=text)])
    named = [("kept", "special token as text")] if "<|" in text else []  # the user may have meant the token
    assert [(line["verdict"], line["reason"]) for line in ledger] == named
    assert found["input_ids"].count(BOS) == 1
    assert found["input_ids"].count(EOS) == 1
    assert parts(model, found) == (BEFORE + text + AFTER, text)


PROGRAM = """
import sys
from pathlib import Path
from tasks.config import TokenizationConfig
from tasks.tokenization.encode import write_tokens
folder, model = map(Path, sys.argv[1:])
write_tokens(folder / "prompts.parquet", "add", model, 512, TokenizationConfig(), folder)
assert not {"transformers", "torch"} & sys.modules.keys()
"""


def test_a_process_without_transformers_makes_the_same_tokens(tmp_path: Path, model: Path) -> None:
    tokens(tmp_path, model, [row("你好 👋")])
    here = (tmp_path / "tokens.parquet").read_bytes()
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), str(model)], cwd=root, check=True)
    assert (tmp_path / "tokens.parquet").read_bytes() == here


def test_a_rendered_chat_gets_no_second_beginning_or_end(tmp_path: Path, model: Path) -> None:
    rendered = row("x") | {"prompt": "<|begin_of_text|>hi<|eot_id|>", "completion": "ho<|eot_id|>"}
    (found,), _, _ = tokens(tmp_path, model, [rendered], special_tokens="rendered")
    assert found["input_ids"].count(BOS) == 1
    assert found["input_ids"].count(EOS) == 2
    assert found["labels"][-1] == EOS


def test_earlier_answers_of_a_chat_are_learnt_with_their_end(tmp_path: Path, model: Path) -> None:
    prompt = "<|begin_of_text|>hi<|eot_id|>first answer<|eot_id|>more<|eot_id|>"
    start = prompt.index("first")
    span = {"start": start, "end": start + len("first answer<|eot_id|>")}
    rendered = row("x") | {"prompt": prompt, "completion": "last<|eot_id|>", "learnt": [span]}
    (found,), _, _ = tokens(tmp_path, model, [rendered], special_tokens="rendered")
    learnt = [id for id, label in zip(found["input_ids"], found["labels"], strict=True) if label != -100]
    assert Vocabulary(model, rendered=True).decode(learnt) == "first answer<|eot_id|>last<|eot_id|>"


LONG = " ".join(f"word{n}" for n in range(300))


@pytest.mark.parametrize("cut", ["middle", "left", "right"])
def test_a_long_prompt_loses_input_alone(tmp_path: Path, model: Path, cut: str) -> None:
    (found,), ledger, info = tokens(tmp_path, model, [row(LONG)], limit=100, cut=cut)
    assert len(found["input_ids"]) == 100
    prompt, answer = parts(model, found)
    assert prompt.startswith(BEFORE) and prompt.endswith(AFTER)
    assert answer == "An answer.\n\n### End"
    kept = prompt.removeprefix(BEFORE).removesuffix(AFTER)
    assert (kept[:5] == LONG[:5], kept[-5:] == LONG[-5:]) == (cut != "left", cut != "right")
    assert ledger[0]["verdict"] == "changed" and "were taken out" in ledger[0]["detail"]
    assert (info["changed"], info["lost"]) == (1, 0)


def test_a_long_answer_is_cut_only_when_asked(tmp_path: Path, model: Path) -> None:
    long = row("short", answer=LONG)
    found, ledger, _ = tokens(tmp_path, model, [long], limit=100)
    assert found == []
    assert (ledger[0]["verdict"], ledger[0]["reason"]) == ("lost", "too long")
    (found,), ledger, _ = tokens(tmp_path, model, [long], limit=100, too_long="truncate_completion")
    assert len(found["input_ids"]) == 100
    assert found["labels"][-1] == EOS
    assert LONG.startswith(parts(model, found)[1])
    assert ledger[0]["verdict"] == "changed"


def test_dropped_rows_are_in_the_ledger(tmp_path: Path, model: Path) -> None:
    found, ledger, info = tokens(tmp_path, model, [row(LONG), row("x", id="r1")], limit=100, too_long="drop")
    assert [r["id"] for r in found] == ["r1"]
    assert [e["id"] for e in ledger] == ["r0"]
    assert info["lost"] == 1


def test_an_input_that_cannot_be_found_is_not_cut(tmp_path: Path, model: Path) -> None:
    found, ledger, _ = tokens(tmp_path, model, [row(LONG) | {"input_start": None, "input_end": None}], limit=100)
    assert found == []
    assert ledger[0]["reason"] == "too long"
    assert "formatting.input_column, which may be shortened, is not in the prompt once" in ledger[0]["detail"]


def test_a_tokenizer_without_an_end_is_one_sentence(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="names no end-of-sequence token"):
        Vocabulary(folder, rendered=False)


@pytest.mark.parametrize("cut", ["middle", "left", "right"])
@pytest.mark.parametrize("excess", [1, 2, 3])
def test_shorten_takes_what_is_asked_from_the_span(cut: Any, excess: int) -> None:
    ids = list(range(10))
    found = shorten(ids, 2, 7, excess, cut)
    assert found is not None
    assert len(found) == 10 - excess
    assert found[:2] == [0, 1] and found[-3:] == [7, 8, 9]
    assert shorten(ids, 2, 7, 5, cut) is None


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
markers = st.sampled_from(["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", AFTER, "### End", "{{ x }}"])
texts = st.lists(st.one_of(anything, markers), max_size=4).map("".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(texts, texts.filter(str.strip)), min_size=1, max_size=8),
    limit=st.integers(30, 120),
    too_long=st.sampled_from(["drop", "truncate_prompt", "truncate_completion"]),
)
def test_no_row_vanishes_and_labels_are_masked_on_the_prompt_exactly(
    tmp_path: Path, model: Path, rows: list[tuple[str, str]], limit: int, too_long: str
) -> None:
    given_rows = [row(text, answer, id=f"r{n}") for n, (text, answer) in enumerate(rows)]
    found, ledger, _ = tokens(tmp_path, model, given_rows, limit=limit, too_long=too_long)
    lost = {e["id"] for e in ledger if e["verdict"] == "lost"}
    changed = {e["id"] for e in ledger if e["verdict"] == "changed"}
    assert {r["id"] for r in found} | lost == {r["id"] for r in given_rows}
    assert not {r["id"] for r in found} & lost
    for r in found:
        assert len(r["input_ids"]) == len(r["labels"]) <= limit
        masked = [label == -100 for label in r["labels"]]
        assert masked == sorted(masked, reverse=True) and masked[0] and not masked[-1]
        assert all(label in (-100, id) for id, label in zip(r["input_ids"], r["labels"], strict=True))
        assert [id for id in r["input_ids"] if id < 4] == [BOS, EOS]  # text is never a control token
        original = given_rows[int(r["id"][1:])]
        if r["id"] not in changed:
            assert parts(model, r) == (original["prompt"], original["completion"])
        elif too_long == "truncate_prompt":
            assert parts(model, r)[1] == original["completion"]


def test_the_number_of_processes_changes_nothing(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(f"text {n} " * (n % 7), id=f"r{n}") | {"split": "test" if n % 5 == 0 else "train"} for n in range(90)]
    rows[11] = row(LONG, id="r11")
    pq.write_table(pa.Table.from_pylist(rows, PROMPT_SCHEMA), tmp_path / "prompts.parquet", row_group_size=8)
    written = []
    for cores in (1, 3):
        monkeypatch.setattr(pool, "cores", lambda cores=cores: cores)
        folder = tmp_path / str(cores)
        folder.mkdir()
        info = write_tokens(tmp_path / "prompts.parquet", "add", model, 200, TokenizationConfig(), folder)
        written.append((info, {file.name: file.read_bytes() for file in folder.iterdir()}))
    assert written[0] == written[1]
    assert set(written[0][1]) == {"tokens.parquet", "ledger.parquet", "statistics.json", "preview.json"}
    assert (written[0][0].rows, written[0][0].changed) == (90, 1)


def test_rows_that_are_all_too_long_end_the_run_in_one_sentence(tmp_path: Path, model: Path, store: Path) -> None:
    rows = [row(LONG, id=f"r{n}") for n in range(7)]
    pq.write_table(pa.Table.from_pylist(rows, PROMPT_SCHEMA), tmp_path / "prompts.parquet")
    config = TokenizationConfig(too_long="drop")

    def write(folder: Path) -> TokenFacts:
        return write_tokens(tmp_path / "prompts.parquet", "add", model, 50, config, folder)

    lost = produce(Identity(stage="tokenize"), write)
    kept = produce(Identity(stage="format"), lambda folder: LedgerFacts(rows=7, **Ledger("format", folder).write()))
    assert pq.read_table(lost.path / "tokens.parquet").num_rows == 0
    with pytest.raises(
        UserError, match=r"^7 of 7 rows are lost, more than .* The first: row r0: too long \("
    ) as caught:
        check_losses([kept, lost], 0.05)
    assert str(lost.path / "ledger.parquet") in str(caught.value)
    with pytest.raises(UserError, match="No training row is left"):
        check_sides(lost)


def test_the_end_may_be_named_beside_the_configuration(tmp_path: Path, model: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|eot_id|>"}}')
    assert Vocabulary(tmp_path, rendered=False).eos == EOS
