"""Evaluation speed on one GPU: this project's engine beside transformers' `generate`, same prompts, same weights.

    python benchmarks/eval_throughput.py --rows test.jsonl dev.jsonl --tokenizer FOLDER [--out results.json] [PART ...]

The base is the Llama-3-8B-shaped random model of train_throughput.py in NF4 (made once in --base), expanded to
bfloat16 as an evaluation does; the adapter is random too, r = 16 on all linears. Each part runs in a process of its
own, within a limit; what it finds is printed as it comes, and a part that fails is shown by its last lines. Needs 80 GB
for all parts.

    check    the attention of one new token against plain arithmetic, its speed; a small model in float32, graphs on
    engine   adapter on, five times; then the base alone; seconds of prompts and of new tokens
    loss     held-out loss of the same rows, adapter on and off, beside transformers' own forward, row by row
    generate as evaluation was done before the engine: PEFT's layers, `generate`, padded batches (commit f66d2cb):
             at its default settings for a part of the prompts, then at 131,072 prompt tokens for all of them

--no-graphs starts every kernel one by one; --gathered replaces FlashAttention for new tokens by plain operations.
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

import train_throughput as training

PARTS = ("check", "engine", "loss", "generate")
LIMIT = 200  # seconds of one part
STOP = [128255]  # an id that a random model does not come upon
BATCH_TOKENS = (8192, 131_072)
FEW = 75  # prompts at the old default settings, at about four a second
FIELDS = {"quantization": "4bit", "quant_type": "nf4", "compute_dtype": "bfloat16", "double_quant": False}


def make_adapter(folder: Path) -> None:
    """A random adapter as PEFT saves one, without a model in memory."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(LlamaConfig(**training.LLAMA3_8B))
        config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        shapes = {name: t.shape for name, t in get_peft_model_state_dict(get_peft_model(base, config)).items()}
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    save_file({name: 0.02 * torch.randn(shape) for name, shape in shapes.items()}, folder / "adapter_model.safetensors")
    config.save_pretrained(folder)


def prompt_ids(arguments: argparse.Namespace) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    return [tokenizer(row["prompt"])["input_ids"] for row in training.texts(arguments.rows)[: arguments.prompts]]


def say(**numbers: Any) -> None:
    print("RESULT " + json.dumps(numbers), flush=True)


def seconds(work: Any) -> tuple[float, Any]:
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return round(time.perf_counter() - began, 6), result


def peak_gb() -> float:
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 2)


def run_check(arguments: argparse.Namespace) -> None:
    import torch

    from tasks.evaluation.answers.cached import Cache, Decode
    from tasks.evaluation.answers.engine import Engine

    def attention(rows: int, tokens: int, window: int | None, way: str) -> tuple[Any, Any]:
        torch.manual_seed(0)
        lengths = torch.randint(1, tokens + 1, (rows,), device="cuda")
        starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))[:-1]
        cache = Cache(int(lengths.sum()) + 1)
        cache.layers[0] = tuple(torch.randn(cache.places, 8, 128, device="cuda", dtype=torch.bfloat16) for _ in "kv")
        q = torch.randn(rows, 32, 128, device="cuda", dtype=torch.bfloat16)
        decode = Decode(cache, starts, lengths, tokens)
        if way == "flash":
            return lambda: decode._flash(q, *cache.layers[0], None, window), int(lengths.sum())
        grouped = q.view(rows, 8, 4, 128)
        return lambda: decode._gathered(grouped, *cache.layers[0], None, window).flatten(1, 2), int(lengths.sum())

    for window in (None, 64):
        for rows, tokens in ((7, 300), (64, 500), (500, 500)):
            (flash, read), (gathered, _) = (attention(rows, tokens, window, way) for way in ("flash", "gathered"))
            error = ((flash().float() - gathered().float()).norm() / gathered().float().norm()).item()
            spent = [seconds(lambda f=f: [f() for _ in range(20)])[0] / 20 for f in (flash, gathered)]
            say(
                what=f"one new token, {rows} rows of up to {tokens}, window {window}",
                relative_error=round(error, 5),
                flash_ms=round(1e3 * spent[0], 3),
                flash_gb_per_second=round(read * 4096 / spent[0] / 1e9),
                gathered_ms=round(1e3 * spent[1], 3),
            )
    for dtype in (torch.float32, torch.bfloat16):
        small, prompts = small_model(dtype), [list(range(5, 5 + n)) for n in (1, 40, 7, 19, 3, 28, 11, 60) * 8]
        got = Engine(small, graphs=not arguments.no_graphs).answer(prompts, [2], 40, 0, print)
        eager = Engine(small, graphs=False).answer(prompts, [2], 40, 0, print)
        want = [plain([prompt], small, 40)[0] for prompt in prompts[:8]] * 8
        say(
            what=f"small model, {dtype}: rows as one by one with generate",
            captured=differing(got, want, [2]),
            not_captured=differing(eager, want, [2]),
        )


