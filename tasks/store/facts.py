"""What a stage notes in its manifest beside its files. Each room declares its own in facts.py, which stays light: keys
are made of them, and schema.py imports pyarrow."""

from pydantic import BaseModel, ConfigDict


class Facts(BaseModel):
    """Notes of one stage, written by it and read by others through this type alone."""

    model_config = ConfigDict(frozen=True, strict=True)


class LedgerFacts(Facts):
    """Of a stage with a ledger: rows handed on, rows by verdict, and the first five lost rows in words."""

    rows: int
    lost: int
    changed: int
    left_out: int
    first_lost: list[str]
