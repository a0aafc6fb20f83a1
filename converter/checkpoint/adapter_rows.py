"""Rows of tensors in float64, and tensors that are computed row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from converter.checkpoint.tensor import Computed, LazyTensor, to_float32
from converter.errors import CheckpointError


def matrix_shape(tensor: LazyTensor) -> tuple[int, int]:
    """Return the numbers of rows and columns of a matrix; another tensor is a CheckpointError."""
    if len(tensor.shape) != 2:
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} is {list(tensor.shape)}; expected a matrix")
    rows, columns = tensor.shape
    return rows, columns


def with_rows(tensor: LazyTensor, compute: Callable[[int, int], np.ndarray]) -> Computed:
    """Return ``tensor`` with the rows that ``compute`` gives, as float32."""

    def narrowed(first: int, end: int) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # the scan reports infinity
            return compute(first, end).astype(np.float32)

    return Computed(tensor.name, "float32", tensor.shape, tensor.file, tensor.offset, compute=narrowed)


def rows(tensor: LazyTensor, first: int, end: int) -> np.ndarray:
    """Return rows ``first`` to ``end`` of a tensor, float64. Only these are read, unless dimensions are joined."""
    if isinstance(tensor, Computed):
        return tensor.compute(first, end).astype(np.float64)
    view = tensor.view or tensor.shape
    if view[0] == tensor.shape[0]:
        mapped = replace(tensor, shape=view, view=None).memmap()[first:end].reshape(end - first, *tensor.shape[1:])
    else:
        mapped = tensor.memmap()[first:end]
    return to_float32(mapped, tensor.dtype).astype(np.float64)


def floats(tensor: LazyTensor) -> np.ndarray:
    """Return all of a small tensor, float64."""
    return to_float32(tensor.memmap(), tensor.dtype).astype(np.float64)
