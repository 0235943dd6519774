"""Held-out loss: the mean negative log-likelihood of each row's target tokens, from the hidden states of a pass."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from tasks.model.fused_loss import LOGIT_BYTES, logit_scale
from tasks.training.packing import MicroBatch, Row


def mean_losses(base: PreTrainedModel, hidden: torch.Tensor, batch: MicroBatch, rows: Sequence[Row]) -> list[float]:
    """The mean over each row's target tokens, in nats.

    Args:
        hidden: last hidden states of the packed rows, `[tokens, width]`.
    """
    config = base.config.get_text_config()
    hidden, targets = hidden[batch.target_positions.to(hidden.device)], batch.targets.to(hidden.device)
    head: Any = base.get_output_embeddings()
    scale = logit_scale(config)
    softcap = getattr(config, "final_logit_softcapping", None)
    at_once = max(1, LOGIT_BYTES[hidden.device.type] // (4 * config.vocab_size))
    parts = []
    for some, target in zip(hidden.split(at_once), targets.split(at_once), strict=True):
        logits = head(some).float() * scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        parts.append(F.cross_entropy(logits, target, reduction="none"))
    each = torch.cat(parts).double().cpu().split([row.targets for row in rows])
    return [float(row.mean()) for row in each]
