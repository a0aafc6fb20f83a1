"""Tensors that are still in their files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path

import numpy as np

from converter.errors import CheckpointError

# The bytes of one read. They fit the second-level cache, so that the scan needs no second trip to memory.
CHUNK_BYTES = 256 * 1024

# The bytes of one piece of a transposed or computed tensor: enough rows that each page is read only once or twice.
STRIDED_BYTES = 8 * 1024 * 1024

# bfloat16 is the upper half of a float32. numpy has no such type, so its bits are kept in uint16.
DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
    "complex64": np.dtype("<c8"),
}


MAX_RANK = 32  # numpy's limit for a long time
MAX_SIZE = 1 << 63


def refuse_shape(file: Path, name: str, shape: Sequence[int]) -> None:
    """Refuse a shape that no tensor has, before its numbers are multiplied: that alone could take hours.

    Raises:
        CheckpointError: it has too many dimensions, or one is too large.
    """
    if len(shape) > MAX_RANK or max(shape, default=0) >= MAX_SIZE:
        raise CheckpointError(
            f"{file} is corrupt: tensor {name} has {len(shape)} dimensions, or one that no memory could hold"
        )


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose bytes are still in its file. Nothing is read before it is asked for.

    Attributes:
        name: the name in the source, wrappers and all.
        dtype: a key of ``DTYPES``.
        shape: its dimensions.
        file: the file that holds it.
        offset: the place of its first element, in bytes from the start of the file.
        strides: the strides of ``view``, in elements; None if the elements lie in row-major order without gaps.
        view: the dimensions in the file, if ``shape`` joins some of them; None if it does not.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    strides: tuple[int, ...] | None = None
    view: tuple[int, ...] | None = None

    @property
    def in_file(self) -> bool:
        """Tell whether the bytes in the file can be copied as they are."""
        return self.strides is None

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the number of bytes that the elements take."""
        return self.size * DTYPES[self.dtype].itemsize

    def memmap(self) -> np.ndarray:
        """Return the tensor as a private view of the mapped file. Writing to the view never changes the file."""
        dtype = DTYPES[self.dtype]
        if not self.size:
            return np.empty(self.shape, dtype)
        view = self.view or self.shape
        strides = self.strides or row_major(view)
        extent = 1 + sum((n - 1) * step for n, step in zip(view, strides, strict=True))
        try:
            flat = np.memmap(self.file, dtype, mode="c", offset=self.offset, shape=(extent,))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.file}: tensor {self.name} cannot be mapped ({error})") from error
        steps = tuple(step * dtype.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(np.asarray(flat), view, steps).reshape(self.shape)

    def reshaped(self, *shape: int) -> LazyTensor:
        """Return the same elements in another shape. The tensor must have no gaps."""
        assert self.strides is None
        assert math.prod(shape) == self.size
        return replace(self, shape=shape)

    def transposed(self) -> LazyTensor:
        """Return the matrix with rows and columns exchanged. Nothing is read or moved. Twice, it changes nothing."""
        view = self.view or self.shape
        strides = self.strides or row_major(view)
        # Joined dimensions are exchanged as one.
        rows = next((n for n in range(1, len(view)) if math.prod(view[:n]) == self.shape[0]), 0) if self.view else 0
        view, strides = (t[rows:] + t[:rows] if rows else t[::-1] for t in (view, strides))
        if strides == row_major(view):
            return replace(self, shape=self.shape[::-1], strides=None, view=None)
        return replace(self, shape=self.shape[::-1], strides=strides, view=view if self.view else None)

    def part(self, index: int) -> LazyTensor:
        """Return item ``index`` along the first dimension. The tensor must have no gaps."""
        assert self.strides is None
        rest = self.shape[1:]
        return replace(self, shape=rest, offset=self.offset + index * math.prod(rest) * DTYPES[self.dtype].itemsize)

    def rows(self, count: int) -> LazyTensor:
        """Return the first ``count`` items along the first dimension."""
        return replace(self, shape=(count, *self.shape[1:]))

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the elements in row-major order, in pieces of bounded size.

        With strides, a piece is at least one row. Each piece is overwritten by the next.
        """
        if self.strides is not None:
            yield from self._strided_chunks()
            return
        dtype = DTYPES[self.dtype]
        buffer = bytearray(min(CHUNK_BYTES, self.nbytes))
        left = self.nbytes
        with self._open() as opened:
            opened.seek(self.offset)
            while left:
                view = memoryview(buffer)[: min(left, len(buffer))]
                got = 0
                while got < len(view):
                    count = opened.readinto(view[got:])
                    if not count:
                        raise CheckpointError(f"{self.file} ends within tensor {self.name}: it changed or is truncated")
                    got += count
                left -= got
                yield np.frombuffer(view, dtype)

    def _open(self) -> FileIO:
        try:
            return self.file.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{self.file}: tensor {self.name} cannot be read ({error.strerror})") from error

    def _strided_chunks(self) -> Iterator[np.ndarray]:
        view = replace(self, shape=self.view or self.shape, view=None).memmap()  # a reshape would read all of it
        rows = max(1, view.shape[0] if self.shape else 1)
        step = max(1, STRIDED_BYTES * rows // max(1, self.nbytes))
        for first in range(0, rows, step):
            yield np.ascontiguousarray(view[first : first + step] if self.shape else view).ravel()


@dataclass(frozen=True)
class Computed(LazyTensor):
    """A float32 tensor that is not in the file as it is: ``compute`` returns its rows ``first`` to ``end``.

    ``file`` and ``offset`` tell messages where its data comes from.
    """

    compute: Callable[[int, int], np.ndarray] = field(kw_only=True)  # (first, end) → [end - first, …] float32

    @property
    def in_file(self) -> bool:
        """Return False: the bytes have to be computed."""
        return False

    def transposed(self) -> LazyTensor:
        """Return the matrix with rows and columns exchanged. Each piece of it costs computing the whole matrix."""
        whole = self.compute
        rows = self.shape[0]
        return replace(self, shape=self.shape[::-1], compute=lambda first, end: whole(0, rows)[:, first:end].T)

    def memmap(self) -> np.ndarray:
        """Return the whole tensor, in memory."""
        return np.ascontiguousarray(self.compute(0, self.shape[0]), np.float32)

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the elements in row-major order, a bounded number of rows at a time."""
        step = max(1, STRIDED_BYTES * self.shape[0] // max(1, self.nbytes))
        for first in range(0, self.shape[0], step):
            yield np.ascontiguousarray(self.compute(first, min(first + step, self.shape[0])), np.float32).ravel()


def zeros(name: str, shape: tuple[int, ...], file: Path) -> Computed:
    """Return a tensor of zeros, for what a format leaves out, such as the biases of a model without biases."""
    return Computed(name, "float32", shape, file, 0, compute=lambda a, b: np.zeros((b - a, *shape[1:]), np.float32))


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a tensor without gaps."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def to_float32(chunk: np.ndarray, dtype: str) -> np.ndarray:
    """Return a chunk of a float16, bfloat16 or float32 tensor as float32. This is exact: float32 holds all of them."""
    if dtype == "bfloat16":
        return (chunk.astype(np.uint32) << 16).view(np.float32)
    return chunk.astype(np.float32, copy=False)
