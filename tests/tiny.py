"""A tiny Llama-3-shaped model with its tokenizer, made on the spot: a flow runs on it in seconds."""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from tasks.store.facts import Facts

F = TypeVar("F", bound=Facts)

WORDS = (
    "Below is an instruction that describes a task Write response appropriately completes request Summarize the "
    "conversation Instruct Output End Input person one two asks buys sells calls meets friend tomorrow market ticket"
)


def make_model(folder: Path, template: bool = True) -> Path:
    """Fill a folder with config.json, model.safetensors and a byte-level tokenizer of about 400 tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "model_max_length": 512,
    }
    if template:
        settings["chat_template"] = (
            "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
            "{{ m.content }}<|eot_id|>{% endfor %}"
            "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
        )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


class Rows(Facts):
    """Facts of a result that nobody asks for more."""

    rows: int = 0


def noted(kind: type[F], **given: Any) -> F:
    """Facts of a stage where a test is about the given ones alone; the others are 0 or empty."""
    fields = {name: field.annotation for name, field in kind.model_fields.items() if field.is_required()}
    empty = {n: get_args(a)[0] if get_origin(a) is Literal else (get_origin(a) or a)() for n, a in fields.items()}
    return kind(**empty | given)


def write_rows_file(file: Path, rows: list[dict], group_rows: int = 10_000) -> Path:
    """rows.parquet as download leaves it; `_id`, `_split` (train where it is missing) and `_group` say what stands
    beside a row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tasks.download.schema import COLUMNS, ROW_SCHEMA

    columns: dict[str, None] = {}
    stored = []
    for n, row in enumerate(rows):
        own = {name: value for name, value in row.items() if name not in ("_id", "_split", "_group")}
        columns.update(dict.fromkeys(own))
        id, split = row.get("_id", f"r{n}"), row.get("_split", "train")
        stored.append({"id": id, "split": split, "group": row.get("_group"), "row": json.dumps(own)})
    with pq.ParquetWriter(file, ROW_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(stored, ROW_SCHEMA), group_rows)
        writer.add_key_value_metadata({COLUMNS: json.dumps([*columns])})
    return file


def read_rows_file(file: Path) -> list[dict]:
    """The rows of rows.parquet, each with its `_id` and `_split`."""
    import pyarrow.parquet as pq

    return [
        {**json.loads(stored["row"]), "_id": stored["id"], "_split": stored["split"]}
        for stored in pq.read_table(file).to_pylist()
    ]


def make_rows(count: int) -> list[dict[str, str]]:
    """Dialogue rows with the article's columns."""
    people = ["Ada", "Ben", "Cleo", "Dov"]
    return [
        {
            "id": f"r{n:03d}",
            "dialogue": f"{people[n % 4]}: Shall we meet at {n % 12 + 1}?\n{people[(n + 1) % 4]}: Yes, at the market.",
            "summary": f"{people[n % 4]} and {people[(n + 1) % 4]} meet at {n % 12 + 1}.",
            "topic": "meeting",
        }
        for n in range(count)
    ]


def write_jsonl(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file
