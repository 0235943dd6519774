"""Out of memory: the same rows with fewer tokens at once, right away or, with sharded weights, in the next attempt."""

import re
from collections.abc import Callable
from pathlib import Path

from tasks.errors import UserError
from tasks.training.packing import Row, pack

_FILE = "tokens_at_once"  # among the checkpoints


class ShortOfMemory(RuntimeError):
    """A process of a sharded run is out of memory; another attempt goes on with fewer tokens at once."""


def halved(shares: list[list[Row]], budget: int) -> int:
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


def leave(folder: Path, tokens: int, where: str) -> None:
    """End this attempt, and have the next one begin with `tokens` at once.

    Not tried again in place: the other processes wait for this one in a collective, where nothing can be agreed on.

    Raises:
        ShortOfMemory: in any case.
    """
    (folder / _FILE).write_text(str(tokens))
    raise ShortOfMemory(
        f"{where}: out of memory; the next attempt goes on from the last checkpoint with at most {tokens:,} tokens "
        "at once"
    )


def left(folder: Path, say: Callable[[str], None]) -> int:
    """Tokens at once that an earlier attempt recommends; 0: none does. What is damaged is ignored, and `say` told."""
    file = folder / _FILE
    if not file.exists():
        return 0
    text = file.read_bytes()
    if re.fullmatch(rb"[1-9][0-9]{0,6}", text):
        return int(text)
    say(f"{file} is ignored: it takes a whole number of tokens, from 1 to 9,999,999")
    file.unlink()
    return 0
