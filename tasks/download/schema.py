"""What download hands on: the source's own columns plus two."""

ROWS = "rows.parquet"
ID = "_id"
"""Text that names a row: the id column, or a digest of the row's content."""
SPLIT = "split"
"""`train` or `test`."""
GROUP_COLUMN = b"group_column"
"""Key of the file's schema metadata: which of the columns holds a row's group; empty where none does."""
