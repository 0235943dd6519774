"""The engine's greedy answers are those of transformers' own `generate`, row by row, in float32."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported; see tasks/process/quiet.py

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from tasks.errors import UserError
from tasks.evaluation.answers import cached, engine, generate
from tasks.evaluation.answers import slots as slot_room
from tasks.evaluation.answers.cached import Unsupported
from tasks.evaluation.answers.engine import Engine
from tasks.process import progress

SHAPE: dict[str, Any] = dict(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
BASES = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "smollm": lambda: LlamaConfig(**SHAPE | {"num_attention_heads": 6, "hidden_size": 96, "tie_word_embeddings": True}),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=32),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=7),
    "gemma": lambda: GemmaConfig(**SHAPE, head_dim=32),
    "gemma3": lambda: Gemma3TextConfig(
        **SHAPE, head_dim=16, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi3": lambda: Phi3Config(**SHAPE),
    "gemma2": lambda: Gemma2Config(**SHAPE, head_dim=16, sliding_window=5),
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "dora": {"use_dora": True},
    "whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
}
FLOAT32 = {"quantization": "none", "quant_type": "nf4", "compute_dtype": "float32", "double_quant": False}
STOP = [2, 5, 50]
LENGTHS = [1, 30, 4, 11, 2, 19, 7, 7, 3, 25, 64]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """`made("llama", "dora")`: folders of a random base and an adapter on it."""
    folders: dict[tuple[str, str], tuple[Path, Path]] = {}

    def make(base: str, adapter: str = "lora") -> tuple[Path, Path]:
        if (base, adapter) not in folders:
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_config(BASES[base](), dtype=torch.float32)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15)
            folder = tmp_path_factory.mktemp(f"{base}-{adapter}")
            model.save_pretrained(folder / "base")
            options = {"target_modules": "all-linear", "init_lora_weights": False} | ADAPTERS[adapter]
            adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, **options))
            for name, parameter in adapted.named_parameters():
                if "modules_to_save" in name or "magnitude" in name:  # or they would be the base's
                    parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
            adapted.save_pretrained(folder / "adapter")
            folders[base, adapter] = folder / "base", folder / "adapter"
        return folders[base, adapter]

    return make


def prompts(lengths: list[int] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 97, (length,), generator=generator).tolist() for length in lengths]


def plain_answers(model: Any, rows: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """transformers' own, one row at a time."""
    answers = []
    for row in rows:
        out = model.generate(
            input_ids=torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.int64),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=0,
        )
        answers.append(out[0, len(row) :].tolist())
    return answers


