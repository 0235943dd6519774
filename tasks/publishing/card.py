"""The model card: what the adapter is, what it was made from, and how much better it is, with the interval."""

from pathlib import Path
from typing import Any

import jinja2

from tasks.store.model import BaseModelRef

CARD = jinja2.Template(
    """---
{% if on_hub -%}
base_model: {{ base.source }}
{% endif -%}
library_name: peft
pipeline_tag: text-generation
tags: [qlora, lora, peft, qlora-flow]
---
# {{ name }} {{ version }}

A LoRA adapter for `{{ base.source }}`
{%- if base.revision %} at commit `{{ base.revision }}`{% endif %}, trained
{%- if training.quantization == "4bit" %}
on the base in 4 bits ({{ training.quant_type }}, \
{{ "double" if training.double_quant else "no double" }} quantization, {{ training.compute_dtype }}){% endif %}.

## Result on {{ evaluation.rows }} held-out rows

| metric | base | tuned | difference | {{ percent }} % interval |
|---|---:|---:|---:|---:|
{% for s in evaluation.scores -%}
| {{ s.metric }} | {{ "%.4f" | format(s.base) }} | {{ "%.4f" | format(s.tuned) }} \
| {{ "%+.4f" | format(s.difference) }} \
| {{ "%+.4f" | format(s.low) }} to {{ "%+.4f" | format(s.high) }} |
{% endfor %}
Greedy answers of at most {{ evaluation_config.max_new_tokens }} tokens; paired bootstrap over rows.

## Training

{{ run.steps }} steps, {{ "{:,}".format(run.tokens) }} tokens; last loss {{ "%.4f" | format(run.loss_last) }}.
{%- if run.validation_rows is defined %}
The weights are those of step {{ run.best_step }}, where the loss on {{ "{:,}".format(run.validation_rows) }} rows held
back from training was lowest: {{ "%.4f" | format(run.validation_loss) }}.
{%- endif %}

| field | value |
|---|---|
{% for field, value in training.items() -%}
| {{ field }} | `{{ value }}` |
{% endfor %}
## Use

```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

base = AutoModelForCausalLM.from_pretrained(
    "{{ base.source }}",{% if base.revision %} revision="{{ base.revision }}",{% endif %}
{%- if training.quantization == "4bit" %}
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="{{ training.quant_type }}",
        bnb_4bit_compute_dtype=torch.{{ training.compute_dtype }},
        bnb_4bit_use_double_quant={{ training.double_quant }},
    ),
{%- endif %}
)
model = PeftModel.from_pretrained(base, "FOLDER OF THIS CARD")
```

## Made from

| what | sha256 |
|---|---|
{% for what, digest in digests.items() -%}
| {{ what }} | `{{ digest }}` |
{% endfor -%}
""",
    undefined=jinja2.StrictUndefined,
)


def model_card(base: BaseModelRef, **parts: Any) -> str:
    """Render the card; every part it names must be given."""
    on_hub = Path(base.source).expanduser().absolute() != Path(base.folder)  # which takes no folder for a base's name
    return CARD.render(base=base, on_hub=on_hub, **parts)
