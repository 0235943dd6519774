"""Show rows as the trainer will read them, and why others are lost or changed, without a run."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from flows.commands.arguments import add_configuration, configuration, count
from flows.commands.environment import homes_in_store
from tasks.errors import UserError
from tasks.text import excerpt, visible, visible_lines

MOST = 1000
"""Rows of each file or split that are read."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_configuration(command)
    command.add_argument("--rows", type=count, default=2, metavar="N", help="rows to show of each split [default 2]")


def main(options: argparse.Namespace) -> int:
    homes_in_store()
    groups = configuration(options)
    from flows.run.continued import to_replay
    from tasks.download.identity import pin
    from tasks.download.models import BUNDLED, fetch_model, present_model
    from tasks.download.rows import EARLIER, write_rows
    from tasks.download.schema import ROWS
    from tasks.formatting.prompts import write_prompts
    from tasks.formatting.schema import PROMPTS
    from tasks.publishing.identity import registry_folder
    from tasks.tokenization.encode import write_tokens

    data, model = pin(groups["data"], groups["model"])
    base = fetch_model(model, print) if model.base == BUNDLED else present_model(model)
    if base is None:
        raise UserError(
            f"model.base: {model.base} is not on this machine yet; fetch it first: hf download {model.base}."
        )
    tokenizer, tokenization = Path(base.folder), groups["tokenization"]
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / stage for stage in ("download", "format", "tokenize")]
        for folder in folders:
            folder.mkdir()
        replay = to_replay(data, registry_folder(groups["publishing"]), print)
        sources = write_rows(data, folders[0], MOST, replay.path / ROWS if replay else None).sources
        formatted = write_prompts(folders[0] / ROWS, tokenizer, groups["formatting"], folders[1])
        limit = min(tokenization.max_length, base.max_length)
        special = formatted.special_tokens
        write_tokens(folders[1] / PROMPTS, special, tokenizer, limit, tokenization, folders[2])
        mixed_in = sources.get(EARLIER, {})
        shown = _rows(folders[2], tokenizer, special == "rendered", options.rows, mixed_in)
        for line in (*shown, *_ledgers(folders)):
            print(line)
    print(f"\nRead: the first {MOST:,} rows of each file or split, at most.")
    if mixed_in:
        print(f"Mixed in: {mixed_in['train']:,} earlier rows to train on, and {mixed_in['test']:,} held out.")
    return 0


def _rows(folder: Path, tokenizer: Path, rendered: bool, count: int, mixed_in: dict[str, int]) -> Iterator[str]:
    """The first rows of each split, and one of the earlier rows that are mixed in, with « » around what is learnt."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from tasks.tokenization.preview import decoded
    from tasks.tokenization.schema import IGNORE_INDEX, TOKENS
    from tasks.tokenization.vocabulary import Vocabulary

    decode: Callable[[list[int]], str] = Vocabulary(tokenizer, rendered).decode
    table = pq.read_table(folder / TOKENS)
    for split, title in (("train", "training"), ("test", "held-out")):
        rows = table.filter(pc.equal(table["split"], split))
        last = rows.slice(len(rows) - 1) if mixed_in.get(split) and len(rows) > count else rows.slice(0, 0)
        for row in [*rows.to_pylist()[:count], *last.to_pylist()]:  # earlier rows stand at the end
            learnt = sum(label != IGNORE_INDEX for label in row["labels"])
            yield f"── {title} row {visible(row['id'])}: {len(row['input_ids']):,} tokens, {learnt:,} learnt (« »)"
            shown = ""
            for part_kind, part in decoded(decode, row):
                for kind, text in excerpt(part, part_kind):
                    shown += f"«{text}»" if kind == "learnt" else f"\n[{text}]\n" if kind == "gap" else text
            yield visible_lines(shown) + "\n"


def _ledgers(folders: list[Path]) -> Iterator[str]:
    """The reasons in the ledgers with their numbers of rows, and one row as an example."""
    import pyarrow.parquet as pq

    from tasks.store.ledger import LEDGER

    reasons: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for line in (line for folder in folders for line in pq.read_table(folder / LEDGER).to_pylist()):
        reasons.setdefault((line["verdict"], line["stage"], line["reason"]), []).append(line)
    yield "── Rows that do not pass unchanged" if reasons else "── All rows pass unchanged"
    for (verdict, stage, why), lines in sorted(reasons.items(), key=lambda item: -len(item[1])):
        example = f"row {visible(lines[0]['id'] or '?')}: {visible(lines[0]['detail'], 300)}"
        yield f"{len(lines):>6,} {verdict} in {stage}: {why}, such as {example}"