def small_model(dtype: Any) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    from tasks.model.lora import fuse

    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 500}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**training.LLAMA3_8B | shape | heads), dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.06)
    model.generation_config = GenerationConfig()
    adapted = get_peft_model(
        model.cuda(), LoraConfig(target_modules="all-linear", init_lora_weights=False), autocast_adapter_dtype=False
    )
    fuse(adapted, dtype)
    return adapted.eval()


def plain(prompts: list[list[int]], model: Any, new: int) -> list[list[int]]:
    """One padded batch through `generate`, as at f66d2cb."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), 2)
    mask = torch.zeros_like(ids)
    for line, prompt in enumerate(prompts):
        ids[line, width - len(prompt) :] = torch.tensor(prompt)
        mask[line, width - len(prompt) :] = 1
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=[2] if len(prompts) == 1 else STOP,
            pad_token_id=2,
        )
    return out[:, width:].tolist()


def differing(got: list[list[int]], want: list[list[int]], stop: list[int]) -> str:
    """How many answers are not the same up to their ends."""
    from tasks.evaluation.answers.generate import until

    return f"{sum(until(a, stop) != until(b, stop) for a, b in zip(got, want, strict=True))} of {len(got)} differ"


def run_engine(arguments: argparse.Namespace) -> None:
    import torch

    from tasks.evaluation.answers import generate
    from tasks.evaluation.answers.engine import Engine
    from tasks.evaluation.answers.slots import Slots

    prompts = prompt_ids(arguments)
    spent, model = seconds(lambda: generate.load(arguments.base, arguments.adapter, FIELDS))
    say(what="loaded", seconds=spent, prompt_tokens=sum(map(len, prompts)), longest=max(map(len, prompts)))
    graphs = not arguments.no_graphs

    def answers() -> list[list[int]]:
        return Engine(model, graphs).answer(prompts, STOP, arguments.new, 0, print)

    for run in range(arguments.runs):
        torch.cuda.reset_peak_memory_stats()
        spent, found = seconds(answers)
        if run == 0:
            first = found
            (arguments.scratch / "engine.json").write_text(json.dumps(found))
        say(
            what=f"engine, adapter on, run {run + 1}",
            samples_per_second=round(len(prompts) / spent, 1),
            seconds=spent,
            peak_gb=peak_gb(),
            new_tokens=sum(map(len, found)),
            as_first_run=differing(found, first, STOP),
        )
    with model.disable_adapter():
        for run in range(2):
            torch.cuda.reset_peak_memory_stats()
            spent, found = seconds(answers)
            say(
                what=f"engine, base alone, run {run + 1}",
                samples_per_second=round(len(prompts) / spent, 1),
                seconds=spent,
                peak_gb=peak_gb(),
            )
    parts = {"room": 0.0, "fill": 0.0, "advance": 0.0, "_capture": 0.0}
    calls = dict.fromkeys(parts, 0)
    for kind, name in ((Engine, "room"), (Slots, "fill"), (Slots, "advance"), (Slots, "_capture")):

        def timed(*given: Any, usual: Any = getattr(kind, name), name: str = name) -> Any:
            took, result = seconds(lambda: usual(*given))
            parts[name] += took
            calls[name] += 1
            return result

        setattr(kind, name, timed)
    spent, _ = seconds(answers)
    passes = arguments.new - 1
    say(
        what="engine, adapter on, in parts",
        seconds=spent,
        measuring_memory=parts["room"],
        prompts=round(parts["fill"], 3),
        prompt_tokens_per_second=round(sum(map(len, prompts)) / parts["fill"]),
        new_tokens=round(parts["advance"] - parts["_capture"], 3),
        ms_a_pass=round(1e3 * (parts["advance"] - parts["_capture"]) / passes, 2),
        capturing=round(parts["_capture"], 3),
        calls=calls,
    )
    if arguments.profile:
        profile(lambda: Engine(model, graphs).answer(prompts, STOP, 2, 0, print), "prompts and one pass")
        profile(lambda: Engine(model, graphs).answer([p[:64] for p in prompts], STOP, 34, 0, print), "mostly passes")


def profile(work: Any, title: str) -> None:
    """Print where the kernels' time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        work()
    events = [e for e in found.key_averages() if e.self_device_time_total > 0]
    print(f"KERNELS {title}: {sum(e.self_device_time_total for e in events) / 1e3:.0f} ms")
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:25]:
        print(f"{event.self_device_time_total / 1e3:8.2f} ms {event.count:6} x  {event.key[:110]}", flush=True)


