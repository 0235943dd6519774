"""What tokenization hands on: the arrays that trainer and evaluation read, and what people look at."""

import pyarrow as pa

TOKENS = "tokens.parquet"
IGNORE_INDEX = -100
"""Label of a token that carries no loss."""
TOKEN_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),  # rows with one value belong together; null: it belongs to none
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),  # the token itself where it is learnt, not shifted; else IGNORE_INDEX
    ]
)
LEARNT = "learnt_tokens"
"""Column that counts, within the stage, a row's labels that are learnt."""
