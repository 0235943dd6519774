"""bitsandbytes: the fields of 4-bit weights, the operator that expands them, and the re-packing on CPUs."""

from typing import Any

import bitsandbytes.functional as bnb
import bitsandbytes.nn.modules
import pytest
import torch
from bitsandbytes.nn import Linear4bit

from tasks.model.lora import _BLOCK, _dense

SHAPE = (128, 64)  # [out, in]
CPU = torch.device("cpu")


def linear(double_quant: bool = False, quant_type: str = "nf4") -> Any:
    """A layer in 4 bits, as transformers makes it, and the weight it was made from."""
    torch.manual_seed(0)
    layer = Linear4bit(
        SHAPE[1], SHAPE[0], False, torch.float32, compress_statistics=double_quant, quant_type=quant_type
    )
    weight = torch.randn(SHAPE)
    layer.load_state_dict({"weight": weight})
    return layer.to(CPU), weight


def test_weight_is_packed_values_with_a_quant_state() -> None:
    layer, _ = linear()
    assert layer.weight.dtype == torch.uint8 and layer.weight.shape == (SHAPE[0] * SHAPE[1] // 2, 1)
    assert layer.weight.quant_state.shape == torch.Size(SHAPE)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_quant_state_quant_type(quant_type: str) -> None:
    assert linear(quant_type=quant_type)[0].weight.quant_state.quant_type == quant_type


def test_quant_state_blocksize() -> None:
    state = linear()[0].weight.quant_state
    assert state.blocksize == _BLOCK
    assert state.absmax.numel() == SHAPE[0] * SHAPE[1] // _BLOCK


def test_quant_state_absmax_is_the_largest_value_of_each_block() -> None:
    layer, weight = linear()
    torch.testing.assert_close(layer.weight.quant_state.absmax, weight.reshape(-1, _BLOCK).abs().amax(1))


def test_quant_state_nested_state2_offset_give_absmax() -> None:
    plain, _ = linear()
    nested, _ = linear(double_quant=True)
    state = nested.weight.quant_state
    assert state.nested is True and plain.weight.quant_state.nested is False
    absmax = bnb.dequantize_blockwise(state.absmax, state.state2).float() + state.offset
    torch.testing.assert_close(absmax, plain.weight.quant_state.absmax, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dequantize_4bit_operator(quant_type: str, dtype: torch.dtype) -> None:
    layer, weight = linear(quant_type=quant_type)
    state = layer.weight.quant_state
    got = _dense(layer.weight.data, state.absmax, quant_type, SHAPE, torch.empty(0, dtype=dtype))
    assert got.dtype == dtype and got.shape == SHAPE
    torch.testing.assert_close(got.float(), bnb.dequantize_4bit(layer.weight.data, state).float(), rtol=0.01, atol=0)
    assert (got.float() - weight).abs().mean() < 0.2


def test_dequantize_4bit_operator_takes_a_view_of_stacked_weights() -> None:
    """Siblings are one tensor of packed values, each of them a view of it."""
    layer, _ = linear()
    state, stacked = layer.weight.quant_state, torch.cat([layer.weight.data, layer.weight.data])
    layer.weight.data = stacked[len(layer.weight) :]
    assert layer.weight.quant_state is state
    both = _dense(stacked, torch.cat([state.absmax] * 2), "nf4", (2 * SHAPE[0], SHAPE[1]), torch.empty(0))
    one = _dense(layer.weight.data, state.absmax, "nf4", SHAPE, torch.empty(0))
    assert torch.equal(both, torch.cat([one, one]))


def test_quant_state_to_moves_it_in_place() -> None:
    """Sharding moves what a layer's own weight no longer holds."""
    state = linear(double_quant=True)[0].weight.quant_state
    state.to("meta")
    assert {t.device.type for t in (state.absmax, state.offset, state.code, state.state2.absmax)} == {"meta"}


def test_support_avx512bf16_for_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched off, a forward in eval mode leaves the weights as they are; else it re-packs them for inference."""
    packed: list[torch.Size] = []

    def pack(weight: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        packed.append(weight.shape)
        return weight, state

    monkeypatch.setattr(bitsandbytes.nn.modules, "_convert_weight_packed_for_cpu", pack)
    layer, _ = linear()
    layer.eval()
    assert "support_avx512bf16_for_cpu" in vars(layer)
    layer.support_avx512bf16_for_cpu = True
    layer(torch.ones(1, SHAPE[1]))
    assert len(packed) == 1
    layer.support_avx512bf16_for_cpu = False
    layer(torch.ones(1, SHAPE[1]))
    assert len(packed) == 1
