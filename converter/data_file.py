"""Safetensors files: the data file that ONNX initializers point into by byte offset, and weights for other programs.

Bytes of the right type are moved by the kernel and never enter this process; narrower ones are widened a piece at a
time. While that goes on, one pass over the source looks for NaN and infinity.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from converter.checkpoint import LazyTensor
from converter.checkpoint.tensor import DTYPES, to_float32
from converter.errors import CheckpointError

# The format's names of types, in the order in which the safetensors library lays tensors out.
DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

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

Progress = Callable[[int], None]  # told how many bytes were written, each time


@dataclass(frozen=True)
class Plan:
    """The layout of a data file: the bytes of its header, and each weight's offset and length, in the file's order.

    ``widened`` says that every weight becomes float32; else each keeps its own type.
    """

    header: bytes
    places: Mapping[str, tuple[int, int]]
    widened: bool

    @property
    def nbytes(self) -> int:
        """The length of the whole file."""
        return len(self.header) + sum(length for _, length in self.places.values())


def plan(weights: Mapping[str, LazyTensor], metadata: Mapping[str, str] = METADATA, *, widen: bool = True) -> Plan:
    """Lay ``weights`` out as the safetensors library does: by type, then by name.

    As float32, a source that it wrote is copied in long runs, and the header is padded until the first weight keeps
    its place within a block of the file system. With each weight in its own type (``widen=False``) the file is the one
    that the library would write, and nothing in it depends on where the source had its weights.
    """
    dtypes = {name: "float32" if widen else weight.dtype for name, weight in weights.items()}
    order, names = tuple(DTYPE_NAMES), sorted(weights)
    names.sort(key=lambda name: order.index(dtypes[name]))
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    ranges, end = {}, 0
    for name in names:
        begin, end = end, end + weights[name].size * DTYPES[dtypes[name]].itemsize
        ranges[name] = (begin, end - begin)
        entries[name] = {
            "dtype": DTYPE_NAMES[dtypes[name]], "shape": list(weights[name].shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(entries, separators=(",", ":")).encode()
    start = 8 + len(text)
    if widen:
        wanted = weights[names[0]].offset
        start += (wanted - start) % (HEADER_ALIGNMENT if wanted % HEADER_ALIGNMENT else BLOCK_BYTES)
    start += -start % HEADER_ALIGNMENT
    header = (start - 8).to_bytes(8, "little") + text.ljust(start - 8)
    return Plan(header, {name: (start + begin, length) for name, (begin, length) in ranges.items()}, widen)


def counter(progress: Callable[[int, int], None] | None, total: int) -> Progress:
    """Adds up what was written, and tells ``progress`` the sum and ``total``."""
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        if progress is not None:
            progress(written, total)

    return advance


def write(file: Path, layout: Plan, weights: Mapping[str, LazyTensor], scan: bool, progress: Progress) -> None:
    """Write the data file, looking at every number on the way if ``scan`` says so.

    Raises:
        CheckpointError: a weight holds NaN or infinity, or a source file is cut short meanwhile.
        OSError: the file cannot be written.
    """
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        scans = [pool.submit(refuse_nonfinite, weight) for weight in weights.values()] if scan else []
        try:
            with file.open("wb", buffering=0) as target:
                _write_all(target, layout.header)
                for name in layout.places:
                    _write_tensor(target, weights[name], layout.widened, progress)
            for done in scans:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def refuse_nonfinite(tensor: LazyTensor) -> None:
    """Look at every number of a weight; one that is seen transposed is looked at, and spoken of, as the file has it.

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


def scan_all(weights: Mapping[str, LazyTensor]) -> None:
    """``refuse_nonfinite`` for every weight."""
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        for _ in pool.map(refuse_nonfinite, weights.values()):
            pass


def _write_tensor(target: FileIO, tensor: LazyTensor, widen: bool, progress: Progress) -> None:
    if tensor.in_file and (tensor.dtype == "float32" or not widen):
        with tensor.file.open("rb", buffering=0) as source:
            copy(source, target, tensor.offset, tensor.nbytes, progress)
        return
    for chunk in tensor.chunks():
        data = (to_float32(chunk, tensor.dtype) if widen else chunk).tobytes()
        _write_all(target, data)
        progress(len(data))


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
    """Lengths that add up to ``nbytes``; where source and target lie alike in their blocks, whole blocks are asked for
    apart from the rest, so that the file system can share them."""
    head = min(-start % BLOCK_BYTES, nbytes) if (start - position) % BLOCK_BYTES == 0 else 0
    tail = (nbytes - head) % BLOCK_BYTES
    whole = nbytes - head - tail
    yield from (piece for piece in (head, *[COPY_BYTES] * (whole // COPY_BYTES), whole % COPY_BYTES, tail) if piece)


def _kernel_copy(source: FileIO, target: FileIO, start: int, nbytes: int) -> int:
    """How many bytes the kernel copied; fewer than asked where it cannot go on."""
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
