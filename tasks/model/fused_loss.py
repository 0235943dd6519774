"""The model's forward pass in training: packed rows in, summed loss out, logits only where something is learnt.

With completion-only loss most positions carry no label, so gathering the hidden states before the head saves most of
its work. Its gradients are computed together with the loss, chunk by chunk, and no `[tokens, vocabulary]` tensor
outlives its chunk: that for its input, and where the head is trained as well (whole.py) its own.
"""

import types
from typing import Any

import torch
from transformers import PreTrainedModel

from tasks.model import last_layer

LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}  # of one chunk's float32 logits: near the cache, or a small share


def train_on_packs(model: PreTrainedModel, noise: float = 0.0) -> None:
    """Replace `model.forward` by one that takes a micro-batch's fields and returns the summed loss (float32, `[]`).

    The original forward is gone: this is for a process that trains and ends.

    Args:
        noise: alpha of NEFTune (arXiv 2310.05914): uniform noise on a row's embeddings in training, its bound
            alpha / sqrt(length · width).
    """
    config = model.config.get_text_config()
    backbone, gathered = model.base_model, last_layer.on_learnt_positions(model)
    scale, softcap = logit_scale(config), getattr(config, "final_logit_softcapping", None)

    def forward(
        self: PreTrainedModel,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        boundaries: torch.Tensor,
        longest: int,
        keep: torch.Tensor,
        targets: torch.Tensor,
        **_: Any,
    ) -> torch.Tensor:
        words = {"input_ids": input_ids}
        if noise and self.training:
            words = {"inputs_embeds": _noisy(self.get_input_embeddings()(input_ids), boundaries.diff(), noise)}
        hidden = backbone(
            **words,
            position_ids=position_ids,
            use_cache=False,
            cu_seq_lens_q=boundaries,
            cu_seq_lens_k=boundaries,
            max_length_q=longest,
            max_length_k=longest,
            **({"keep": keep} if gathered else {}),
        ).last_hidden_state[0]
        head = self.get_output_embeddings()
        return _HeadLoss.apply(hidden if gathered else hidden[keep], head.weight, head.bias, targets, scale, softcap)

    model.forward = types.MethodType(forward, model)


def _noisy(embedded: torch.Tensor, lengths: torch.Tensor, alpha: float) -> torch.Tensor:
    """NEFTune's noise on `[1, tokens, width]`; a row is noised by its own length, not that of the pack."""
    bound = (alpha / (lengths * embedded.shape[-1]).sqrt()).repeat_interleave(lengths, output_size=embedded.shape[1])
    noise = (torch.rand_like(embedded, dtype=torch.float32) * 2 - 1) * bound[None, :, None]
    return embedded + noise.to(embedded.dtype)


def logit_scale(config: Any) -> float:
    """What an architecture multiplies its logits by (Cohere, Granite)."""
    if (value := getattr(config, "logit_scale", None)) is not None:
        return float(value)
    divisor = getattr(config, "logits_scaling", None)
    return 1.0 if divisor is None else 1.0 / float(divisor)


class _HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of a head, with the gradients for its input and, where they are trained, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scale: float,
        softcap: float | None,
    ) -> torch.Tensor:
        learns, *own = ctx.needs_input_grad[:3]  # without gradients, in a validation, the input needs none
        d_weight = torch.zeros_like(weight) if learns and own[0] else None
        d_bias = torch.zeros_like(bias) if learns and own[1] and bias is not None else None
        weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        gradient = torch.empty_like(hidden)
        loss = hidden.new_zeros((), dtype=torch.float32)
        rows = max(1, LOGIT_BYTES[hidden.device.type] // (4 * weight.shape[0]))
        for x, target, out in zip(hidden.split(rows), targets.split(rows), gradient.split(rows), strict=True):
            logits = torch.nn.functional.linear(x, weight, bias).float()
            if scale != 1.0:
                logits.mul_(scale)
            if softcap is not None:
                capped = torch.tanh(logits / softcap)
                logits = capped * softcap
            normal = logits.logsumexp(1, keepdim=True)
            loss += normal.sum() - logits.gather(1, target[:, None]).sum()
            if not learns:
                continue
            probability = logits.sub_(normal).exp_()
            probability.scatter_add_(1, target[:, None], probability.new_full((len(target), 1), -1.0))
            if softcap is not None:
                probability.mul_(1 - capped.square())
            if scale != 1.0:
                probability.mul_(scale)
            if d_bias is not None:
                d_bias += probability.sum(0)
            probability = probability.to(weight.dtype)
            if d_weight is not None:
                d_weight += probability.t() @ x
            torch.mm(probability, weight, out=out)
        ctx.save_for_backward(gradient)
        ctx.own = d_weight, d_bias
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        # multiplied in float32: one over a step's tokens, rounded to bfloat16, would scale every gradient by it
        factor = grad_output.float()
        own = [None if g is None else g.mul_(factor) for g in ctx.own]
        return (gradient * factor).to(gradient.dtype), *own, None, None, None
