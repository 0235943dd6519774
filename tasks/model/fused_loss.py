"""The model's forward pass in training: packed rows in, summed loss out, logits for target tokens only.

With completion-only loss most positions have no target, so selecting hidden states before the head saves most of its
work. Loss and gradients are computed together in chunks: the gradient of the head's input, and of the head itself where
it is trained (modules_to_save.py). No `[tokens, vocabulary]` tensor outlives its chunk.
"""

import types
from typing import Any

import torch
from transformers import PreTrainedModel

LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}  # of a chunk's float32 logits: near the cache size; a small share


def use_fused_loss(model: PreTrainedModel, noise: float = 0.0) -> None:
    """Replace `model.forward` by one that takes a micro-batch's fields and returns the summed loss (float32, `[]`).

    It cannot be undone, so use it in a process that ends after training.

    Args:
        noise: alpha of NEFTune (arXiv 2310.05914): uniform noise on a row's embeddings in training, its bound
            alpha / sqrt(length · width).
    """
    config = model.config.get_text_config()
    backbone = model.base_model
    scale, softcap = logit_scale(config), getattr(config, "final_logit_softcapping", None)

    def forward(
        self: PreTrainedModel,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        boundaries: torch.Tensor,
        longest: int,
        target_positions: torch.Tensor,
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
        ).last_hidden_state[0]
        head = self.get_output_embeddings()
        return _FusedLoss.apply(hidden[target_positions], head.weight, head.bias, targets, scale, softcap)

    model.forward = types.MethodType(forward, model)


def _noisy(embedded: torch.Tensor, lengths: torch.Tensor, alpha: float) -> torch.Tensor:
    """Add NEFTune's noise to `[1, tokens, width]`; its bound follows each row's own length, not the micro-batch's."""
    bound = (alpha / (lengths * embedded.shape[-1]).sqrt()).repeat_interleave(lengths, output_size=embedded.shape[1])
    noise = (torch.rand_like(embedded, dtype=torch.float32) * 2 - 1) * bound[None, :, None]
    return embedded + noise.to(embedded.dtype)


def logit_scale(config: Any) -> float:
    """The factor by which an architecture multiplies its logits (Cohere, Granite)."""
    if (value := getattr(config, "logit_scale", None)) is not None:
        return float(value)
    divisor = getattr(config, "logits_scaling", None)
    return 1.0 if divisor is None else 1.0 / float(divisor)


class _FusedLoss(torch.autograd.Function):
    """Summed cross-entropy of the head, with gradients for its input and for the weight and bias that are trained."""

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
        wanted, *own = ctx.needs_input_grad[:3]  # none in a validation
        d_weight = torch.zeros_like(weight) if wanted and own[0] else None
        d_bias = torch.zeros_like(bias) if wanted and own[1] and bias is not None else None
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
            if not wanted:
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
        # in float32: a factor of 1 / tokens rounded to bfloat16 would bias every gradient
        factor = grad_output.float()
        own = [None if g is None else g.mul_(factor) for g in ctx.own]
        return (gradient * factor).to(gradient.dtype), *own, None, None, None
