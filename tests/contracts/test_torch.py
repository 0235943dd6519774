"""torch: operators and error texts that are known by name, and the compiler's settings."""

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._inductor.config
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.fsdp import fully_shard
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers import LlamaForCausalLM

from tasks.model import attention
from tasks.model.activation_checkpointing import _KEPT, _balanced, decoder_layers
from tasks.model.collectives import _GLOO_CONNECTION
from tasks.model.lora import fuse

ON_GPUS = {"torch_attn::_varlen_attn"}
OF_BIASES = {"aten::addmm"}  # of a layer that is not adapted


class Operators(TorchDispatchMode):
    """Counts the operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[op._schema.name] += 1
        return op(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", sorted(_KEPT))
def test_operator_is_in_the_dispatcher(name: str) -> None:
    space, _, short = name.partition("::")
    op = getattr(getattr(torch.ops, space), short).default
    assert isinstance(op, torch._ops.OpOverload) and op._schema.name == name


def test_kept_operators_are_what_a_fused_layer_calls(llama: Callable[[], LlamaForCausalLM]) -> None:
    base: Any = llama()
    base.set_attn_implementation(attention.NAME)
    base.model.layers[0].self_attn.o_proj.bias = torch.nn.Parameter(torch.zeros(64))
    linear = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=4, target_modules=linear))
    fuse(model, torch.float32)
    ids, boundaries = torch.arange(3, 13)[None], torch.tensor([0, 10], dtype=torch.int32)
    with Operators() as operators, torch.no_grad():
        base.model(input_ids=ids, use_cache=False, cu_seq_lens_q=boundaries, max_length_q=10)
    assert _KEPT - operators.names.keys() == ON_GPUS
    assert operators.names["aten::addmm"] == 1
    assert operators.names["qlora_flow::lora_linear"] == 2 * 3  # query, key and value; gate and up; down
    assert operators.names["aten::_scaled_dot_product_flash_attention_for_cpu"] == 2
    products = {name for name in operators.names if "mm" in name or "attention" in name or "linear" in name}
    assert products <= _KEPT, "a product is computed by an operator that is not kept"


def packed(**shape: Any) -> tuple[torch.Tensor, ...]:
    q = torch.empty(10, 4, 16, dtype=torch.bfloat16, device="meta")
    k = torch.empty(10, 2, 16, dtype=torch.bfloat16, device="meta")
    return q, k, k, torch.empty(3, dtype=torch.int32, device="meta")


def test_varlen_attn_calls_the_operator_that_is_kept() -> None:
    q, k, v, boundaries = packed()
    with Operators() as operators:
        out: Any = varlen_attn(
            q, k, v, boundaries, boundaries, 6, 6, scale=0.25, window_size=(3, 0), **attention._GROUPED
        )
    assert operators.names.keys() >= ON_GPUS and out.shape == q.shape


def test_flash_attention_forward_takes_seqused_k() -> None:
    """Positions and names of the arguments that a decoding pass gives."""
    q, k, v, offsets = packed()
    out = torch.ops.aten._flash_attention_forward(
        q, k, v, offsets, offsets, 1, 6, 0.0, False, False,
        scale=0.25, window_size_left=3, window_size_right=0, seqused_k=offsets[:-1],
    )  # fmt: skip
    assert out[0].shape == q.shape
    arguments = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    assert arguments[:10] == [
        *("query", "key", "value", "cum_seq_q", "cum_seq_k"),
        *("max_q", "max_k", "dropout_p", "is_causal", "return_debug_mask"),
    ]


def test_op_overload_schema_name_is_what_a_checkpoint_policy_sees() -> None:
    seen = []

    def policy(context: Any, op: Any, *arguments: Any, **named: Any) -> Any:
        assert isinstance(op, torch._ops.OpOverload)
        seen.append(op._schema.name)
        return _balanced(context, op, *arguments, **named)

    x = torch.ones(4, 4, requires_grad=True)
    work = lambda x: torch.mm(x, x).sin()  # noqa: E731
    context = functools.partial(create_selective_checkpoint_contexts, policy)
    out = checkpoint(work, x, use_reentrant=False, context_fn=context)
    with Operators() as operators:
        out.sum().backward()
    assert "aten::mm" in seen and "aten::sin" in seen
    assert operators.names["aten::mm"] == 2  # of the gradient; the forward's is kept
    assert "aten::sin" not in operators.names  # whose input is kept, so nothing needs it again


def test_foreach_copy_rounds_to_the_copys_dtype() -> None:
    copies = [torch.zeros(2, dtype=torch.bfloat16), torch.zeros(3, 4)[:, 1:2]]
    weights = [torch.tensor([1.0, 1.0001]), torch.arange(3.0)[:, None]]
    torch._foreach_copy_(copies, weights)
    torch._foreach_mul_(copies, [2.0, 0.5])
    assert copies[0].tolist() == [2.0, 2.0] and copies[1].flatten().tolist() == [0.0, 0.5, 1.0]


def test_dynamo_exception_is_the_base_of_what_a_failed_compilation_raises() -> None:
    def fails(graph: Any, inputs: Any) -> Any:
        raise ValueError("no code for this")

    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        torch.compile(lambda x: x + 1, backend=fails)(torch.ones(2))
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        torch.compile(lambda x: print(x), backend="eager", fullgraph=True)(torch.ones(2))
    assert issubclass(torch._inductor.exc.InductorError, torch._dynamo.exc.TorchDynamoException)


def test_set_stance_force_eager_runs_a_compiled_layer_as_it_is() -> None:
    layer, ran = HandsOver(), list[int]()
    layer.compile(backend=lambda graph, inputs: lambda *given: ran.append(1) or graph(*given))
    layer(torch.ones(2))
    assert len(ran) == 1
    try:
        torch.compiler.set_stance("force_eager")
        layer(torch.ones(2))
    finally:
        torch.compiler.set_stance("default")
    assert len(ran) == 1


def test_compiled_call_impl_tells_a_compiled_layer() -> None:
    layer = torch.nn.Linear(2, 2)
    assert layer._compiled_call_impl is None
    layer.compile(backend="eager")
    assert layer._compiled_call_impl is not None


class HandsOver(torch.nn.Module):
    """Leaves something for its sibling, as fused layers do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.pending = x.sin()
        return self.pending.cos()


