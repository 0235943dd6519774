"""prompts.parquet → tokens.parquet: ids and labels, loss on the answer alone, end-of-sequence always learnt."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tasks.config import TokenizationConfig
from tasks.process.pool import spread
from tasks.process.progress import counted
from tasks.store.ledger import Ledger
from tasks.tokenization.facts import TokenFacts
from tasks.tokenization.preview import write_preview
from tasks.tokenization.schema import LEARNT, TOKEN_SCHEMA, TOKENS
from tasks.tokenization.statistics import Statistics
from tasks.tokenization.vocabulary import Vocabulary, saved_vocabulary

LAYOUT: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["split"],
    # each of an id's four bytes apart from the others: as small as a dictionary, and written and read faster
    "column_encoding": {"input_ids.list.element": "BYTE_STREAM_SPLIT"},
}


def write_tokens(
    prompts: Path,
    special_tokens: str,
    model: Path,
    limit: int,
    config: TokenizationConfig,
    folder: Path,
    log: Callable[[str], None] = print,
) -> TokenFacts:
    """Tokenize every prompt; statistics.json and preview.json are for people.

    Args:
        prompts: prompts.parquet of formatting.
        special_tokens: `add` or `rendered`, as formatting noted it.
        model: the base model's folder.
        limit: longest row in tokens.
    """
    ledger, statistics = Ledger("tokenize", folder), Statistics()
    with tempfile.TemporaryDirectory() as scratch:
        saved = saved_vocabulary(model, special_tokens == "rendered", Path(scratch), log)
        vocabulary = Vocabulary.opened(**saved)
        job = {"prompts": str(prompts), "vocabulary": saved, "limit": limit, "config": config.model_dump()}
        source = pq.ParquetFile(prompts).metadata
        units = source.num_row_groups
        with (
            contextlib.closing(spread("tasks.tokenization.rows", job, units, log)) as results,
            pq.ParquetWriter(folder / TOKENS, TOKEN_SCHEMA, **LAYOUT) as writer,
        ):
            for rows, lines in counted(results, units, source.num_rows, "tokenize", log):
                for line in lines:
                    ledger.add(*line)
                statistics.add(rows, lines)
                if rows.num_rows:
                    writer.write_batch(rows.drop_columns([LEARNT]))
    if kept := ledger.counts["kept"]:
        log(f"{kept:,} rows hold the name of a special token, which is learnt as text; the ledger has each")
    found = statistics.write(folder, limit)["splits"]
    write_preview(folder, *statistics.training_rows(), vocabulary.decode)
    totals = {name: sum(split[name] for split in found.values()) for name in ("rows", "tokens", "learnt_tokens")}
    return TokenFacts(
        **totals,
        **{name: split["rows"] for name, split in found.items()},
        longest=max(split["longest"] for split in found.values()),
        limit=limit,
        eos=vocabulary.eos,
        prefix=vocabulary.prefix,
        **ledger.write(),
    )
