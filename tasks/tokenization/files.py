"""JSON beside the tokens, for people. The names are apart from schema.py because reading it takes no Arrow.

STATISTICS    {"limit", "width", "splits": {split: {"rows", "tokens", "learnt_tokens", "shortened", "lost", "shortest",
              "median", "longest", "rows_by_length": [rows of 0 to width - 1 tokens, of width to 2 * width - 1, …]}}}
PREVIEW       [{"label", "id", "tokens", "learnt", "parts": [[kind, text], …]}, …]; kind is masked, learnt or gap
"""

STATISTICS = "statistics.json"
PREVIEW = "preview.json"
