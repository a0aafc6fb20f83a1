"""Read the header of GGUF files: metadata, and the place of each tensor.

It is read here and not through the ``gguf`` package. That package builds several arrays for each of the hundred
thousand texts of a vocabulary, and a damaged count can keep it busy forever. Here every claim of the header is compared
with the file's length before it is believed. The format is described in ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from converter.checkpoint.tensor import DTYPES
from converter.errors import CheckpointError

if TYPE_CHECKING:
    pass

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 counts in 32 bits
DEFAULT_ALIGNMENT = 32
MAX_ITEMS = 1 << 24  # in one array of the header; the largest vocabularies have a quarter of a million
MAX_DIMENSIONS = 4  # ggml's own limit

# Number of a type → its code in struct.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

# ggml's tensor types, for messages. Only those in PLAIN and Q8_0 are read.
TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# Q8_0: 32 neighbours in a row share a scale.
BLOCK = 32
Q8_0 = np.dtype([("scale", "<f2"), ("quants", "i1", (BLOCK,))])


Metadata = Mapping[str, Any]


class Header(NamedTuple):
    """The header of a file: its metadata, and the name, type, shape and offset of each tensor."""

    values: dict[str, Any]
    tensors: list[tuple[str, str, tuple[int, ...], int]]


class Cursor:
    """A reader of values, one after the other. It refuses a value that is longer than the rest of the file."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.at = file, data, 0

    def skip(self, count: int) -> int:
        """Move forward by ``count`` bytes; return where they begin."""
        begin, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise CheckpointError(
                f"{self.file} is truncated or corrupt: its header reaches past its {len(self.data)} bytes; "
                f"download or write it again"
            )
        return begin

    def scalars(self, code: str, count: int = 1) -> tuple[Any, ...]:
        """Read ``count`` numbers of one type; ``code`` is its code in ``struct``."""
        if count > MAX_ITEMS:
            raise CheckpointError(f"{self.file} is corrupt: its header holds an array of {count} numbers")
        layout = struct.Struct(f"<{count}{code}")
        return layout.unpack_from(self.data, self.skip(layout.size))

    def number(self, code: str) -> int:
        """Read one integer."""
        return int(self.scalars(code)[0])

    def text(self) -> str:
        """Read a text: its length, then as many bytes of UTF-8."""
        length = self.number("Q")
        begin = self.skip(length)
        try:
            return self.data[begin : begin + length].decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.file} is corrupt: a text in its header is not UTF-8 ({error})") from error

    def value(self, kind: int) -> Any:
        """Read a value of the metadata. Arrays may hold numbers or texts only."""
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.scalars(SCALARS[kind])[0]
        if kind != ARRAY:
            raise CheckpointError(f"{self.file} is corrupt: its header holds a value of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALARS:
            return self.scalars(SCALARS[inner], count)
        if inner != STRING or count > MAX_ITEMS:
            raise CheckpointError(f"{self.file} is corrupt: its header holds an array of {count} of type {inner}")
        return tuple(self.text() for _ in range(count))


def read_header(file: Path) -> Header:
    """Read the metadata and the place of each tensor. The tensors themselves are not read.

    Raises:
        CheckpointError: the file is truncated, damaged, or of a version or type that is not read.
    """
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_header(Cursor(file, data))
    except ValueError as error:  # mmap's error for an empty file
        raise CheckpointError(f"{file} is not a GGUF file ({error})") from error


def _read_header(cursor: Cursor) -> Header:
    file = cursor.file
    if cursor.data[: len(MAGIC)] != MAGIC:
        raise CheckpointError(f"{file} is not a GGUF file: it begins with {cursor.data[: len(MAGIC)]!r}")
    cursor.skip(len(MAGIC))
    version = cursor.number("I")
    if version not in VERSIONS:
        what = "written for big-endian machines" if version & 0xFFFF == 0 else f"of version {version}"
        raise CheckpointError(
            f"{file} is a GGUF file {what}; expected version 2 or 3, little-endian: convert it again with llama.cpp"
        )
    tensor_count, value_count = cursor.number("Q"), cursor.number("Q")
    values: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text()
        if key in values:
            raise CheckpointError(f"{file} is corrupt: its header sets {key} twice")
        values[key] = cursor.value(cursor.number("I"))
    entries = [_entry(cursor) for _ in range(tensor_count)]
    return Header(values, _placed(cursor, entries, _alignment(file, values)))


def _entry(cursor: Cursor) -> tuple[str, str, tuple[int, ...], int]:
    """Read the name, type, shape and offset of one tensor. ggml stores the innermost dimension first."""
    name, count = cursor.text(), cursor.number("I")
    if not 0 < count <= MAX_DIMENSIONS:
        raise CheckpointError(f"{cursor.file} is corrupt: tensor {name} has {count} dimensions")
    shape = cursor.scalars("Q", count)[::-1]
    kind = cursor.number("I")
    return name, TYPE_NAMES.get(kind, f"number {kind}"), shape, cursor.number("Q")


def _alignment(file: Path, values: Metadata) -> int:
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{file} is corrupt: general.alignment is {alignment!r}; expected a power of two")
    return alignment


def _placed(
    cursor: Cursor, entries: list[tuple[str, str, tuple[int, ...], int]], alignment: int
) -> list[tuple[str, str, tuple[int, ...], int]]:
    """Return the entries with offsets from the start of the file. As in ggml, tensors lie in order and without gaps."""
    file, length = cursor.file, len(cursor.data)
    start = cursor.at + -cursor.at % alignment
    placed, names, end = [], set(), 0
    for name, kind, shape, offset in entries:
        if name in names:
            raise CheckpointError(f"{file} is corrupt: its header names tensor {name} twice")
        if offset != end:
            raise CheckpointError(f"{file} is corrupt: tensor {name} lies at byte {offset} of the data, not at {end}")
        nbytes = _nbytes(file, name, kind, shape)
        if start + offset + nbytes > length:
            raise CheckpointError(
                f"{file} is truncated: tensor {name} reaches to byte {start + offset + nbytes}, the file has {length}; "
                f"download or write it again"
            )
        placed.append((name, kind, shape, start + offset))
        names.add(name)
        end += nbytes + -nbytes % alignment
    return placed


def _nbytes(file: Path, name: str, kind: str, shape: tuple[int, ...]) -> int:
    if kind in PLAIN:
        return math.prod(shape) * DTYPES[PLAIN[kind]].itemsize
    if kind != "Q8_0":
        raise CheckpointError(
            f"{file}: tensor {name} is of type {kind}; expected {', '.join(PLAIN)} or Q8_0: "
            f"convert a less quantized file of this model"
        )
    if len(shape) != 2 or shape[1] % BLOCK:
        raise CheckpointError(
            f"{file} is corrupt: tensor {name} of Q8_0 is {list(shape)}; expected rows of a multiple of {BLOCK}"
        )
    return math.prod(shape) // BLOCK * Q8_0.itemsize
