"""The model card says what a reader needs to load the adapter and to judge it."""

import ast
from typing import Any

from tasks.config import FormattingConfig, TrainingConfig
from tasks.publishing.card import model_card
from tasks.store.model import BaseModelRef
from tasks.training.facts import TrainingFacts
from tests.tiny import noted

BASE = BaseModelRef(
    folder="/models/x", digest="d", tokenizer_digest="t", source="owner/base", revision="c" * 40, max_length=512
)
SCORE = {"metric": "rougeL", "rows": 60, "base": 0.1, "tuned": 0.3, "difference": 0.2, "low": 0.15, "high": 0.25}


def card(
    run: dict[str, float] | None = None, base: BaseModelRef = BASE, parts: dict[str, Any] | None = None, **training: Any
) -> str:
    given = dict(
        name="demo",
        version="v0003",
        training=TrainingConfig(**training).model_dump(),
        gguf=None,
        formatting=FormattingConfig(),
        ending="\n\n### End",
        prefix=[0],
        limit=512,
        shortened=0,
        libraries="torch 2.11.0",
        run=noted(TrainingFacts, steps=30, tokens=56000, loss_last=2.1, **(run or {})),
        evaluation={
            "watch": [],
            "rows": 60,
            "scores": [SCORE],
            "health": {"never_ending": {"base": 0.5, "tuned": 0.125}},
            "stop": [1, 5],
        },
        percent="95",
        evaluation_config={"max_new_tokens": 64},
        digests={"adapter": "0" * 64},
    )
    return model_card(base=base, **given | (parts or {}))


def program(text: str) -> str:
    return text.split("```python\n")[1].split("\n```")[0]


def test_the_table_has_a_line_a_metric() -> None:
    lines = card().splitlines()
    assert "| metric | base | tuned | tuned − base | 95 % interval |" in lines
    assert "| ROUGE-L | 0.1000 | 0.3000 | +0.2000 | +0.1500 to +0.2500 |" in lines
    assert "| never ending | 0.500 | 0.125 |" in lines


def test_a_folder_is_no_base_to_the_hub() -> None:
    assert card().startswith("---\nbase_model: owner/base\nlibrary_name: peft\n")
    assert card(base=BASE.model_copy(update={"source": "/models/x"})).startswith("---\nlibrary_name: peft\n")


def test_the_kept_step_is_said_where_rows_were_held_back() -> None:
    assert "held back" not in card()
    text = card({"validation_rows": 1200, "validation_loss": 1.23456, "best_step": 20})
    assert "those of step 20, where the loss on 1,200 rows held\nback from training was lowest: 1.2346." in text


def test_the_program_loads_the_base_as_training_did() -> None:
    code = program(card(quant_type="fp4"))
    compile(code, "card", "exec")
    assert "snapshot_download(\n    'owner/base'," in code
    assert f"revision='{'c' * 40}'" in code
    assert 'bnb_4bit_quant_type="fp4"' in code
    assert "BitsAndBytesConfig(" not in card(quantization="none")


def test_the_card_tells_how_the_adapter_is_asked() -> None:
    text = card()
    assert "ENDING = (\n    '\\n'\n    '\\n'\n    '### End'\n)" in text
    assert "STOP = [1, 5]" in text
    assert "PREFIX = [0]" in text
    assert "MAX_NEW_TOKENS = 64" in text
    assert "'### Instruct: Summarize the below conversation.\\n'" in text
    assert "ROW = {'dialogue': '...'}" in text
    assert "shortened" not in text
    assert "more than 512 tokens" in card(parts={"shortened": 3})
    chat = card(parts={"formatting": FormattingConfig(style="chat"), "ending": ""})
    compile(program(chat), "card", "exec")
    assert "apply_chat_template" in chat and "ENDING" not in chat


def test_a_converted_base_is_not_called_the_hubs() -> None:
    gguf = {"file": "x.Q4_1.gguf", "package": "some-package==1.2", "sha256": "a" * 64}
    text = card(parts={"gguf": gguf}, base=BASE.model_copy(update={"revision": ""}))
    assert "They are not the Hub's weights" in text
    compile(code := program(text), "card", "exec")
    assert f'digest = "{"a" * 64}"' in code and "gguf_file=gguf.name" in code and "some-package==1.2" in code


def test_a_template_ends_neither_literal_nor_block() -> None:
    prompt = "```\n'\"\"\"\\ \u2028{{ a }}\n<script>{{ row['b'] }}"
    text = card(parts={"formatting": FormattingConfig(prompt=prompt)})
    code = text.split("````python\n")[1].split("\n````")[0]
    literal = code.split("PROMPT = ")[1].split("\nENDING")[0]
    assert ast.literal_eval(literal) == prompt
