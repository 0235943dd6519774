"""What tokenization notes of tokens.parquet."""

from tasks.store.facts import LedgerFacts


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
