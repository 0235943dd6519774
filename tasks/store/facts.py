"""Facts: the numbers and names that a stage notes in its manifest. Each room declares its own in facts.py.

facts.py imports nothing heavy, because keys are computed from it; schema.py imports pyarrow."""

from pydantic import BaseModel, ConfigDict


class Facts(BaseModel):
    """Facts of one stage. Other rooms read them only through this type."""

    model_config = ConfigDict(frozen=True, strict=True)


class LedgerFacts(Facts):
    """Facts of a stage with a ledger: rows it wrote, rows of each verdict, and the first five lost rows in words."""

    rows: int
    lost: int
    changed: int
    left_out: int
    first_lost: list[str]
