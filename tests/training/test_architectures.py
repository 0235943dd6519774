"""Every architecture of transformers that can be made tiny is computed as transformers computes it, or refused."""

import copy

import torch
from conftest import make_rows
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tasks.errors import UserError
from tasks.model import attention
from tasks.training.head import train_on_packs
from tasks.training.packing import collate, flatten

SHAPE = {
    **dict.fromkeys(("bos_token_id", "num_heads", "n_group", "topk_group", "n_groups", "first_k_dense_replace"), 1),
    **dict.fromkeys(("num_hidden_layers", "num_key_value_heads", "n_layer", "n_layers", "eos_token_id"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "mlp_hidden_size"), 128),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 256),
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout"), 0.0),
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "pad_token_id": 0,
    "vocab_size": 97,
}
LARGEST = 30_000_000  # parameters


def tiny(name):
    """A random model with eager attention, or None where its configuration takes more than these shapes."""
    try:
        kind = CONFIG_MAPPING[name]
        default = kind()
        config = kind(**{field: value for field, value in SHAPE.items() if hasattr(default, field)})
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            return None
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.1)
        return model
    except Exception:
        return None


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
    train_on_packs(packed)
    return packed(**vars(flatten(rows, torch.device("cpu")))).item()


def test_no_base_is_trained_on_wrong_numbers():
    rows, right, refused, wrong = collate(make_rows(3))["rows"].rows, [], [], {}
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
