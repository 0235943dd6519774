"""The facts of formatting."""

from typing import Literal

from tasks.store.facts import LedgerFacts


class PromptFacts(LedgerFacts):
    """Of prompts.parquet.

    Args:
        special_tokens: `add`: tokenization adds the tokenizer's own; `rendered`: a chat template wrote them.
        ending: text learnt after the answer.
        leaks: training rows left out because a held-out row equals them.
        near_leaks: training rows left out because a held-out row nearly equals them.
        shared_prompts: training rows kept that have a held-out row's prompt and another answer.
        duplicates: rows kept that equal an earlier one of their split.
    """

    special_tokens: Literal["add", "rendered"]
    ending: str
    leaks: int
    near_leaks: int
    shared_prompts: int
    duplicates: int
