"""What download hands on: the source's own columns plus two."""

ROWS = "rows.parquet"
ID = "_id"
"""Text that names a row: the id column, or a digest of the row's content."""
SPLIT = "split"
"""`train` or `test`."""
