"""PEFT: what a LoRA layer is made of, and how the fused layers take its place."""

from typing import Any

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from tasks.model.lora import FusedLinear, FusedLinear4bit, fuse

WIDTH = 64
X = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)


class Parts(torch.nn.Module):
    """Two layers, the second one with a bias."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.first, self.second = kind(WIDTH, WIDTH, bias=False), kind(WIDTH, WIDTH)
        self.head = torch.nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def adapted(kind: Any = torch.nn.Linear, **options: Any) -> Any:
    """An adapter whose matrices are both random."""
    torch.manual_seed(0)
    base: Any = Parts(kind).to("cpu")
    base.is_loaded_in_4bit = kind is four_bits  # as transformers marks it
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=["first", "second"], **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_magnitude" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return model.eval()


def four_bits(*sizes: int, bias: bool = True) -> Any:
    layer = bitsandbytes.nn.Linear4bit(*sizes, bias, torch.float32, compress_statistics=False, quant_type="nf4")
    layer.support_avx512bf16_for_cpu = False
    return layer


def test_lora_a_lora_b_scaling_give_the_output() -> None:
    layer = adapted().base_model.model.second
    assert isinstance(layer, BaseTunerLayer) and layer.scaling == {"default": 1.5}
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape == (4, WIDTH) and b.shape == (WIDTH, 4) and (layer.in_features, layer.out_features) == (WIDTH, WIDTH)
    torch.testing.assert_close(layer(X), layer.get_base_layer()(X) + 1.5 * (X @ a.T) @ b.T)


def test_lora_magnitude_vector_scales_the_rows_of_the_weight() -> None:
    layer = adapted(use_dora=True).base_model.model.first
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    whole = layer.get_base_layer().weight + 1.5 * b @ a
    magnitude = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(layer(X), X @ (whole * (magnitude / whole.norm(dim=1))[:, None]).T)
    assert not adapted().base_model.model.first.lora_magnitude_vector


def test_lora_dropout_is_the_identity_where_there_is_none() -> None:
    assert isinstance(adapted().base_model.model.first.lora_dropout["default"], torch.nn.Identity)
    dropout = adapted(lora_dropout=0.5).base_model.model.first.lora_dropout["default"]
    assert isinstance(dropout, torch.nn.Dropout) and dropout.p == 0.5


def test_disable_adapters_follows_the_context() -> None:
    model = adapted()
    layer = model.base_model.model.first
    assert layer.disable_adapters is False
    with model.disable_adapter():
        assert layer.disable_adapters is True
    assert layer.disable_adapters is False


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    "kind, theirs, ours", [(torch.nn.Linear, PeftLinear, FusedLinear), (four_bits, PeftLinear4bit, FusedLinear4bit)]
)
def test_class_of_a_layer_can_be_the_fused_one(kind: Any, theirs: type, ours: type, dora: bool) -> None:
    """Their very class, so that it is replaced; with the same output, names and saved weights afterwards."""
    model = adapted(kind, use_dora=dora)
    layer = model.base_model.model.first
    assert type(layer) is theirs
    with torch.no_grad():
        want, base = model(X), layer.get_base_layer()(X)
        saved = {name: weight.clone() for name, weight in get_peft_model_state_dict(model).items()}
        fuse(model, torch.float32)
        assert type(layer) is ours
        torch.testing.assert_close(model(X), want, rtol=1e-4, atol=1e-4)
        with model.disable_adapter():
            torch.testing.assert_close(layer(X), base, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(get_peft_model_state_dict(model), saved, rtol=0, atol=0)
    del layer.group
    with pytest.raises(AttributeError, match="group"):  # it was the fused forward that ran
        model(X)


def test_names_of_trained_parameters_hold_lora() -> None:
    model = adapted(use_dora=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name} and len(trained) == 6
    assert len([name for name in trained if "lora_magnitude_vector" in name]) == 2


def test_modules_to_save_is_a_trained_copy_beside_the_original_module() -> None:
    model = adapted(modules_to_save=["head"])
    wrapper = model.base_model.model.head
    assert isinstance(wrapper, ModulesToSaveWrapper)
    copy = wrapper.modules_to_save["default"]
    assert copy.weight.requires_grad and copy.weight is not wrapper.original_module.weight
    names = [name for name, module in model.named_modules() if module is wrapper.original_module]
    assert len(names) == 1 and "original_module" in names[0]
    torch.nn.init.ones_(copy.weight)
    torch.testing.assert_close(wrapper(X)[:, 0], X.sum(1) + copy.bias[0])


def test_autocast_adapter_dtype_keeps_a_new_adapter_in_float32(tmp_path: Any) -> None:
    base = Parts(torch.nn.Linear).to(torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["first"]))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model.save_pretrained(tmp_path)
    base = Parts(torch.nn.Linear).to(torch.bfloat16)
    loaded: Any = PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False)
    assert loaded.peft_config["default"].use_dora is False
    torch.testing.assert_close(get_peft_model_state_dict(loaded), get_peft_model_state_dict(model), check_dtype=False)


def test_base_layer_may_hold_more_and_it_is_not_saved() -> None:
    """Sharding keeps a group's frozen weights there."""
    model = adapted()
    before = get_peft_model_state_dict(model).keys()
    model.base_model.model.first.get_base_layer().frozen = torch.nn.Linear(2, 2)
    assert get_peft_model_state_dict(model).keys() == before
