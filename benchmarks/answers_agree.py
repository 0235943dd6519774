"""Do the engine's answers equal those of transformers' `generate` with the adapter unmerged, and those of the next run?

    python benchmarks/answers_agree.py CONFIG.yaml

Trains the configuration's adapter, then lets it answer the held-out rows in float32 and bfloat16: five times by the
engine, each time loaded anew, and once by `generate` in padded batches. Prints how many rows differ, and ROUGE-L.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from gate_pool import trained
from prefect.logging import disable_run_logger

RUNS = 5


def main(config: Path) -> None:
    with disable_run_logger():
        groups, (adapter, tokens, prompts, model) = trained(config, {})
    from tasks.evaluation.answers import generate
    from tasks.evaluation.metrics import scores
    from tasks.evaluation.rows import held_out
    from tasks.formatting.schema import PROMPTS
    from tasks.process.quiet import silence
    from tasks.tokenization.facts import TokenFacts
    from tasks.tokenization.schema import TOKENS

    silence()
    base, config_of = Path(model.folder), groups["evaluation"]
    rows = held_out(tokens.path / TOKENS, prompts.path / PROMPTS, config_of.max_rows)
    asked = [row["prompt_ids"] for row in rows]
    stop = generate.stop_ids(base, tokens.facts(TokenFacts).eos)
    tokenizer, new = generate.tokenizer_of(base), config_of.max_new_tokens

    def rouge(answers: list[list[int]]) -> float:
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        answered = [
            {**row, "prompt": "", "tuned": text, "tuned_ended": True} for row, text in zip(rows, texts, strict=True)
        ]
        with tempfile.TemporaryDirectory() as scratch:
            values = scores(answered, "tuned", ["rougeL"], scratch)["rougeL"]
        return sum(values) / len(values)

    for dtype in ("float32", "bfloat16"):
        fields = {
            "quantization": "4bit",
            "quant_type": "nf4",
            "compute_dtype": dtype,
            "double_quant": groups["training"].double_quant,
        }
        runs: list[list[list[int]]] = []
        for _ in range(RUNS):
            loaded = generate.load(base, adapter.path / "adapter", fields)
            runs.append(generate.answer(loaded, asked, stop, new, 0, lambda line: None))
        theirs: Any = plain(base, adapter.path / "adapter", fields, asked, stop, new)
        print(
            f"{dtype}: {len(rows)} rows; engine against its first run: "
            f"{[sum(a != b for a, b in zip(run, runs[0], strict=True)) for run in runs[1:]]} differ; "
            f"engine against generate: {sum(a != b for a, b in zip(runs[0], theirs, strict=True))} differ; "
            f"ROUGE-L of the runs {[round(rouge(run), 5) for run in runs]}, of generate {rouge(theirs):.5f}",
            flush=True,
        )


def plain(base: Path, adapter: Path, fields: dict[str, Any], asked: list, stop: list[int], new: int) -> list[list[int]]:
    """PEFT's own layers, unmerged, and `generate` in padded batches."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    from tasks.evaluation.answers import generate
    from tasks.model.quantization import load_options

    options = load_options(**fields)
    where = {"": "cuda" if torch.cuda.is_available() else "cpu"}
    model: Any = AutoModelForCausalLM.from_pretrained(base, device_map=where, **options)
    model = model.dequantize().to(options["dtype"])
    model.generation_config = GenerationConfig()
    tuned = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).eval()
    answers: list[list[int]] = [[] for _ in asked]
    order = sorted(range(len(asked)), key=lambda index: -len(asked[index]))
    for start in range(0, len(order), 32):
        batch = order[start : start + 32]
        found = generate._generate(tuned, [asked[index] for index in batch], stop, new)
        for index, ids in zip(batch, found, strict=True):
            answers[index] = generate.until(ids, stop)
    return answers


if __name__ == "__main__":
    main(Path(sys.argv[1]))
