"""A tiny random model of every architecture of transformers that takes these shapes."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

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
