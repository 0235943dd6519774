"""What formatting writes: one row for each prompt."""

import pyarrow as pa

PROMPTS = "prompts.parquet"
PROMPT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),  # a digest of the row's group; null: it has none
        ("prompt", pa.string()),
        ("completion", pa.string()),  # the text to learn, ending included, end-of-sequence not
        ("references", pa.list_(pa.string())),  # human answers to score against
        ("learnt", pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32())]))),  # of the prompt: earlier answers
        ("input_start", pa.int32()),  # where the input column stands in the prompt, in characters; null: nowhere
        ("input_end", pa.int32()),
    ]
)

SIGNS = "signs"
"""Column that says, within the stage, what a row is recognised by."""