def run_loss(arguments: argparse.Namespace) -> None:
    import torch

    from tasks.evaluation.answers import generate
    from tasks.evaluation.answers.generate import losses
    from tasks.training.packing import Row

    arguments.every_token = False
    found = training.token_rows(arguments)[: arguments.prompts]
    rows = [Row(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in found]
    model = generate.load(arguments.base, arguments.adapter, FIELDS)
    size = {"rows": len(rows), "tokens": sum(len(r.input_ids) for r in rows), "targets": sum(r.targets for r in rows)}

    def mine() -> list[float]:
        return losses(model, rows, print, lambda share, done: None)

    for run in range(3):
        torch.cuda.reset_peak_memory_stats()
        spent, on = seconds(mine)
        what = f"held-out loss, adapter on, run {run + 1}"
        say(what=what, **size, seconds=spent, peak_gb=peak_gb(), mean=round(sum(on) / len(on), 6))
    with model.disable_adapter():
        spent, off = seconds(mine)
    say(what="held-out loss, adapter off", seconds=spent, peak_gb=peak_gb(), mean=round(sum(off) / len(off), 6))
    few = range(0, len(rows), 10)
    theirs = []
    with torch.inference_mode():
        for row in (rows[i] for i in few):
            logits = model(input_ids=row.input_ids[None].cuda(), use_cache=False).logits[0, :-1].float()
            targets = row.labels[1:].cuda()
            theirs.append(torch.nn.functional.cross_entropy(logits, targets).item())
    apart = max(abs(on[i] - other) for i, other in zip(few, theirs, strict=True))
    say(what=f"greatest difference to transformers' forward, {len(few)} rows", nats=round(apart, 5))


def run_generate(arguments: argparse.Namespace) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    from tasks.model.quantization import load_options

    prompts = prompt_ids(arguments)
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.base, device_map={"": "cuda"}, **load_options(**FIELDS))
    model = model.dequantize().to(torch.bfloat16)
    model.generation_config = GenerationConfig()
    tuned = PeftModel.from_pretrained(model, arguments.adapter, autocast_adapter_dtype=False).eval()

    def answers(numbers: list[int], batch_tokens: int) -> dict[int, list[int]]:
        found, waiting = {}, sorted(numbers, key=lambda i: -len(prompts[i]))
        while waiting:
            batch = waiting[: max(1, batch_tokens // len(prompts[waiting[0]]))]
            found |= dict(zip(batch, plain([prompts[i] for i in batch], tuned, arguments.new), strict=True))
            waiting = waiting[len(batch) :]
        return found

    every = len(prompts) // FEW
    for numbers, batch_tokens in zip((range(0, len(prompts), every), range(len(prompts))), BATCH_TOKENS, strict=True):
        torch.cuda.reset_peak_memory_stats()
        spent, found = seconds(lambda n=numbers, b=batch_tokens: answers(list(n), b))
        say(
            what=f"generate, adapter on, {batch_tokens:,} prompt tokens at once, {len(found)} prompts",
            samples_per_second=round(len(found) / spent, 2),
            seconds=spent,
            peak_gb=peak_gb(),
        )
    if (file := arguments.scratch / "engine.json").exists():
        ours = json.loads(file.read_text())
        theirs = [found[i] for i in range(len(prompts))]
        pairs = list(zip(ours, theirs, strict=True))
        agreeing = [next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a)) for a, b in pairs]
        say(
            what="greedy answers in bfloat16, engine against generate",
            rows=differing(ours, theirs, STOP),
            tokens_alike_before_the_first_other=round(sum(agreeing) / len(agreeing), 1),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS)
    parser.add_argument("--rows", type=Path, nargs="+", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=Path("/tmp/llama3-8b-shape-nf4"))
    parser.add_argument("--adapter", type=Path, default=Path("/tmp/llama3-8b-shape-lora"))
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--new", type=int, default=64, help="tokens of every answer")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--gathered", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no part is named {', '.join(unknown)}; there are {', '.join(PARTS)}")
    from tasks.process.quiet import silence

    silence()
    if arguments.scratch:
        if arguments.gathered:
            from tasks.evaluation.answers import cached

            cached.flash = lambda query: False
        {"check": run_check, "engine": run_engine, "loss": run_loss, "generate": run_generate}[arguments.parts[0]](
            arguments
        )
        return
    if arguments.parts != ["check"] and not (arguments.base / "config.json").exists():
        training.make_base(arguments.base)
        os.execv(sys.executable, [sys.executable, *sys.argv])  # gives the GPU back
    if not (arguments.adapter / "adapter_config.json").exists():
        make_adapter(arguments.adapter)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for part in arguments.parts:
            results += run_part(part, arguments.parts, scratch)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print("| what | samples/s | seconds | peak GB |\n|---|---:|---:|---:|")
    for r in results:
        if "samples_per_second" in r:
            print(f"| {r['what']} | {r['samples_per_second']} | {r['seconds']} | {r['peak_gb']} |")


def run_part(part: str, parts: list[str], scratch: str) -> list[dict[str, Any]]:
    """Its results, printed as they come."""
    passed = [value for value in sys.argv[1:] if value not in parts]
    command = [sys.executable, __file__, part, *passed, "--scratch", scratch]
    began, said = time.perf_counter(), list[str]()
    process = subprocess.Popen(
        ["timeout", str(LIMIT), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line.rstrip())
        if line.startswith(("RESULT", "KERNELS")) or " ms " in line or "answers" in line or "captured" in line:
            print(f"{part}: {said[-1]}", flush=True)
    code = process.wait()
    if code:
        print("\n".join(said[-40:]))
    print(f"{part}: {time.perf_counter() - began:.0f} s, {'done' if not code else f'FAILED ({code})'}", flush=True)
    return [json.loads(line.removeprefix("RESULT ")) for line in said if line.startswith("RESULT ")]


if __name__ == "__main__":
    main()
