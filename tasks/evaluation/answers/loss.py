"""Held-out loss: the mean negative log-likelihood of each row's target tokens, from packed passes without padding.

Where answers are generated too, the engine reads prompts and targets in one pass and calls `mean_losses` alone.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import PreTrainedModel

from tasks.errors import UserError
from tasks.model.attention import NAME, check_supported
from tasks.model.fused_loss import LOGIT_BYTES, logit_scale
from tasks.tokenization.fill import best_fit
from tasks.training.packing import MicroBatch, Row, flatten

_PASS_TOKENS = {"cpu": 2048, "cuda": 16_384}  # more at once are hardly faster


@torch.inference_mode()
def losses(
    model: PeftModel, rows: Sequence[Row], report: Callable[[str], None], progress: Callable[[float, int], None]
) -> list[float]:
    """Of each row the mean over its learnt tokens, in nats; the adapter is on or off as the caller left it.

    Args:
        rows: each with at least one learnt token after its first.
        report: told when memory runs out.
        progress: told what share of the tokens are done, and how many rows.
    Raises:
        UserError: the memory does not suffice for one row, or the model's attention cannot be packed.
    """
    base = cast(PreTrainedModel, model.get_base_model())
    check_supported(base.config)
    usual = base.config._attn_implementation
    base.set_attn_implementation(NAME)
    try:
        return _losses(base, rows, report, progress)
    finally:
        base.set_attn_implementation(usual)


def _losses(
    base: PreTrainedModel, rows: Sequence[Row], report: Callable[[str], None], progress: Callable[[float, int], None]
) -> list[float]:
    found, lengths = [0.0] * len(rows), [len(row.input_ids) for row in rows]
    budget = _PASS_TOKENS[base.device.type]
    passes = _passes(range(len(rows)), lengths, budget)
    while passes:
        batch = passes[0]
        try:
            values = _mean_losses(base, [rows[i] for i in batch])
        except torch.OutOfMemoryError:
            values = None
        if values is None:  # outside the handler, whose traceback holds on to memory
            if len(batch) == 1:
                raise UserError(
                    f"evaluation: memory does not suffice for the loss of a row of {lengths[batch[0]]:,} tokens; lower "
                    "tokenization.max_length, or leave loss out of evaluation.metrics."
                )
            budget = sum(lengths[i] for i in batch) // 2
            passes = _passes(itertools.chain(*passes), lengths, budget)
            torch.cuda.empty_cache()
            report(f"out of memory: {budget:,} tokens of held-out rows at once from here on")
            continue
        for index, value in zip(batch, values, strict=True):
            found[index] = value
        passes = passes[1:]
        left = [i for batch in passes for i in batch]
        progress(1 - sum(lengths[i] for i in left) / sum(lengths), len(rows) - len(left))
    return found


def _passes(rows: Iterable[int], lengths: list[int], budget: int) -> list[list[int]]:
    """Numbers of rows, in groups of at most `budget` tokens; a longer row is alone."""
    ordered = sorted(rows, key=lambda row: (-lengths[row], row))
    return [[ordered[i] for i in group] for group in best_fit([lengths[row] for row in ordered], budget)]


def _mean_losses(base: PreTrainedModel, rows: list[Row]) -> list[float]:
    """One pass."""
    batch = flatten(rows, base.device)
    hidden = base.base_model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        cu_seq_lens_q=batch.boundaries,
        cu_seq_lens_k=batch.boundaries,
        max_length_q=batch.longest,
        max_length_k=batch.longest,
    ).last_hidden_state[0]
    return mean_losses(base, hidden, batch, rows)


def mean_losses(base: PreTrainedModel, hidden: torch.Tensor, batch: MicroBatch, rows: Sequence[Row]) -> list[float]:
    """Of each row the mean over its learnt tokens, in nats.

    Args:
        hidden: last hidden states of the pass, `[tokens, width]`.
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
