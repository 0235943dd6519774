"""4-bit weights back to matrices, on a GPU also transposed.

The backward pass multiplies by the untransposed weight, and cuBLAS is several percent faster when that lies transposed
in memory; bitsandbytes writes only the other way. The kernel takes about a fifth less time than bitsandbytes' own, too
(benchmarks/NOTES.md), and gives the same bits.
"""

import functools

import bitsandbytes.functional as bnb
import torch
from torch import Tensor

BLOCK = 64  # bitsandbytes' default block of 4-bit weights, the one transformers quantizes with


def dense(weight: Tensor, absmax: Tensor | None, kind: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """`[out, in]` in `dtype`, from packed 4-bit values with their constants ("nf4", "fp4") or from a matrix ("")."""
    if absmax is None:
        return weight.to(dtype)
    if kind == "nf4" and weight.is_cuda:
        return _nf4(weight, absmax, torch.empty(shape, dtype=dtype, device=weight.device), transposed=False)
    return torch.ops.bitsandbytes.dequantize_4bit.default(weight, absmax, BLOCK, kind, shape, dtype)


def dense_for_backward(
    weight: Tensor, absmax: Tensor | None, kind: str, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The same values; where it is faster, a view of a transposed matrix."""
    if absmax is not None and kind == "nf4" and weight.is_cuda:
        return _nf4(weight, absmax, torch.empty(shape[::-1], dtype=dtype, device=weight.device), transposed=True).t()
    return dense(weight, absmax, kind, shape, dtype)


def _nf4(weight: Tensor, absmax: Tensor, out: Tensor, transposed: bool) -> Tensor:
    from tasks.training.nf4_kernel import dequantize  # Triton comes with torch's CUDA builds alone

    rows, columns = out.shape[::-1] if transposed else out.shape
    tile = (64, 64) if transposed else (4, 512)  # rows and packed columns of one program
    grid = (-(-rows // tile[0]), -(-columns // (2 * tile[1])))
    dequantize[grid](weight, absmax, _code(out.device), out, rows, columns, transposed, *tile, num_warps=8)
    return out


@functools.cache
def _code(device: torch.device) -> Tensor:
    """The sixteen values of NF4."""
    return bnb.get_4bit_type("nf4", device=device).float()
