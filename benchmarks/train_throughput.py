"""Training speed on one GPU: this project's trainer beside others, same rows, same run.

    python benchmarks/train_throughput.py --rows dev.jsonl test.jsonl --tokenizer FOLDER [--out results.json] [MODE ...]

The base is a Llama-3-8B-shaped model with random weights in NF4, made once in --base (6 GB of disk).
Rows are JSON lines with `dialogue` and `summary` (or `summary1`). Each mode runs in a process of its own; the table and
the JSON show loss and gradient norm beside the speed, because speed without them proves nothing. Tokens are counted
without padding; the first steps are left out. A mode that fails is shown by its last lines, and the next one runs.
Needs a CUDA GPU with 80 GB for all modes.

Modes: fast, auto, lean, budget24 (auto, capped at 24 GB), match (as trl_match: the same rows in the same order, loss
by loss), auto_all and lean_all (every token a target, as Unsloth learns), fast_dropout, auto_dropout, lean_dropout
(0.05), and those of peers.py: trl, trl_plain, trl_match, article, unsloth, unsloth_lean. A ratio is fair between modes
with the same targets alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import peers

PROMPT = (
    "\nBelow is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruct: Summarize the below conversation.\n\n{dialogue}\n\n### Output:\n"
)
LLAMA3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
WARM = 5  # steps left out of the speed
LORA = {"lora_r": 16, "lora_alpha": 32, "warmup_share": 0.0, "schedule": "constant", "learning_rate": 2e-4}
OURS: dict[str, dict[str, Any]] = {
    "fast": {"batch_size": 40, "micro_batch_tokens": 14_000, "speed": "fast", "compile": "always", "max_steps": 30},
    "auto": {"batch_size": 50, "compile": "always", "max_steps": 25},
    "lean": {"batch_size": 18, "micro_batch_tokens": 6000, "speed": "lean", "compile": "always", "max_steps": 30},
    "budget24": {"batch_size": 48, "compile": "always", "max_steps": 15},
    "match": {"batch_size": 8, "micro_batch_tokens": 8_000, "max_steps": 25},
}
OURS |= {f"{mode}_all": OURS[mode] for mode in ("auto", "lean")}
OURS |= {f"{mode}_dropout": OURS[mode] | {"lora_dropout": 0.05} for mode in ("fast", "auto", "lean")}
LIMIT = 400  # seconds a mode may take, start and compilation included
CAP_GB = {"budget24": 24}


def make_base(folder: Path, device: str = "cuda") -> None:
    """A random model in NF4, saved as transformers saves one; never whole in bfloat16 on the disk."""
    import bitsandbytes
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(**LLAMA3_8B)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    quantized = bitsandbytes.nn.Linear4bit(
                        linear.in_features,
                        linear.out_features,
                        bias=False,
                        compute_dtype=torch.bfloat16,
                        compress_statistics=False,
                        quant_type="nf4",
                        device="meta",
                    )
                    quantized.weight = bitsandbytes.nn.Params4bit(
                        linear.weight.data.cpu(), requires_grad=False, compress_statistics=False, quant_type="nf4"
                    ).to(device)
                    setattr(parent, name, quantized)
    config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    folder.mkdir(parents=True)
    state = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


def texts(files: list[Path]) -> list[dict[str, str]]:
    """Prompt and completion of every row, four times over."""
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [
        {
            "prompt": PROMPT.format(dialogue=row["dialogue"]),
            "completion": (row.get("summary") or row["summary1"]) + "\n\n### End",
        }
        for row in rows
    ] * 4


def token_rows(arguments: argparse.Namespace, every_token: bool = False) -> list[dict[str, list[int]]]:
    """The rows as the tokenization stage would hand them over: the completion is the target, or every token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    rows = []
    for text in texts(arguments.rows):
        prompt = tokenizer(text["prompt"])["input_ids"]
        completion = [*tokenizer(text["completion"])["input_ids"], tokenizer.eos_token_id]
        rows.append(
            {"input_ids": prompt + completion, "labels": (prompt if every_token else [-100] * len(prompt)) + completion}
        )
    return rows


