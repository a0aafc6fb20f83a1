"""Quantize weights to integers of 4 or 8 bits, with a scale for each block of them.

A weight is cut along its input dimension, and dequantized as (number − zero point) · scale; the layout is that of ONNX
Runtime's MatMulNBits. Numbers are rounded to nearest between each block's extremes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from converter.checkpoint.tensor import LazyTensor, to_float32
from converter.weights.precisions import Blocks

# So much of a weight is looked at together, in float32: it fits the second-level cache with what is made of it.
PIECE_BYTES = 512 * 1024

HALF_STEP = 0.5 + 1e-3  # with what float32 rounds off when it counts steps


@dataclass(frozen=True)
class Rows:
    """Some rows of a weight, quantized.

    Attributes:
        numbers: ``[rows, row_bytes]`` uint8, packed with the first of two in the lower half.
        scales: ``[rows, blocks]`` float32.
        zero_points: ``[rows, zero_point_bytes]`` uint8, packed likewise; None if symmetric.
    """

    numbers: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None


def row_pieces(weight: LazyTensor) -> Iterator[np.ndarray]:
    """Yield a matrix in float32, a bounded number of whole rows at a time."""
    width = weight.shape[1]
    step = max(1, PIECE_BYTES // (4 * width)) * width
    held = np.empty(0, np.float32)
    for chunk in weight.chunks():
        held = np.concatenate((held, to_float32(chunk, weight.dtype)))
        while held.size >= step:
            yield held[:step].reshape(-1, width)
            held = held[step:]
    if held.size:
        yield held.reshape(-1, width)


def quantize_rows(rows: np.ndarray, blocks: Blocks) -> Rows:
    """Quantize the rows of a float32 matrix ``[rows, inputs]``; return numbers, scales and zero points."""
    count, size = blocks.count(rows.shape[1]), blocks.size_for(rows.shape[1])
    padded = np.zeros((len(rows), count * size), np.float32)
    padded[:, : rows.shape[1]] = rows
    values = padded.reshape(len(rows), count, size)
    scales, zero_points = _range(values, blocks)
    numbers = np.rint(values / scales[..., None])
    numbers += zero_points[..., None]
    np.clip(numbers, 0, blocks.most, out=numbers)
    packed = pack(numbers.reshape(len(rows), -1), blocks.bits)
    return Rows(packed, scales, None if blocks.symmetric else pack(zero_points, blocks.bits))


def _range(values: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and zero points of blocks ``[rows, blocks, size]``. Zero is always in the range, exactly.

    Narrower ranges, which clip extremes to lower the squared error, were tried: KL and perplexity stayed as they were.
    """
    low, high = np.minimum(values.min(axis=-1), 0), np.maximum(values.max(axis=-1), 0)
    if blocks.symmetric:  # from -middle to middle - 1: the side that reaches further gets the longer half
        scales = _nonzero(np.where(-low > high, -low, -high) / blocks.middle)
        return scales, np.full(scales.shape, blocks.middle, np.float32)
    scales = _nonzero((high - low) / blocks.most)
    return scales, np.clip(np.rint(-low / scales), 0, blocks.most)


def _nonzero(scales: np.ndarray) -> np.ndarray:
    """Replace scales of 0 by 1: a block of zeros may have any scale."""
    return np.where(scales == 0, 1, scales).astype(np.float32)


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Pack numbers ``[rows, n]`` into bytes: two 4-bit numbers to a byte, with a 0 after an odd last one."""
    numbers = numbers.astype(np.uint8)
    if bits == 8:
        return numbers
    if numbers.shape[1] % 2:
        numbers = np.pad(numbers, ((0, 0), (0, 1)))
    return numbers[:, 0::2] | (numbers[:, 1::2] << 4)


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first ``count`` numbers of each row."""
    if bits == 8:
        return packed[:, :count]
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :count]


def dequantize(rows: Rows, blocks: Blocks, width: int, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """Return the weights ``[rows, width]``: in float32 as MatMulNBits computes with them, in float64 exactly."""
    count, size = blocks.count(width), blocks.size_for(width)
    numbers = unpack(rows.numbers, blocks.bits, count * size).reshape(-1, count, size).astype(dtype)
    zeros = blocks.middle if rows.zero_points is None else unpack(rows.zero_points, blocks.bits, count)[..., None]
    values = (numbers - np.asarray(zeros, dtype)) * rows.scales[..., None]
    return values.reshape(len(values), -1)[:, :width]


def not_nearest(rows: Rows, source: np.ndarray, blocks: Blocks) -> tuple[int, int] | None:
    """Return the place of a number that is not the nearest to the source's; None if there is none. Such a number is
    more than half a step away, and one step would bring it nearer.
    """
    count, size = blocks.count(source.shape[1]), blocks.size_for(source.shape[1])
    numbers = unpack(rows.numbers, blocks.bits, count * size)[:, : source.shape[1]].astype(np.float32)
    steps = np.repeat(rows.scales, size, axis=1)[:, : source.shape[1]]
    off = (dequantize(rows, blocks, source.shape[1]) - source) / steps  # in steps, above the source if positive
    room = np.where(off > 0, numbers > 0, numbers < blocks.most)
    wrong = ~(np.abs(off) <= HALF_STEP) & room | ~np.isfinite(off)
    return tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape)) if wrong.any() else None  # type: ignore[return-value]
