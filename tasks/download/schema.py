"""What download hands on: the source's own columns plus two."""

import json

ROWS = "rows.parquet"
ID = "_id"
"""Text that names a row: the id column, or a digest of the row's content."""
SPLIT = "split"
"""`train` or `test`."""
GROUP_COLUMN = b"group_column"
"""Key of the file's schema metadata: which of the columns holds a row's group; empty where none does."""
ENCODE = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str).encode
"""A row as text, equal for equal content."""
