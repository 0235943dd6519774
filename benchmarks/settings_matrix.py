"""Every usual training setting in every speed mode on a GPU: all pairs of settings, in as few runs as cover them.

    python benchmarks/settings_matrix.py [--jobs 4] [--out results.json]

Each run trains two layers of an 8B model's width (random weights) for eight steps, and is held against the same
settings at `speed: fast` without compilation. A run fails when it does not end, when a number is not finite, when a
validation that was asked for is missing, or when its losses are further from that reference than rounding (and, with
random numbers in the step, their noise) explains. Runs that fell back to uncompiled layers are marked.
Needs a CUDA GPU.
"""

import argparse
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

VOCABULARY, ROWS, STEPS = 32_000, 96, 8
DEVICE = "cuda"
SHAPE: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=2,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=4096,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
BASES = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2 (biases)": ("Qwen2Config", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": False}),
    "mistral (window)": ("MistralConfig", {"sliding_window": 128, "tie_word_embeddings": False}),
    "gemma3 (window, tied)": ("Gemma3TextConfig", {"sliding_window": 128, "tie_word_embeddings": True}),
}
SETTINGS: dict[str, list[Any]] = {
    "speed": ["fast", "balanced", "lean"],
    "compile": ["always", "never"],
    "base": list(BASES),
    "quantization": ["4bit", "none"],
    "double_quant": [False, True],
    "compute_dtype": ["bfloat16", "float16"],
    "lora_dropout": [0.0, 0.05],
    "dora": [False, True],
    "rslora": [False, True],
    "neftune_alpha": [0.0, 5.0],
    "optimizer": ["adamw", "paged_adamw_8bit"],
    "modules_to_save": [(), ("embed_tokens", "lm_head")],
    "validation_share": [0.0, 0.1],
}
Case = dict[str, Any]


def possible(case: Case) -> bool:
    """Whether the configuration takes these settings together."""
    return not (
        (case.get("double_quant") and case.get("quantization") == "none")
        or (case.get("modules_to_save") and "tied" in case.get("base", ""))
    )


def covering_cases() -> list[Case]:
    """Cases that hold every possible pair of settings, and compiled every setting in every speed; found greedily."""
    generator = random.Random(0)
    wanted = {
        tuple(sorted({a: x, b: y}.items()))
        for a, b in itertools.combinations(SETTINGS, 2)
        for x in SETTINGS[a]
        for y in SETTINGS[b]
    }
    for speed, name in itertools.product(SETTINGS["speed"], SETTINGS):
        for value in SETTINGS[name]:
            wanted.add(tuple(sorted({"speed": speed, "compile": "always", name: value}.items())))
    missing = sorted((items for items in wanted if possible(dict(items))), key=repr)
    cases: list[Case] = []
    while missing:
        best: tuple[int, Case] = (0, {})
        for _ in range(200):
            case: Case = dict(generator.choice(missing))
            for name in generator.sample(list(SETTINGS), len(SETTINGS)):
                if name not in case:
                    values = [value for value in SETTINGS[name] if possible({**case, name: value})]
                    gains = [len(covered({**case, name: value}, missing)) for value in values]
                    case[name] = generator.choice(
                        [v for v, gain in zip(values, gains, strict=True) if gain == max(gains)]
                    )
            best = max(best, (len(covered(case, missing)), case), key=lambda found: found[0])
        cases.append({name: best[1][name] for name in SETTINGS})
        done = covered(best[1], missing)
        missing = [items for items in missing if items not in done]
    return cases


def covered(case: Case, wanted: list[Any]) -> list[Any]:
    """Those of some combinations of settings that a case holds."""
    return [items for items in wanted if all(case.get(name, items) == value for name, value in items)]


def make_base(name: str, folder: Path) -> Path:
    """A random model of that architecture on the disk."""
    import torch
    import transformers

    place = folder / name.partition(" ")[0].partition(",")[0] / ("tied" if "tied" in name else "apart")
    if not (place / "config.json").exists():
        kind, more = BASES[name]
        config = getattr(transformers, kind)(**SHAPE | more)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(DEVICE):
            model = transformers.AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():  # biases and norms too: none of them trivially right
                torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1 and "gemma" not in name), std=0.02)
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(place)
    return place