def run_ours(mode: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The worker's own loading and trainer, with a log that is read afterwards."""
    import psutil
    import torch
    from datasets import Dataset

    from tasks.config import TrainingConfig
    from tasks.model import base
    from tasks.training.compute_plan import operations_per_token
    from tasks.training.trl_adapter import PackedTrainer

    config = TrainingConfig(**LORA, **OURS[mode])
    model = base.load(arguments.base, config, torch.device("cuda", 0))
    began = time.time()
    rows = Dataset.from_list(token_rows(arguments, mode.endswith("_all")))
    own = time.time() - began  # a run's child reads them from Parquet
    with tempfile.TemporaryDirectory() as folder:
        trainer = PackedTrainer(model, rows, config, Path(folder))
        if arguments.profile:
            profile_steps(trainer)
        trainer.run()
    spent = time.time() - psutil.Process().create_time() - own
    steps = trainer.step.metrics.rows
    timed = steps[WARM:]
    return {
        "tokens": sum(row.tokens for row in timed),
        "seconds": sum(row.seconds for row in timed),
        "losses": [row.loss for row in steps],
        "norms": [row.grad_norm for row in steps],
        "tokens_per_step": sum(row.tokens for row in steps) / len(steps),
        "halvings": trainer.step.halvings,
        "micro_batch_tokens": trainer.step.micro_batch_tokens,
        "first_step_seconds": steps[0].seconds,
        "start_to_first_step_seconds": spent - sum(row.seconds for row in steps[1:]),
        "flops": operations_per_token(model),
    }


def result(*, tokens: int, seconds: float, flops: int, losses: list[float], norms: list[float], **more: Any) -> dict:
    import torch

    return {
        "tokens_per_second": round(tokens / seconds),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
        "tflops": round(tokens / seconds * flops / 1e12),
        "loss": [round(loss, 4) for loss in losses],
        "grad_norm": [round(float(norm), 4) for norm in norms],
        "device": torch.cuda.get_device_name(),
        **{name: round(value, 2) for name, value in more.items()},
    }


def profile_steps(trainer: Any) -> None:
    """Print where the kernels' time of steps 8 to 10 goes."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    profiler = profile(activities=[ProfilerActivity.CUDA])

    class Window(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 7:
                profiler.__enter__()
            if state.global_step == 10:
                profiler.__exit__(None, None, None)
                events = [e for e in profiler.key_averages() if e.self_device_time_total > 0]
                print(f"KERNELS {sum(e.self_device_time_total for e in events) / 3e3:.1f} ms a step")
                for event in sorted(events, key=lambda e: -e.self_device_time_total)[:40]:
                    print(f"{event.self_device_time_total / 3e3:8.2f} ms {event.count / 3:6.0f} x  {event.key[:110]}")

    trainer.add_callback(Window())


def one_mode(mode: str, arguments: argparse.Namespace) -> None:
    """Measure one mode in this process and print its line."""
    import torch

    if arguments.quick:
        {**OURS, **peers.SETTINGS}[mode]["max_steps"] = arguments.quick
    if mode in CAP_GB:
        torch.cuda.set_per_process_memory_fraction(CAP_GB[mode] * 1e9 / torch.cuda.mem_get_info()[1])
    measured = result(**(run_ours(mode, arguments) if mode in OURS else peers.run(mode, arguments)))
    print("RESULT " + json.dumps({"mode": mode, **measured}), flush=True)


def matmul_tflops() -> float:
    """The card's measured bfloat16 rate, in a process that gives the memory back."""
    code = "import train_throughput; print(train_throughput.measured_rate())"
    here = Path(__file__).parent
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here).stdout) / 1e12


def measured_rate(size: int = 8192, repeats: int = 20) -> float:
    """Operations per second of a large bfloat16 matrix product."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", default=[*OURS, *peers.SETTINGS])
    parser.add_argument("--rows", type=Path, nargs="+", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=Path("/tmp/llama3-8b-shape-nf4"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", type=int, default=0, help="steps of each mode, for a trial")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    known = [*OURS, *peers.SETTINGS]
    if unknown := [mode for mode in arguments.modes if mode not in known]:
        parser.error(f"no mode is named {', '.join(unknown)}; there are {', '.join(known)}")
    if arguments.here:
        peers.first_import(arguments.modes[0])
    from tasks.process.quiet import silence

    silence()
    if arguments.here:
        one_mode(arguments.modes[0], arguments)
        return
    if not (arguments.base / "config.json").exists():
        make_base(arguments.base)
        os.execv(sys.executable, [sys.executable, *sys.argv])  # gives the GPU back
    rate = matmul_tflops()
    print(f"bfloat16 matrix product on this card: {rate:.0f} TFLOP/s")
    results: list[dict[str, Any]] = []
    for mode in arguments.modes:
        if (measured := measure(mode, arguments)) is not None:
            results.append(measured)
        if arguments.out:
            arguments.out.write_text(json.dumps({"matmul_tflops": rate, "results": results}, indent=1) + "\n")
    print_table(results, rate)


def measure(mode: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Run one mode in a process of its own; None, and the end of what it said, when it failed."""
    passed = [value for value in sys.argv[1:] if value not in arguments.modes]
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            [sys.executable, __file__, mode, *passed, "--here"], stdout=said, stderr=subprocess.STDOUT
        )
        try:
            code: int | str = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = f"longer than {LIMIT} s"
        said.seek(0)
        lines = said.read().splitlines()
    found = [line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT ")]
    if arguments.profile or not found:
        print("\n".join(lines if arguments.profile else lines[-40:]), flush=True)
    print(f"{mode}: {time.perf_counter() - began:.0f} s", *(found or [f"FAILED ({code})"]), flush=True)
    return json.loads(found[0]) if found else None


def print_table(results: list[dict[str, Any]], rate: float) -> None:
    print("| mode | tokens/s | tokens a step | peak GB | TFLOP/s | of matmul | loss | grad norm |")
    print("|---|---:|---:|---:|---:|---:|---|---|")
    for r in results:
        print(
            f"| {r['mode']} | {r['tokens_per_second']:,} | {r['tokens_per_step']:,.0f} | {r['peak_gb']} | "
            f"{r['tflops']} | {r['tflops'] / rate:.0%} | {r['loss'][0]:.3f} → {r['loss'][-1]:.3f} | "
            f"{r['grad_norm'][0]:.3f} → {r['grad_norm'][-1]:.3f} |"
        )


if __name__ == "__main__":
    main()
