"""What tokenization notes of tokens.parquet, and the JSON beside it, which people read.

STATISTICS    {"limit", "width", "splits": {split: {"rows", "tokens", "learnt_tokens", "shortened", "lost", "shortest",
              "median", "longest", "rows_by_length": [rows of 0 to width - 1 tokens, of width to 2 * width - 1, …]}}}
PREVIEW       [{"label", "id", "tokens", "learnt", "parts": [[kind, text], …]}, …]; kind is masked, learnt or gap
"""

from tasks.store.facts import LedgerFacts

STATISTICS, PREVIEW = "statistics.json", "preview.json"


class TokenFacts(LedgerFacts):
    """Of tokens.parquet: rows of each split, and tokens.

    Args:
        tokens, learnt_tokens: of all rows; learnt are those with a label.
        longest: tokens of the longest row.
        limit: tokens that a row may have.
        eos: the token that ends a sequence.
        prefix: the tokens that begin one.
    """

    train: int
    test: int
    tokens: int
    learnt_tokens: int
    longest: int
    limit: int
    eos: int
    prefix: list[int]
