"""Every architecture of transformers that can be made tiny is computed as transformers computes it, or refused."""

import copy

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tasks.errors import UserError
from tasks.model import attention
from tasks.model.fused_loss import use_fused_loss
from tasks.training.packing import collate, flatten
from tests.architectures import tiny
from tests.training.conftest import make_token_rows


@torch.no_grad()
def plain_loss(model, rows):
    total = 0.0
    for row in rows:
        logits = model(input_ids=row.input_ids[None], use_cache=False).logits[0].float()
        total += torch.nn.functional.cross_entropy(logits[:-1], row.labels[1:], reduction="sum").item()
    return total


@torch.no_grad()
def packed_loss(model, rows):
    attention.check_supported(model.config)
    packed = AutoModelForCausalLM.from_config(
        copy.deepcopy(model.config), dtype=torch.float32, attn_implementation=attention.NAME
    ).eval()
    packed.load_state_dict(model.state_dict())
    use_fused_loss(packed)
    return packed(**vars(flatten(rows, torch.device("cpu")))).item()


def test_no_base_is_trained_on_wrong_numbers():
    rows, right, refused, wrong = collate(make_token_rows(3))["rows"].rows, [], [], {}
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if (model := tiny(name)) is None:
            continue
        try:
            want = plain_loss(model, rows)
        except Exception:  # it takes more than ids
            continue
        try:
            got = packed_loss(model, rows)
        except UserError:
            refused.append(name)
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}"
        else:
            (right.append(name) if abs(got / want - 1) < 1e-4 else wrong.update({name: (got, want)}))
    assert not wrong
    assert {"llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "olmo2"} <= set(right)
    assert {"gpt_oss", "bloom", "bert", "mamba"} <= set(refused)
