"""What a value may be: which text is mended, and which costs its row."""

from typing import Any

import numpy as np
import pyarrow as pa

LONGEST_FIELD = 10_000_000
"""Characters of one text: twice what the longest row that can be learnt (1,048,576 tokens) holds."""
TEXT_CONTROLS = "\t\n\r\f\x1b"
"""Control characters that are text in code and terminal logs; all others come from broken conversions."""
CONTROLS = {code: None for code in (*range(32), 127) if chr(code) not in TEXT_CONTROLS}
_IS_CONTROL = np.array([code in CONTROLS for code in range(128)])


def suspicious(array: pa.Array) -> bool:
    """Whether any text in a column, however deep, may need `mended`; looks at buffers, not at rows."""
    kind = array.type
    if pa.types.is_string(kind):
        if not len(array):
            return False
        offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
        data = np.frombuffer(array.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
        low = data[(data < 32) | (data == 127)]
        return bool(_IS_CONTROL[low].any()) or bool(np.diff(offsets).max() > LONGEST_FIELD)
    if pa.types.is_struct(kind):
        return any(suspicious(array.field(n)) for n in range(kind.num_fields))
    return pa.types.is_list(kind) and suspicious(array.values)


def mended(value: Any) -> tuple[Any, int]:
    """A value without control characters, and how many were taken out.

    Raises:
        ValueError: a text is too long.
    """
    if isinstance(value, str):
        if len(value) > LONGEST_FIELD:
            raise ValueError(f"has a text of {len(value):,} characters, and {LONGEST_FIELD:,} are the most")
        clean = value.translate(CONTROLS)
        return clean, len(value) - len(clean)
    if isinstance(value, dict):
        inside = {name: mended(item) for name, item in value.items()}
        return {name: item for name, (item, _) in inside.items()}, sum(count for _, count in inside.values())
    if isinstance(value, list):
        items = [mended(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    return value, 0