def plain(base: Path, adapter: Path) -> Any:
    """The base with PEFT's own layers over it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.generation_config = GenerationConfig()
    return PeftModel.from_pretrained(model, adapter).eval()


def nothing(*_: Any) -> None:
    pass


CASES = [*((base, "lora") for base in BASES if base != "gemma2"), *(("llama", adapter) for adapter in ADAPTERS)]


@pytest.mark.parametrize(("base", "adapter"), dict.fromkeys(CASES))
def test_answers_are_those_of_generate(made, monkeypatch, base: str, adapter: str) -> None:
    """With fewer slots than rows, so that slots are used again; the adapter on, then off."""
    monkeypatch.setitem(slot_room.MOST_SLOTS, "cpu", 4)
    folders, rows = made(base, adapter), prompts()
    ours, theirs = generate.load(*folders, FLOAT32), plain(*folders)
    tuned = Engine(ours).answer(rows, STOP, 9, 40, nothing, nothing)
    assert tuned == plain_answers(theirs, rows, 9)
    with ours.disable_adapter(), theirs.disable_adapter():
        alone = Engine(ours).answer(rows, STOP, 9, 40, nothing, nothing)
        assert alone == plain_answers(theirs, rows, 9)
    assert alone != tuned and {len(ids) for ids in tuned} > {9}  # some ended early, some never


def test_another_adapter_takes_the_place_of_the_first(made) -> None:
    """On the base in memory, whatever kinds the two are of; nothing of the first is left."""
    rows, base = prompts(), made("llama")[0]
    want = {kind: plain_answers(plain(base, made("llama", kind)[1]), rows, 5) for kind in ADAPTERS}
    model = generate.load(base, made("llama", "whole")[1], FLOAT32)
    for kind in ("dora", "rslora", "whole", "lora"):
        model = generate.exchange(model, made("llama", kind)[1], FLOAT32)
        assert Engine(model).answer(rows, STOP, 5, 0, nothing, nothing) == want[kind], kind
    with model.disable_adapter():
        alone = Engine(model).answer(rows, STOP, 5, 0, nothing, nothing)
    assert alone == plain_answers(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), rows, 5)
    assert len({str(answers) for answers in (*want.values(), alone)}) == 5


@pytest.mark.parametrize("max_new_tokens", [1, 2])
def test_one_new_token(made, max_new_tokens: int) -> None:
    folders, rows = made("llama"), prompts()
    got = Engine(generate.load(*folders, FLOAT32)).answer(rows, STOP, max_new_tokens, 0, nothing, nothing)
    assert got == plain_answers(plain(*folders), rows, max_new_tokens)


def test_slots_and_passes_change_no_answer(made, monkeypatch) -> None:
    rows = prompts()
    model = generate.load(*made("qwen3"), FLOAT32)
    ours = Engine(model)
    want = ours.answer(rows, STOP, 9, 0, nothing, nothing)
    for slots, tokens, look in ((1, 0, 1), (3, 1, 8), (3, 10**6, 1), (11, 30, 8)):
        monkeypatch.setitem(slot_room.MOST_SLOTS, "cpu", slots)
        monkeypatch.setitem(slot_room._LOOK_EVERY, "cpu", look)  # as on a GPU, where ended rows go on until it is seen
        assert ours.answer(rows, STOP, 9, tokens, nothing, nothing) == want
    firsts = [ids[0] for ids in want]
    assert ours.answer(rows, firsts, 9, 0, nothing, nothing) == [[first] for first in firsts]  # all end at once
    assert ours.answer([], STOP, 9, 0, nothing, nothing) == []


@pytest.mark.parametrize("base", ["mistral", "gemma3"])
def test_rows_gathered_side_by_side_give_the_same(made, monkeypatch, base: str) -> None:
    rows = prompts()
    model = generate.load(*made(base), FLOAT32)
    want = Engine(model).answer(rows, STOP, 9, 0, nothing, nothing)
    monkeypatch.setitem(slot_room.HEADS_FIRST, "cpu", False)
    torch.use_deterministic_algorithms(True)  # memory that nobody has written is not a number then
    try:
        assert Engine(model).answer(rows, STOP, 9, 0, nothing, nothing) == want
    finally:
        torch.use_deterministic_algorithms(False)


class Full:
    """Slots whose passes fail above a number of tokens in the cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, places: int) -> None:
        self.tried: list[int] = []
        usual = engine.Slots.advance

        def advance(slots: engine.Slots, steps: int) -> None:
            self.tried.append(slots.places)
            if slots.places > places:
                raise torch.OutOfMemoryError("no room")
            usual(slots, steps)

        monkeypatch.setattr(engine.Slots, "advance", advance)


def test_out_of_memory_halves_the_slots_and_loses_nothing(made, monkeypatch) -> None:
    rows, said = prompts(), list[str]()
    model = generate.load(*made("llama"), FLOAT32)
    want = Engine(model).answer(rows, STOP, 9, 0, nothing, nothing)
    full = Full(monkeypatch, 120)
    assert Engine(model).answer(rows, STOP, 9, 0, said.append, nothing) == want
    assert full.tried[0] >= sum(LENGTHS) + 9 * len(rows) > 120 >= full.tried[-1]
    assert said[0].startswith(f"out of memory: a cache of {full.tried[0] // 2} tokens, 1,024 prompt tokens a pass")


def test_answers_from_before_a_shortage_are_kept(made, monkeypatch) -> None:
    rows = prompts()
    model = generate.load(*made("llama"), FLOAT32)
    want = Engine(model).answer(rows, STOP, 9, 0, nothing, nothing)
    seen: list[int] = []
    usual = engine.Slots.fill

    def fill(slots: engine.Slots) -> None:
        usual(slots)
        seen.extend(slots.rows.values())
        if len(seen) > len(rows) and slots.count == 4:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setitem(slot_room.MOST_SLOTS, "cpu", 4)
    monkeypatch.setattr(engine.Slots, "fill", fill)
    first: list[int] = []
    report = lambda line: first.append(len(seen)) if line.startswith("out of memory") else None  # noqa: E731
    assert Engine(model).answer(rows, STOP, 9, 0, report, nothing) == want
    again = set(seen[first[0] :])
    assert len(again) < len(rows)


def test_a_row_that_does_not_fit_alone_is_named(made, monkeypatch) -> None:
    model = generate.load(*made("llama"), FLOAT32)
    Full(monkeypatch, 70)
    with pytest.raises(UserError, match="a prompt of 64 tokens with up to 9 new ones"):
        Engine(model).answer(prompts(), STOP, 9, 0, nothing, nothing)


