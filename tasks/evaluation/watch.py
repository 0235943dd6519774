"""Watch sets: rows of other tasks, formatted and tokenized like the data, and all held out."""

from collections.abc import Callable
from pathlib import Path

from tasks.config import DataConfig, FormattingConfig, TokenizationConfig, WatchSet
from tasks.download.rows import write_rows
from tasks.download.schema import ROWS
from tasks.errors import UserError
from tasks.evaluation.facts import WatchFacts
from tasks.evaluation.identity import watch_identity
from tasks.evaluation.metrics import check_references
from tasks.evaluation.rows import held_out, seen_rows
from tasks.formatting.prompts import write_prompts
from tasks.formatting.schema import PROMPTS
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.facts import LedgerFacts
from tasks.store.model import BaseModelRef
from tasks.tokenization.encode import write_tokens
from tasks.tokenization.facts import TokenFacts
from tasks.tokenization.schema import TOKENS


def watch_rows(
    watch: WatchSet, tokens: ArtifactRef, prompts: ArtifactRef, model: BaseModelRef, log: Callable[[str], None]
) -> ArtifactRef:
    """The files that download, format and tokenize write for a watch set, in a folder each.

    Args:
        tokens, prompts: of the run, which decide formatting and tokenization.
    Raises:
        UserError: a row cannot be used: a set is small and chosen by hand, so that no row may be lost.
    """
    formatting = watch.formatting or prompts.manifest.fields(FormattingConfig)

    def all_usable(facts: LedgerFacts) -> None:
        if facts.lost or not facts.rows:
            raise UserError(f"{facts.first_lost[0]}; mend the row or take it out" if facts.lost else "it has no rows")

    def write(folder: Path) -> WatchFacts:
        rows, texts, ids = (folder / name for name in ("rows", "prompts", "tokens"))
        for each in (rows, texts, ids):
            each.mkdir()
        base, how = Path(model.folder), tokens.manifest.fields(TokenizationConfig)
        all_usable(write_rows(DataConfig(path=watch.path), rows, held_out=True))
        all_usable(made := write_prompts(rows / ROWS, base, formatting, texts, log))
        limit = tokens.facts(TokenFacts).limit
        all_usable(done := write_tokens(texts / PROMPTS, made.special_tokens, base, limit, how, ids, log))
        return WatchFacts(rows=done.rows, ending=made.ending)

    try:
        return produce(watch_identity(watch, tokens, prompts, model), write, log, (tokens, prompts, model))
    except UserError as error:
        raise UserError(f"evaluation.watch, {watch.name}: {str(error).rstrip('.')}.") from error


def check_watch(watch: WatchSet, made: ArtifactRef, prompts: ArtifactRef, metrics: list[str]) -> None:
    """Before training: raises UserError if a row of the set is a training row, or its reference cannot be scored."""
    tokens, own = made.path / "tokens" / TOKENS, made.path / "prompts" / PROMPTS
    check_references(held_out(tokens, own, 0), metrics)
    both, _ = seen_rows(tokens, own, [prompts.path / PROMPTS])
    if both:
        more = f" and {len(both) - 1:,} more" if len(both) > 1 else ""
        raise UserError(
            f"evaluation.watch, {watch.name}: row {min(both)!r}{more}, a near copy of it or its prompt is in the "
            "training data, and a watch set is never trained on: take it out of one of the two."
        )
