"""The facts of download."""

from tasks.store.facts import Facts, LedgerFacts


class RowsFacts(LedgerFacts):
    """Of rows.parquet: rows of each split, rows of neither, and rows of each file format."""

    train: int
    test: int
    unused: int
    formats: dict[str, int]
    # of data.mix and replay: name → rows read, train (repeated ones as often as used), test
    sources: dict[str, dict[str, int]]


class DifferenceFacts(Facts):
    """Of difference.parquet: its lines, and rows by what became of them."""

    rows: int
    added: int
    removed: int
    changed: int
    same: int


class ModelFacts(Facts):
    """Of the bundled base model: its name on the Hub, its licence, and the file it was converted from."""

    source: str
    license: str
    file: str
