"""The program on a model card, run: it gives the answer that evaluation gave."""

from pathlib import Path
from typing import Any

import pytest

from tasks.config import FormattingConfig, TrainingConfig
from tasks.model.quantization import FIELDS
from tasks.store.model import BaseModelRef
from tasks.text import answer_text
from tasks.tokenization.vocabulary import Vocabulary
from tests.publishing.test_card import card, program

TEMPLATE = FormattingConfig(prompt="<|eot_id|> {{ dialogue }}\n### Output:\n")
CHAT = FormattingConfig(style="chat")
SAID = "Ada: Shall we meet at 9?\nBen: Yes <|eot_id|>, at the market."


@pytest.mark.parametrize(
    ("formatting", "training", "on_hub"),
    [
        (TEMPLATE, {}, True),
        (TEMPLATE, {"quantization": "none", "dora": True}, False),
        (CHAT, {"double_quant": True}, False),
    ],
    ids=["hub", "dora", "chat"],
)
def test_it_gives_the_answer_of_evaluation(
    formatting: FormattingConfig,
    training: dict[str, Any],
    on_hub: bool,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tasks.evaluation.answers import generate

    chat = formatting is CHAT
    said = SAID.replace("<|eot_id|>", "") if chat else SAID
    words = generate.tokenizer_of(tiny_model)
    vocabulary = Vocabulary(tiny_model, rendered=chat)
    if chat:
        message = {"role": "user", "content": said}
        text = words.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    else:
        text = f"<|eot_id|> {said}\n### Output:\n"
    ids = vocabulary.prefix + vocabulary.encode([text])[0]
    fields = TrainingConfig(**training)
    adapter(tmp_path, tiny_model, fields.dora)
    model = generate.load(tiny_model, tmp_path, {name: getattr(fields, name) for name in FIELDS})
    made = generate.answer(model, [ids], [1], 64, 8192, print)[0]
    ending = "" if chat else "\n\n### End"
    expected = answer_text(words.decode(made, skip_special_tokens=True), ending)
    assert expected
    with model.disable_adapter():
        assert generate.answer(model, [ids], [1], 64, 8192, print)[0] != made

    base = BaseModelRef(
        folder=str(tiny_model), digest="d", tokenizer_digest="t", source=str(tiny_model), revision="", max_length=512
    )
    if on_hub:
        base = base.model_copy(update={"source": "owner/base", "revision": "c" * 40})
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tiny_model))
    parts = {"formatting": formatting, "ending": ending, "prefix": vocabulary.prefix}
    parts["evaluation"] = {"rows": 1, "scores": [], "watch": [], "health": {}, "stop": [1]}
    code = program(card(base=base, parts=parts, **training))
    code = code.replace("'FOLDER OF THE BASE MODEL'", repr(str(tiny_model))).replace("'...'", repr(said))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out == expected + "\n"


def adapter(folder: Path, base: Path, dora: bool) -> None:
    """One that changes what the base says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=32, target_modules=targets, use_dora=dora, task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
