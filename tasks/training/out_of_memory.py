"""Out of memory: the same rows are computed with fewer tokens at once.

Without sharding that happens right away. With sharding it happens in the next attempt, for which a file is left.
"""

import re
from collections.abc import Callable
from pathlib import Path

from tasks.errors import UserError
from tasks.training.packing import Row, pack

_FILE = "tokens_at_once"  # among the checkpoints


class ShardedOutOfMemory(RuntimeError):
    """A process of a sharded run is out of memory; the next attempt has fewer tokens at once."""


def halved_budget(shares: list[list[Row]], budget: int) -> int:
    """Half the tokens of the largest micro-batch that `budget` makes of the processes' rows.

    Raises:
        UserError: it is a single row, which is never divided.
    """
    groups = [group for rows in shares for group in pack(rows, budget)]
    largest = max(sum(len(row.input_ids) for row in group) for group in groups)
    longest = max(len(row.input_ids) for group in groups for row in group)
    if largest == longest and longest > budget // 2:
        raise UserError(
            f"a single row of {longest} tokens does not fit into the device's memory: set "
            "training.speed to lean, or lower tokenization.max_length"
        )
    return min(budget, largest) // 2


def end_attempt(folder: Path, budget: int, where: str) -> None:
    """Save the budget for the next attempt, and end this one.

    This attempt cannot repeat the step: the other processes wait for this one in a collective, where nothing can be
    agreed on.

    Raises:
        ShardedOutOfMemory: always.
    """
    (folder / _FILE).write_text(str(budget))
    raise ShardedOutOfMemory(
        f"{where}: out of memory; the next attempt goes on from the last checkpoint with at most {budget:,} tokens "
        "at once"
    )


def saved_budget(folder: Path, log: Callable[[str], None]) -> int:
    """The budget that an earlier attempt saved, or 0. A damaged file is logged and removed."""
    file = folder / _FILE
    if not file.exists():
        return 0
    text = file.read_bytes()
    if re.fullmatch(rb"[1-9][0-9]{0,6}", text):
        return int(text)
    log(f"{file} is ignored: it takes a whole number of tokens, from 1 to 9,999,999")
    file.unlink()
    return 0
