"""A tensor that still lies in its file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path

import numpy as np

from converter.errors import CheckpointError

# One read: fits the second-level cache, so that looking at the bytes costs no second trip to memory.
CHUNK_BYTES = 256 * 1024

# One piece of a tensor that is transposed or computed: rows enough that a page of the file is read once or twice.
STRIDED_BYTES = 8 * 1024 * 1024

# bfloat16 is the upper half of a float32; numpy has no such type, so its bits travel as uint16.
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


@dataclass(frozen=True)
class LazyTensor:
    """Where a tensor's bytes are: nothing is read until asked.

    Attributes:
        name: the name in the source, wrappers and all.
        dtype: a key of ``DTYPES``.
        shape: its dimensions.
        file: the file that holds it.
        offset: of its first element, in bytes from the file's start.
        strides: in elements, of ``view``; None where elements lie in row-major order without gaps.
        view: the dimensions that the file has it in, where ``shape`` joins some of them; else the same.
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
        """Whether its bytes lie in the file just as they are wanted, and can be moved without being looked at."""
        return self.strides is None

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes its elements take."""
        return self.size * DTYPES[self.dtype].itemsize

    def memmap(self) -> np.ndarray:
        """The tensor as a view of the mapped file, private: writing to it never reaches the file."""
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
        """The same elements in other dimensions; of a tensor without gaps."""
        assert self.strides is None
        assert math.prod(shape) == self.size
        return replace(self, shape=shape)

    def transposed(self) -> LazyTensor:
        """A matrix with rows and columns exchanged; nothing is read or moved. Twice, it is as it was."""
        view = self.view or self.shape
        strides = self.strides or row_major(view)
        # Joined dimensions change places together.
        rows = next((n for n in range(1, len(view)) if math.prod(view[:n]) == self.shape[0]), 0) if self.view else 0
        view, strides = (t[rows:] + t[:rows] if rows else t[::-1] for t in (view, strides))
        if strides == row_major(view):
            return replace(self, shape=self.shape[::-1], strides=None, view=None)
        return replace(self, shape=self.shape[::-1], strides=strides, view=view if self.view else None)

    def part(self, index: int) -> LazyTensor:
        """One of what is stacked along the first dimension; of a tensor without gaps."""
        assert self.strides is None
        rest = self.shape[1:]
        return replace(self, shape=rest, offset=self.offset + index * math.prod(rest) * DTYPES[self.dtype].itemsize)

    def rows(self, count: int) -> LazyTensor:
        """The first ``count`` along the first dimension."""
        return replace(self, shape=(count, *self.shape[1:]))

    def chunks(self) -> Iterator[np.ndarray]:
        """The elements in row-major order, a bounded piece (with strides: a row, at least) at a time.

        Each piece is overwritten by the next.
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
    """A tensor that is not in the file as such, float32: ``compute`` gives its rows from one to another.

    ``file`` and ``offset`` say for messages where what it is made of lies.
    """

    compute: Callable[[int, int], np.ndarray] = field(kw_only=True)  # (first, end) → [end - first, …] float32

    @property
    def in_file(self) -> bool:
        """Never."""
        return False

    def transposed(self) -> LazyTensor:
        """A matrix with rows and columns exchanged; each of its pieces costs computing all of it."""
        whole = self.compute
        rows = self.shape[0]
        return replace(self, shape=self.shape[::-1], compute=lambda first, end: whole(0, rows)[:, first:end].T)

    def memmap(self) -> np.ndarray:
        """All of it, in memory."""
        return np.ascontiguousarray(self.compute(0, self.shape[0]), np.float32)

    def chunks(self) -> Iterator[np.ndarray]:
        """A bounded number of rows at a time."""
        step = max(1, STRIDED_BYTES * self.shape[0] // max(1, self.nbytes))
        for first in range(0, self.shape[0], step):
            yield np.ascontiguousarray(self.compute(first, min(first + step, self.shape[0])), np.float32).ravel()


def zeros(name: str, shape: tuple[int, ...], file: Path) -> Computed:
    """What a format leaves out because it is zero, such as the biases of a model without."""
    return Computed(name, "float32", shape, file, 0, compute=lambda a, b: np.zeros((b - a, *shape[1:]), np.float32))


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a tensor without gaps."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def to_float32(chunk: np.ndarray, dtype: str) -> np.ndarray:
    """A chunk of a float16, bfloat16 or float32 tensor as float32; exact, since float32 holds all of them."""
    if dtype == "bfloat16":
        return (chunk.astype(np.uint32) << 16).view(np.float32)
    return chunk.astype(np.float32, copy=False)