def train(base_folder: Path, case: Case) -> dict[str, Any]:
    """One run: its losses, gradient norms and what it said."""
    import torch
    from datasets import Dataset

    from tasks.config import TrainingConfig
    from tasks.model import base
    from tasks.training.trl_adapter import PackedTrainer

    generator = random.Random(1)
    rows = []
    for _ in range(ROWS):
        start, step, length = generator.randrange(3, 2000), generator.randrange(1, 9), generator.randrange(60, 400)
        ids = [(start + step * n) % (VOCABULARY - 3) + 3 for n in range(length)]
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in case.items() if k != "base"}
    if case["validation_share"]:
        settings |= {"validation_steps": 2, "patience": 3}
    config = TrainingConfig(
        **settings, learning_rate=5e-4, warmup_share=0.0, batch_size=16, max_steps=STEPS, micro_batch_tokens=2400
    )
    model = base.load(base_folder, config, torch.device(DEVICE))
    said: list[str] = []
    held_back = Dataset.from_list(rows[:8]) if case["validation_share"] else None
    with tempfile.TemporaryDirectory() as folder:
        trainer = PackedTrainer(model, Dataset.from_list(rows[8:]), config, Path(folder), said.append, held_back)
        began = time.monotonic()
        trainer.run()
    step = trainer.step
    steps = step.metrics.rows
    return {
        "losses": [row.loss for row in steps],
        "norms": [row.grad_norm for row in steps],
        "validation": [loss for _, loss in step.validation.points] if step.validation else [],
        "seconds": time.monotonic() - began,
        "said": [line for line in said if "failed" in line or "memory" in line],
    }


def verdict(case: Case, got: dict[str, Any], want: dict[str, Any]) -> str:
    """`ok`, or what is wrong with a run beside its reference."""
    numbers = [*got["losses"], *got["validation"]]
    if not all(map(math.isfinite, numbers)) or not any(norm > 0 for norm in got["norms"]):
        return "a number is not finite, or every gradient is zero"
    if bool(case["validation_share"]) != bool(got["validation"]):
        return "no validation"
    drawn = bool(case["lora_dropout"] or case["neftune_alpha"])  # other numbers where kernels differ
    bound = 0.03 if drawn else 0.01
    furthest = max(abs(a - b) / abs(b) for a, b in zip(got["losses"], want["losses"], strict=True))
    if furthest > bound:
        return f"losses {furthest:.1%} from the reference's"
    if case["compile"] == "always" and got["said"]:
        return "ok, fell back: " + got["said"][0][:120]
    return "ok"


def one_case(case: Case, bases: Path) -> None:
    """Train a case and its reference in this process and print both."""
    from tasks.process.quiet import silence

    silence()
    case = {name: tuple(value) if isinstance(value, list) else value for name, value in case.items()}
    folder = make_base(case["base"], bases)
    got = train(folder, case)
    print("RESULT " + json.dumps(got), flush=True)
    print("REFERENCE " + json.dumps(train(folder, {**case, "speed": "fast", "compile": "never"})), flush=True)


def run_case(case: Case, bases: Path, seconds: float) -> dict[str, Any]:
    """A case in a process of its own, and what became of it."""
    command = [sys.executable, __file__, "--case", json.dumps(case), "--bases", str(bases)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        said = done.stdout.splitlines() + done.stderr.splitlines()
    except subprocess.TimeoutExpired as error:
        said = [*str(error.stdout or "").splitlines(), f"longer than {seconds:g} s"]
    found = {
        kind: json.loads(line.removeprefix(kind + " "))
        for kind in ("RESULT", "REFERENCE")
        for line in said
        if line.startswith(kind + " ")
    }
    if len(found) < 2:
        lines = [line for line in said if line.strip()]
        return {"case": case, "verdict": "FAILED: " + next(iter(reversed(lines)), "nothing said"), "end": lines[-25:]}
    return {"case": case, "verdict": verdict(case, found["RESULT"], found["REFERENCE"]), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4, help="runs at a time on the GPU")
    parser.add_argument("--seconds", type=float, default=240, help="longest time of one run")
    parser.add_argument("--bases", type=Path, default=Path(tempfile.gettempdir(), "settings-matrix"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        return one_case(arguments.case, arguments.bases)
    cases = covering_cases()
    print(f"{len(cases)} cases cover all pairs of {len(SETTINGS)} settings")
    if arguments.list:
        return print(*(" · ".join(map(str, case.values())) for case in cases), sep="\n")
    for name in BASES:  # once, before several runs at a time want the same
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; "
        code += f"import settings_matrix as m; m.make_base({name!r}, Path({str(arguments.bases)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"})
    results = []
    print("| " + " | ".join(SETTINGS) + " | seconds | loss | gradient norm | verdict |")
    print("|" + "---|" * (len(SETTINGS) + 4))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for result in pool.map(lambda case: run_case(case, arguments.bases, arguments.seconds), cases):
            results.append(result)
            got = result.get("RESULT")
            numbers = ["", "", ""]
            if got:
                numbers = [f"{got['seconds']:.0f}", f"{got['losses'][0]:.3f} → {got['losses'][-1]:.3f}"]
                numbers.append(f"{min(got['norms']):.2f} to {max(got['norms']):.2f}")
            values = ["+".join(v) if isinstance(v, tuple) else str(v) for v in result["case"].values()]
            print("| " + " | ".join([*values, *numbers, result["verdict"]]) + " |", flush=True)
            if "end" in result:
                print(*("    " + line[:300] for line in result["end"]), sep="\n", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    good = sum(result["verdict"].startswith("ok") for result in results)
    print(f"{good} of {len(results)} ended well")


if __name__ == "__main__":
    main()
