"""Held-out loss of this project's trainer and of plain TRL: same rows, same tokens, same steps, several seeds.

    python benchmarks/heldout_loss.py --base FOLDER --train dev.jsonl --test test.jsonl [--seeds 3] [--out FILE.json]

Both train LoRA r = 16 on all linears of the base in NF4 on the training file's rows, one epoch, batches of 8, and are
then measured by the same code: transformers' own forward pass over the test file's answers. Rows as in
train_throughput.py. Runs on a GPU or a CPU.
"""

import argparse
import gc
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from train_throughput import PROMPT

SETTINGS: dict[str, Any] = {"learning_rate": 5e-4, "batch_size": 8}
EVALUATED_AT_ONCE = 16  # rows, of about one length


def token_rows(tokenizer: Any, file: Path, limit: int = 1024) -> list[dict[str, list[int]]]:
    rows = []
    for line in file.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(PROMPT.format(dialogue=row["dialogue"]))["input_ids"]
        answer = tokenizer((row.get("summary") or row["summary1"]) + "\n\n### End")["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        if len(prompt) + len(answer) <= limit:
            rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def ours(base: Path, rows: list, seed: int, output: Path) -> list[float]:
    import torch
    from datasets import Dataset

    from tasks.config import TrainingConfig
    from tasks.model import base as bases
    from tasks.model.device import device
    from tasks.training.trl_adapter import PackedTrainer

    config = TrainingConfig(**SETTINGS, seed=seed)
    model = bases.load(base, config, device())
    with tempfile.TemporaryDirectory() as folder:
        trainer = PackedTrainer(model, Dataset.from_list(rows), config, Path(folder))
        trainer.run()
    model.save_pretrained(output)
    assert all(torch.isfinite(torch.tensor(row.grad_norm)) for row in trainer.step.metrics.rows)
    return [row.loss for row in trainer.step.metrics.rows]


def trl(base: Path, rows: list, seed: int, output: Path) -> list[float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    masked = [
        {"input_ids": r["input_ids"], "completion_mask": [int(label != -100) for label in r["labels"]]} for r in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=quantized(base),
            train_dataset=Dataset.from_list(masked),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=SETTINGS["batch_size"],
                learning_rate=SETTINGS["learning_rate"],
                lr_scheduler_type="cosine",
                warmup_steps=math.ceil(0.05 * math.ceil(len(rows) / SETTINGS["batch_size"])),
                num_train_epochs=1,
                optim="adamw_torch_fused",
                bf16=torch.cuda.is_available(),
                use_cpu=not torch.cuda.is_available(),
                max_length=None,
                completion_only_loss=True,  # not so by itself where the rows are tokens already
                seed=seed,
                data_seed=seed,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        trainer.train()
    trainer.model.save_pretrained(output)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def quantized(base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    return AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        ),
    )


def held_out_loss(base: Path, adapter: Path | None, rows: list) -> float:
    """Mean negative log-likelihood of the learnt tokens in nats, through transformers' own forward."""
    import torch
    from peft import PeftModel

    model = quantized(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    total, learnt = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(rows), EVALUATED_AT_ONCE):
            batch = rows[first : first + EVALUATED_AT_ONCE]
            ids = padded([row["input_ids"] for row in batch], 0).to(model.device)
            labels = padded([row["labels"] for row in batch], -100).to(model.device)
            mask = padded([[1] * len(row["input_ids"]) for row in batch], 0).to(model.device)
            count = int((labels[:, 1:] != -100).sum())
            total += float(model(input_ids=ids, attention_mask=mask, labels=labels).loss) * count
            learnt += count
    return total / learnt


def padded(values: list[list[int]], filler: int) -> Any:
    """All values as one matrix, the shorter ones filled up on the right."""
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(v) for v in values], batch_first=True, padding_value=filler)


def clear() -> None:
    """Give back what the last run held: ours looks at the free memory before it starts."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--base", "--train", "--test"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=500, help="rows of each file")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from tasks.process.quiet import silence

    silence()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    train, test = (token_rows(tokenizer, file)[: arguments.rows] for file in (arguments.train, arguments.test))
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    results: list[dict[str, Any]] = []

    def note(trainer: str, seed: int | None, seconds: float, losses: list[float], held_out: float) -> None:
        results.append({"trainer": trainer, "seed": seed, "held_out": held_out, "seconds": round(seconds, 1)})
        results[-1] |= {"losses": losses, "device": where}
        print(f"{trainer}, seed {seed}: held-out loss {held_out:.4f}, {seconds:.1f} s", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")

    print(f"{len(train)} training and {len(test)} held-out rows on {where}", flush=True)
    note("none", None, 0.0, [], held_out_loss(arguments.base, None, test))
    for seed in range(arguments.seeds):
        for name, run in (("ours", ours), ("trl", trl)):
            clear()
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                losses = run(arguments.base, train, seed, Path(folder))
                seconds = time.perf_counter() - began
                clear()
                note(name, seed, seconds, losses, held_out_loss(arguments.base, Path(folder), test))


if __name__ == "__main__":
    main()
