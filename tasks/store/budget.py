"""How many rows a run may lose before it is wrong to go on."""

from tasks.errors import UserError
from tasks.store.artifact import ArtifactRef


def check_losses(stages: list[ArtifactRef], budget: float) -> None:
    """Compare the rows lost in all data stages with the rows the source had.

    Raises:
        UserError: more than the budget (a fraction of 1) is lost; the first five are named.
    """
    infos = [stage.info for stage in stages]
    lost = sum(info["lost"] for info in infos)
    total = infos[0]["rows"] + infos[0]["lost"]
    if lost > budget * total:
        first = "; ".join([row for info in infos for row in info["first_lost"]][:5])
        ledgers = [
            str(stage.path / "ledger.parquet") for stage, info in zip(stages, infos, strict=True) if info["lost"]
        ]
        raise UserError(
            f"{lost:,} of {total:,} rows are lost, more than data.max_lost_share = {budget:g} allows. "
            f"The first: {first}. All of them: {', '.join(ledgers)}"
        )


def check_sides(tokens: ArtifactRef) -> None:
    """Before hours of training: both sides have rows.

    Raises:
        UserError: none is left of one.
    """
    for side, name in (("train", "training"), ("test", "held-out")):
        if not tokens.info[side]:
            raise UserError(f"No {name} row is left after tokenization; the ledgers say what became of each.")
