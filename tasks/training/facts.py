"""What the training stage notes."""

from tasks.store.facts import Facts


class TrainingFacts(Facts):
    """What the training stage notes in its manifest, and in `training.json`.

    Args:
        learnt_tokens: target tokens, those that carry loss.
        tokens_per_second: without the first step of every attempt.
        speed: what was kept for the backward pass: fast, balanced or lean.
        micro_batch_tokens: largest number of tokens in a forward pass.
        out_of_memory_halvings: how often that number was halved.
        model: folder of the base on this machine.
    """

    model: str
    steps: int
    tokens: int
    learnt_tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    loss_first: float
    loss_last: float
    resumed_from_step: int
    device: str
    speed: str
    micro_batch_tokens: int
    out_of_memory_halvings: int
    validation_rows: int | None = None
    validation_loss: float | None = None
    validation_loss_last: float | None = None
    best_step: int | None = None
    stopped_early: bool | None = None