def test_other_models_are_answered_by_generate_and_it_is_said(made) -> None:
    folders, rows, said = made("gemma2"), prompts(), list[str]()
    want = [generate.until(ids, STOP) for ids in plain_answers(plain(*folders), rows, 5)]
    assert generate.answer(generate.load(*folders, FLOAT32), rows, STOP, 5, 0, said.append) == want
    assert "answered by transformers' generate" in said[0] and "caps its attention logits" in said[0]


def test_a_model_that_computes_something_else_token_by_token_is_found_out(made, monkeypatch) -> None:
    """Its layers are like Llama's, but for what it keeps from token to token."""
    model = generate.load(*made("llama"), FLOAT32)
    usual = cached.Decode.attend
    monkeypatch.setattr(cached.Decode, "attend", lambda *arguments: usual(*arguments).flip(2))
    with pytest.raises(Unsupported, match="something else with one token at a time"):
        Engine(model)


class Graphs:
    """Stands in for a GPU's graphs: what is started inside `graph` is done at every replay and not before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.capturing: Any = None
        usual = engine.Slots.step

        def step(slots: engine.Slots, lanes: torch.Tensor) -> None:
            if self.capturing is None:
                usual(slots, lanes)
            else:
                self.sizes.append(len(lanes))
                self.capturing.replay = lambda: usual(slots, lanes)

        @contextlib.contextmanager
        def graph(graph: Any, pool: Any) -> Iterator[None]:
            self.capturing = graph
            yield
            self.capturing = None

        monkeypatch.setattr(engine.Slots, "step", step)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(pool=lambda: None))
        stream = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())


def test_captured_passes_change_no_answer(made, monkeypatch) -> None:
    """They are of a few sizes only: the smallest that holds the live rows, filled up with no row's slot."""
    rows = prompts()
    ours = Engine(generate.load(*made("llama"), FLOAT32))
    want = ours.answer(rows, STOP, 20, 0, nothing, nothing)
    monkeypatch.setitem(slot_room._LOOK_EVERY, "cpu", 4)
    monkeypatch.setitem(slot_room.MOST_SLOTS, "cpu", 8)
    monkeypatch.setattr(slot_room, "_FEWEST_CAPTURED", 2)
    graphs, ours.graphs = Graphs(monkeypatch), True
    assert ours.answer(rows, STOP, 20, 0, nothing, nothing) == want
    assert graphs.sizes[0] == 8 and len(graphs.sizes) > 1 and set(graphs.sizes) <= {8, 4, 2}
    assert len(set(graphs.sizes)) == len(graphs.sizes)


def test_passes_that_cannot_be_captured_are_not(made, monkeypatch) -> None:
    rows, said = prompts(), list[str]()
    ours = Engine(generate.load(*made("llama"), FLOAT32))
    want = ours.answer(rows, STOP, 20, 0, nothing, nothing)
    Graphs(monkeypatch)
    ours.graphs = True

    def graph(graph: Any, pool: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    assert ours.answer(rows, STOP, 20, 0, said.append, nothing) == want
    assert said == ["kernels are started one by one, which is slower: operation not permitted when stream is capturing"]


def test_torch_takes_what_flash_attention_is_given() -> None:
    """Its operation is not public; what it returns is checked on a GPU alone (benchmarks/eval_throughput.py)."""
    decode = cached.Decode(cached.Cache(20), *torch.tensor([[0, 9], [9, 11], [4, 11]]), 11)
    for name in ("each", "offsets", "used"):
        assert getattr(decode, name).dtype == torch.int32
        setattr(decode, name, getattr(decode, name).to("meta"))
    q = torch.empty(2, 4, 16, dtype=torch.bfloat16, device="meta")
    keys = torch.empty(20, 2, 16, dtype=torch.bfloat16, device="meta")
    for window in (None, 7):
        assert decode._flash(q, keys, keys, 0.25, window).shape == q.shape
    arguments = {a.name for a in torch.ops.aten._flash_attention_forward.default._schema.arguments}
    assert {"cum_seq_k", "max_k", "seqused_k", "window_size_left"} <= arguments


def test_progress_is_said(made, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0.0)
    generate.answer(generate.load(*made("llama"), FLOAT32), prompts(), STOP, 9, 0, said.append)
    assert len(said) > 3 and all(" a second · " in line and " left" in line for line in said)
    assert said[-1].startswith("11/11 answers · ") and said[-1].endswith(" 0 s left")
