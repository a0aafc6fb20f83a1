"""Write safetensors files: the data file that ONNX initializers point into by byte offset, and weights for other
programs.

Bytes of the right type are moved by the kernel and never enter this process; narrower ones are widened a piece at a
time. While that goes on, one pass over the source looks for NaN and infinity.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from converter.checkpoint.tensor import DTYPES, LazyTensor, to_float32
from converter.errors import CheckpointError

# The format's names of types, in the order in which the safetensors library lays tensors out.
DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "uint8": "U8"}

# What the files of transformers have among their metadata.
METADATA = {"format": "pt"}

# One request to the kernel: large enough to cost nothing, small enough for a progress bar to move.
COPY_BYTES = 64 * 1024 * 1024

# One read where the kernel cannot copy from file to file.
READ_BYTES = 1024 * 1024

# Blocks of the file systems that share them between files (btrfs, XFS): they can where source and target lie alike.
BLOCK_BYTES = 4096

# safetensors wants its header padded to this.
HEADER_ALIGNMENT = 8

SCAN_THREADS = 2

# What a kernel or file system answers that cannot copy from this file to that one.
NO_KERNEL_COPY = (errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)

Progress = Callable[[int], None]  # told how many bytes were written, or looked at, each time

# Work, for who waits: to write a byte takes about four times as long as to look at one.
SCAN_EFFORT, WRITE_EFFORT = 1, 4


@dataclass(frozen=True)
class Spec:
    """The type and shape of a tensor in the file; ``dtype`` is a key of ``DTYPES``."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return the bytes that the tensor takes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Plan:
    """The layout of a data file: its header, and the offset and length of each tensor, in the file's order."""

    header: bytes
    places: Mapping[str, tuple[int, int]]
    specs: Mapping[str, Spec]

    @property
    def nbytes(self) -> int:
        """Return the length of the whole file."""
        return len(self.header) + sum(length for _, length in self.places.values())


def plan(
    weights: Mapping[str, LazyTensor], metadata: Mapping[str, str] = METADATA, *, dtype: str | None = "float32"
) -> Plan:
    """Lay ``weights`` out in one type, or each in its own.

    As float32, a source that the safetensors library wrote is copied in long runs, and the header is padded until the
    first weight keeps its place within a block of the file system. With each weight in its own type (None) the file is
    the one that the library would write, and nothing in it depends on where the source had its weights.
    """
    specs = {name: Spec(dtype or weight.dtype, weight.shape) for name, weight in weights.items()}
    return lay_out(specs, metadata, weights[min(weights)].offset if dtype == "float32" else None)


def lay_out(specs: Mapping[str, Spec], metadata: Mapping[str, str] = METADATA, near: int | None = None) -> Plan:
    """Lay tensors out as the safetensors library does: by type, then by name.

    Args:
        near: an offset whose place within a block the first tensor should have.
    """
    order, names = tuple(DTYPE_NAMES), sorted(specs)
    names.sort(key=lambda name: order.index(specs[name].dtype))
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    ranges, end = {}, 0
    for name in names:
        begin, end = end, end + specs[name].nbytes
        ranges[name] = (begin, end - begin)
        entries[name] = {
            "dtype": DTYPE_NAMES[specs[name].dtype], "shape": list(specs[name].shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(entries, separators=(",", ":")).encode()
    start = 8 + len(text)
    if near is not None:
        start += (near - start) % (HEADER_ALIGNMENT if near % HEADER_ALIGNMENT else BLOCK_BYTES)
    start += -start % HEADER_ALIGNMENT
    header = (start - 8).to_bytes(8, "little") + text.ljust(start - 8)
    places = {name: (start + begin, length) for name, (begin, length) in ranges.items()}
    return Plan(header, places, {name: specs[name] for name in names})


class Counter:
    """Adds up work of several kinds, and tells ``progress`` how much is done and how much there is.

    Args:
        progress: told both, by any thread.
    """

    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self.progress, self.total = progress, 0
        self.done, self.lock = 0.0, threading.Lock()

    def part(self, nbytes: int, effort: float) -> Progress:
        """Add a kind of work: ``nbytes`` that take ``effort`` each. Return a function that is told of bytes as they are
        done.
        """
        self.total += round(nbytes * effort)

        def advance(count: int) -> None:
            with self.lock:
                self.done += count * effort
                if self.progress is not None:
                    self.progress(round(self.done), self.total)

        return advance

    def scan(self, weights: Mapping[str, LazyTensor], wanted: bool = True) -> Progress | None:
        """Add the reading of every weight, if it is wanted; see ``part``."""
        return self.part(sum(weight.nbytes for weight in weights.values()), SCAN_EFFORT) if wanted else None


def write(
    file: Path, layout: Plan, weights: Mapping[str, LazyTensor], scan: Progress | None, progress: Progress
) -> None:
    """Write the data file, and check every number on the way unless ``scan`` is None.

    Args:
        scan: told how many bytes were looked at.
        progress: told how many were written.

    Raises:
        CheckpointError: a weight holds NaN or infinity, or a source file is cut short meanwhile.
        OSError: the file cannot be written.
    """
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        scans = [pool.submit(refuse_nonfinite, weight, scan) for weight in weights.values()] if scan else []
        try:
            with file.open("wb", buffering=0) as target:
                _write_all(target, layout.header)
                progress(len(layout.header))
                for name, spec in layout.specs.items():
                    _write_tensor(target, weights[name], spec.dtype, progress)
            for done in scans:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def refuse_nonfinite(tensor: LazyTensor, progress: Progress | None = None) -> None:
    """Check that every number of a weight is finite. A weight that is seen transposed is read as the file has it.

    Raises:
        CheckpointError: one of them is NaN or infinite.
    """
    stored = tensor.transposed()
    tensor = stored if stored.in_file else tensor
    before = 0
    for chunk in tensor.chunks():
        finite = np.isfinite(to_float32(chunk, tensor.dtype))
        if not finite.all():
            at = np.unravel_index(before + int(finite.argmin()), tensor.shape)
            value = to_float32(chunk, tensor.dtype)[int(finite.argmin())]
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} holds {value} at {[int(i) for i in at]}; the checkpoint is "
                f"damaged or its training diverged (--no-scan converts it all the same)"
            )
        before += len(chunk)
        if progress is not None:
            progress(chunk.nbytes)


