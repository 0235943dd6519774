"""NF4 to a matrix or its transpose, as a Triton kernel."""

import triton
import triton.language as tl


@triton.jit
def dequantize(  # type: ignore[no-untyped-def]
    packed, absmax, code, out, rows, columns, TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, PACKED: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    pair = tl.program_id(1) * PACKED + tl.arange(0, PACKED)[None, :]
    inside = (row < rows) & (2 * pair < columns)
    index = row.to(tl.int64) * columns + 2 * pair  # of a pair's first value
    byte = tl.load(packed + index // 2, mask=inside, other=0).to(tl.int32)
    scale = tl.load(absmax + index // 64, mask=inside, other=0.0)
    first, second = tl.load(code + (byte >> 4)) * scale, tl.load(code + (byte & 15)) * scale
    value = tl.interleave(first, second).to(out.dtype.element_ty)
    column = tl.program_id(1) * 2 * PACKED + tl.arange(0, 2 * PACKED)[None, :]
    inside = (row < rows) & (column < columns)
    if TRANSPOSED:
        to = out + column.to(tl.int64) * rows + row
        tl.store(tl.trans(to), tl.trans(value), mask=tl.trans(inside))
    else:
        tl.store(out + row.to(tl.int64) * columns + column, value, mask=inside)
