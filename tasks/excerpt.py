"""Beginning and end of a text that is too long for a page."""

LONGEST_TEXT, MOST_LINES = 3000, 60
"""Characters and lines of one text; a longer one loses its middle, and says how much."""

Part = tuple[str, str]
"""(kind, text): `masked` and `learnt` tokens, `text`, or a `gap` that says what is left out."""


def shortened(text: str, kind: str = "text", times: int = 1) -> list[Part]:
    """A text in parts, its middle left out where it is `times` too long for a page."""
    characters, lines = LONGEST_TEXT * times // 2, MOST_LINES * times // 2
    if len(text) <= 2 * characters and text.count("\n") < 2 * lines:
        return [(kind, text)]
    first = "".join(text[:characters].splitlines(keepends=True)[:lines])
    last = "".join(text[-characters:].splitlines(keepends=True)[-lines:])
    left_out = len(text) - len(first) - len(last)
    return (
        [(kind, first), ("gap", f"{left_out:,} characters left out"), (kind, last)] if left_out > 0 else [(kind, text)]
    )
