"""The model card says what a reader needs to load the adapter and to judge it."""

from tasks.config import TrainingConfig
from tasks.publishing.card import model_card
from tasks.store.model import BaseModelRef

BASE = BaseModelRef(
    folder="/models/x", digest="d", tokenizer_digest="t", source="owner/base", revision="c" * 40, max_length=512
)
SCORE = {"metric": "rougeL", "rows": 60, "base": 0.1, "tuned": 0.3, "difference": 0.2, "low": 0.15, "high": 0.25}


def card(run: dict[str, float] | None = None, base: BaseModelRef = BASE, **training: str) -> str:
    return model_card(
        name="demo",
        version="v0003",
        base=base,
        training=TrainingConfig(**training).model_dump(),
        run={"steps": 30, "tokens": 56000, "loss_last": 2.1} | (run or {}),
        evaluation={"rows": 60, "scores": [SCORE]},
        percent="95",
        evaluation_config={"max_new_tokens": 64},
        digests={"adapter": "0" * 64},
    )


def test_the_table_has_a_line_a_metric() -> None:
    lines = card().splitlines()
    assert "| metric | base | tuned | difference | 95 % interval |" in lines
    assert "| rougeL | 0.1000 | 0.3000 | +0.2000 | +0.1500 to +0.2500 |" in lines


def test_a_folder_is_no_base_to_the_hub() -> None:
    assert card().startswith("---\nbase_model: owner/base\nlibrary_name: peft\n")
    assert card(base=BASE.model_copy(update={"source": "/models/x"})).startswith("---\nlibrary_name: peft\n")


def test_the_kept_step_is_said_where_rows_were_held_back() -> None:
    assert "held back" not in card()
    text = card({"validation_rows": 1200, "validation_loss": 1.23456, "best_step": 20})
    assert "those of step 20, where the loss on 1,200 rows held\nback from training was lowest: 1.2346." in text


def test_the_code_loads_the_base_as_training_did() -> None:
    code = card(quant_type="fp4").split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert f'"owner/base", revision="{"c" * 40}",' in code
    assert 'bnb_4bit_quant_type="fp4"' in code
    assert "BitsAndBytesConfig(" not in card(quantization="none")
