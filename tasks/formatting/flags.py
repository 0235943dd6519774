"""Other trainers' flags for what is learnt: obeyed as their tools define them, or refused by name."""

import contextlib
import json
from typing import Any

LEARN = {"train", "weight", "loss_weight", "loss"}
"""1 or true: learn this, 0 or false: do not. `train` is Axolotl's, `weight` OpenAI's, `loss` ms-swift's."""
MASKED = {"masked"}
"""The opposite: 1 or true: do not learn this."""
REFUSED = {"mask", "loss_mask", "loss_scale", "train_detail"}
"""Flags whose meaning differs between tools, or that refer to parts of a message."""
OF_ROWS = {"train", "weight", "loss_weight", "masked"} | REFUSED
"""Flags that a row may have as a whole."""


class NotLearnt(ValueError):
    """The row's own flags exclude it from training."""


def learn(holder: dict[str, Any], what: str, refused: list[str]) -> bool | None:
    """Whether flags say that a message or row is learnt; None: there is no flag.

    Args:
        what: the holder's name in messages.
        refused: receives a sentence for each flag that cannot be obeyed.
    """
    said: dict[str, bool] = {}
    for name in sorted((LEARN | MASKED | REFUSED) & holder.keys()):
        value = holder[name]
        if value is None:
            continue
        if name in REFUSED or not isinstance(value, bool | int | float) or value not in (0, 1):
            refused.append(f"{what} has {name}: {str(value)[:40]}, which cannot be obeyed")
        else:
            said[name] = bool(value) != (name in MASKED)
    if len(set(said.values())) > 1:
        refused.append(f"{what} has flags that disagree: {', '.join(said)}")
    return all(said.values()) if said else None


def check_row(row: dict[str, Any], read: set[str], refused: list[str]) -> None:
    """Obey the flags among the columns that the configuration does not read. Text is one only in REFUSED.

    Raises:
        NotLearnt: the row is not to be learnt.
    """
    found = {
        name: value
        for name in OF_ROWS & row.keys() - read
        if isinstance(value := _flag(row[name]), bool | int | float) or (name in REFUSED and value is not None)
    }
    if str(found.get("mask")).lower() in ("user", "human"):  # NeMo: whose turns are not learnt
        del found["mask"]
    if found and learn(found, "the row", refused) is False:
        raise NotLearnt(f"the row has {', '.join(f'{name}: {found[name]}' for name in sorted(found))}")


def _flag(value: Any) -> Any:
    """A flag as a table of texts writes it: true, 0.5; other text stays text."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(value.lower()) if isinstance(value, str) else value
    return value
