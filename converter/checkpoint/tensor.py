"""A tensor that still lies in its file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from converter.errors import CheckpointError

# One read: fits the second-level cache, so that looking at the bytes costs no second trip to memory.
CHUNK_BYTES = 256 * 1024

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
        strides: in elements; None where elements lie in row-major order without gaps.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    strides: tuple[int, ...] | None = None

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
        strides = self.strides or row_major(self.shape)
        extent = 1 + sum((n - 1) * step for n, step in zip(self.shape, strides, strict=True))
        try:
            flat = np.memmap(self.file, dtype, mode="c", offset=self.offset, shape=(extent,))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.file}: tensor {self.name} cannot be mapped ({error})") from error
        steps = tuple(step * dtype.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(np.asarray(flat), self.shape, steps)

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
        mapped = self.memmap()
        rows = mapped.reshape(1) if mapped.ndim == 0 else mapped
        step = max(1, CHUNK_BYTES * len(rows) // max(1, self.nbytes)) if len(rows) else 1
        for first in range(0, len(rows), step):
            yield np.ascontiguousarray(rows[first : first + step]).ravel()


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a tensor without gaps."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def to_float32(chunk: np.ndarray, dtype: str) -> np.ndarray:
    """A chunk of a float16, bfloat16 or float32 tensor as float32; exact, since float32 holds all of them."""
    if dtype == "bfloat16":
        return (chunk.astype(np.uint32) << 16).view(np.float32)
    return chunk.astype(np.float32, copy=False)