def scan_all(weights: Mapping[str, LazyTensor], progress: Progress | None) -> None:
    """Call ``refuse_nonfinite`` for every weight."""
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        for _ in pool.map(lambda weight: refuse_nonfinite(weight, progress), weights.values()):
            pass


def write_pieces(file: Path, layout: Plan, pieces: Iterable[tuple[str, np.ndarray]], progress: Progress) -> None:
    """Write a data file from pieces of tensors. The pieces of one tensor come in order; tensors may alternate.

    Raises:
        OSError: the file cannot be written.
    """
    position = {name: begin for name, (begin, _) in layout.places.items()}
    with file.open("wb", buffering=0) as target:
        _write_all(target, layout.header)
        progress(len(layout.header))
        for name, piece in pieces:
            target.seek(position[name])
            _write_all(target, piece.tobytes())
            position[name] += piece.nbytes
            progress(piece.nbytes)
    assert all(position[name] == begin + length for name, (begin, length) in layout.places.items())


def _write_tensor(target: FileIO, tensor: LazyTensor, dtype: str, progress: Progress) -> None:
    if tensor.in_file and tensor.dtype == dtype:
        with tensor.file.open("rb", buffering=0) as source:
            copy(source, target, tensor.offset, tensor.nbytes, progress)
        return
    for chunk in tensor.chunks():
        data = converted(chunk, tensor, dtype).tobytes()
        _write_all(target, data)
        progress(len(data))


def converted(chunk: np.ndarray, tensor: LazyTensor, dtype: str) -> np.ndarray:
    """Return a chunk of a tensor in another type.

    Raises:
        CheckpointError: float16 does not hold one of its numbers.
    """
    if tensor.dtype == dtype:
        return chunk
    wide = to_float32(chunk, tensor.dtype)
    if dtype == "float32":
        return wide
    with np.errstate(over="ignore"):
        narrow = wide.astype(DTYPES[dtype])
    lost = np.isinf(narrow) & np.isfinite(wide)
    if lost.any():
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} holds {wide[int(lost.argmax())]:g}, which is beyond float16; "
            f"choose another precision than fp16"
        )
    return narrow


def copy(source: FileIO, target: FileIO, start: int, nbytes: int, progress: Progress) -> None:
    """Append ``nbytes`` from byte ``start`` of one file to another, inside the kernel where it can.

    Raises:
        CheckpointError: the source ends before.
        OSError: the target cannot be written.
    """
    for piece in _pieces(start, target.tell(), nbytes):
        moved = _kernel_copy(source, target, start, piece)
        source.seek(start + moved)
        while moved < piece:
            data = source.read(min(READ_BYTES, piece - moved))
            if not data:
                raise CheckpointError(f"{source.name!s} ends too early: it changed or is truncated")
            _write_all(target, data)
            moved += len(data)
        start += piece
        progress(piece)


def _pieces(start: int, position: int, nbytes: int) -> Iterator[int]:
    """Yield lengths that add up to ``nbytes``. If source and target have the same place in a block of the file system,
    whole blocks get a piece of their own, so that the file system can share them.
    """
    head = min(-start % BLOCK_BYTES, nbytes) if (start - position) % BLOCK_BYTES == 0 else 0
    tail = (nbytes - head) % BLOCK_BYTES
    whole = nbytes - head - tail
    yield from (piece for piece in (head, *[COPY_BYTES] * (whole // COPY_BYTES), whole % COPY_BYTES, tail) if piece)


def _kernel_copy(source: FileIO, target: FileIO, start: int, nbytes: int) -> int:
    """Copy in the kernel; return how many bytes it copied, fewer than asked for if it cannot go on."""
    done = 0
    while done < nbytes and hasattr(os, "copy_file_range"):
        try:
            moved = os.copy_file_range(source.fileno(), target.fileno(), nbytes - done, start + done)
        except OSError as error:
            if error.errno not in NO_KERNEL_COPY:
                raise
            break
        if not moved:
            break
        done += moved
    return done


def _write_all(target: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]
