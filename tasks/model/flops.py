"""How much arithmetic a trained token is, and how much of it a GPU can do."""

import time

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn


def per_token(model: nn.Module) -> int:
    """Floating-point operations of one trained token: products of the base's layers, forward and for the activation
    gradient, and for its own where the head is trained. The head counts in full; adapters, attention and recomputation
    do not (the usual QLoRA convention)."""
    products = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Linear4bit) and "lora_" not in name and "original_module" not in name
    ]
    return sum((6 if m.weight.requires_grad else 4) * m.in_features * m.out_features for m in products)


def utilisation(model: nn.Module, device: torch.device, tokens_per_second: float) -> float | None:
    """Share of the GPU's matmul rate, measured here, that the frozen layers' products reach; None on a CPU."""
    if device.type != "cuda":
        return None
    return tokens_per_second * per_token(model) / measured_rate(device)


def measured_rate(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """Operations per second of a large bfloat16 matrix product on this device."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize(device)
    return 2 * size**3 * repeats / (time.perf_counter() - began)