@pytest.mark.parametrize("skips", [False, True])
def test_skip_fwd_side_effects_in_bwd_under_checkpoint(skips: bool) -> None:
    module = HandsOver()
    work = torch.compile(lambda x: checkpoint(module, x, use_reentrant=False), backend="aot_eager", fullgraph=True)
    x = torch.ones(3, requires_grad=True)
    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=skips):
        if not skips:
            with pytest.raises(torch._dynamo.exc.TorchDynamoException):
                work(x)
            return
        work(x).sum().backward()
    torch.testing.assert_close(x.grad, -(x.sin().sin() * x.cos()).detach())
    torch.testing.assert_close(module.pending, x.sin())


@pytest.mark.parametrize("specialized", [False, True])
def test_specialize_float_makes_a_norms_epsilon_a_constant(specialized: bool) -> None:
    inputs: list[int] = []

    def count(graph: Any, given: Any) -> Any:
        inputs.append(len([n for n in graph.graph.nodes if n.op == "placeholder"]))
        return graph

    with torch._dynamo.config.patch(specialize_float=specialized):
        torch.compile(lambda x, epsilon: x + epsilon, backend=count, dynamic=True)(torch.ones(3), 1e-5)
    size = 1  # of x, which is dynamic
    assert inputs == [1 + size + (not specialized)]


@pytest.mark.parametrize("fallback", [False, True])
def test_fallback_random_draws_eager_numbers(fallback: bool) -> None:
    drop, x = lambda x: torch.nn.functional.dropout(x, 0.5) * 2, torch.ones(64)
    torch.manual_seed(1)
    want = drop(x)
    with torch._inductor.config.patch(fallback_random=fallback):
        torch.manual_seed(1)
        got = torch.compile(drop, backend="aot_eager_decomp_partition")(x)  # Inductor's, without its code
    assert torch.equal(got, want) is fallback


@pytest.mark.parametrize("has_hash", [False, True])
def test_cache_hash_of_a_context_lets_compiled_code_be_kept(has_hash: bool) -> None:
    context: Any = functools.partial(create_selective_checkpoint_contexts, _balanced)
    if has_hash:
        context.cache_hash = "balanced"
    from torch._dynamo.utils import counters

    counters.clear()
    x = torch.ones(8, 8, requires_grad=True)
    torch.compile(lambda x: checkpoint(lambda x: (x @ x).sin(), x, use_reentrant=False, context_fn=context))(x)
    counted = counters["aot_autograd"]
    assert (counted["autograd_cache_bypass"] == 0) is has_hash, counted
    assert (counted["autograd_cache_miss"] + counted["autograd_cache_hit"] > 0) is has_hash, counted


@pytest.mark.usefixtures("process_group")
def test_fully_shard_makes_a_subclass_so_that_layers_are_found_by_name(llama: Callable[[], LlamaForCausalLM]) -> None:
    model: Any = llama()
    layers = list(model.model.layers)
    names = {type(layer).__name__ for layer in layers}
    for layer in layers:
        fully_shard(layer, ignored_params=set(layer.parameters()))
    assert decoder_layers(model) == layers
    assert {type(layer).__name__ for layer in layers} != names


def test_gloo_says_that_a_connection_broke_in_its_own_words() -> None:
    """A process that is gone is told from a fault of ours by this text."""
    store = dist.HashStore()

    def join(rank: int) -> Any:
        return dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=30))

    with ThreadPoolExecutor(2) as threads:
        groups = [*threads.map(join, range(2))]
        del groups[1]
        with pytest.raises(RuntimeError) as failure:
            groups[0].allreduce([torch.ones(1)]).wait()
    assert _GLOO_CONNECTION.match(str(failure.value)), failure.value


def test_varlen_attn_has_the_arguments_that_packing_gives() -> None:
    assert list(inspect.signature(varlen_attn).parameters)[:7] == [
        *("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
    ]


def test_torchelastic_run_id_is_one_name_for_all_processes(tmp_path: Path) -> None:
    """They write a checkpoint together, in a folder named after it."""
    write = f"""
import os, pathlib
rank = int(os.environ["LOCAL_RANK"])
names = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
pathlib.Path({str(tmp_path)!r}, str(rank)).write_text(" ".join(os.environ[name] for name in names))
while not all(pathlib.Path({str(tmp_path)!r}, str(other)).exists() for other in range(2)):
    pass
os._exit(7 if rank == 1 else 0)
"""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="one-run",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(tmp_path / "logs")),
    )
    with pytest.raises(ChildFailedError) as error:
        elastic_launch(config, sys.executable)("-c", write)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["one-run 0 2 2", "one-run 1 2 2"]
    assert {(failure.local_rank, failure.exitcode) for failure in error.value.failures.values()} == {(1, 7)}
