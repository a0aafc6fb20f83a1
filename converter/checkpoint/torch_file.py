"""Read PyTorch's ``.bin`` and ``.pt`` files without torch, and without executing anything.

``read`` returns a state dict, plain or one that a trainer put beside its own state. ``load`` returns any structure
around the tensors, as training checkpoints have it.

A state dict is a pickle: a program for a stack machine, which names storages. The machine here knows only the few
instructions that plain tensors need, and it can call nothing. It collects (storage, offset, shape, strides), which
become byte ranges of the file. Both containers are read: the zip archive of torch >= 1.6, and the older one of
consecutive pickles (``_save`` and ``_legacy_save`` in torch/serialization.py).
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from converter.checkpoint.pickle_machine import Inert, Machine, StateMachine, TensorRef, TrainingMachine
from converter.checkpoint.tensor import DTYPES, LazyTensor, refuse_shape, row_major
from converter.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

# First bytes of a file → bytes that follow soon: the name of the archive's pickle, or the legacy magic number.
BEGINNINGS = {b"PK\x03\x04": b"/data.pkl", b"\x80": LEGACY_MAGIC.to_bytes(10, "little")}

LOCAL_HEADER = struct.Struct("<4s2B4HL2L2H")  # a zip entry's own header, before its name and extra field

# The errors that zipfile raises for a damaged archive.
ZIP_DAMAGE = (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error, OSError, EOFError, ValueError)

# The most bytes of a tensor that repeats a part of its storage. Otherwise a few bytes could stand for exabytes.
MOST_EXPANDED = 1 << 30

# Where trainers keep the weights beside a state of their own: Lightning, many scripts, nanoGPT and fairseq, DeepSpeed.
NESTED = ("state_dict", "model_state_dict", "model", "module")

# The longest path to a tensor in a nested checkpoint. It also limits the depth of nesting.
LONGEST_PATH = 250


def read(file: Path) -> dict[str, LazyTensor]:
    """Return every tensor of the state dict in ``file``. The tensors' bytes are not read.

    Raises:
        CheckpointError: the file is truncated or compressed, holds no state dict or several, or asks to run code.
    """
    state, starts = _read_file(file, StateMachine)
    if not isinstance(state, dict):
        found = state.kind.name if isinstance(state, Inert) else type(state).__name__
        raise CheckpointError(f"{file} holds a {found}; expected a state dict, tensor name → tensor")
    return {name: _locate(file, name, value, starts) for name, value in _state_dict(file, state).items()}


def _state_dict(file: Path, state: dict[Any, Any]) -> dict[Any, Any]:
    """Return the state dict that a file holds: what is in it, or one level down."""
    inner = {key: value for key, value in state.items() if isinstance(value, dict) and _has_tensors(value)}
    known = next((key for key in NESTED if key in inner), None)
    if known is not None:
        return inner[known]
    if not inner or _has_tensors(state):
        return state
    if len(inner) > 1:
        names = ", ".join(repr(key)[:40] for key in inner)
        raise CheckpointError(
            f"{file} holds several state dicts ({names}); save the one that is meant by itself: "
            f"torch.save(torch.load(…)[{next(iter(inner))!r}], …)"
        )
    return next(iter(inner.values()))


def _has_tensors(value: dict[Any, Any]) -> bool:
    return any(isinstance(item, TensorRef) and isinstance(key, str) for key, item in value.items())


def load(file: Path) -> Any:
    """Return the whole structure in ``file``: dicts, lists, tuples, numbers and texts, with lazy tensors at any depth.

    The name of a tensor is its path: the keys, joined by dots. Objects of a few known classes become ``Inert``.

    Raises:
        CheckpointError: the file is truncated, compressed or nested too deep, or asks to run code.
    """
    state, starts = _read_file(file, TrainingMachine)
    return _Resolver(file, starts).resolve(state, "")


def parts(file: Path) -> dict[Any, Any]:
    """Return the dict that ``load`` gives; an empty one if the file holds something else or is damaged."""
    try:
        loaded = load(file) if is_torch_file(file) else None
    except (CheckpointError, OSError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def is_torch_file(path: Path) -> bool:
    """Tell whether ``torch.save`` may have written a file: a zip archive with ``data.pkl``, or consecutive pickles."""
    if not path.is_file():
        return False
    with path.open("rb") as opened:
        head = opened.read(1000)
    return any(head.startswith(start) and content in head for start, content in BEGINNINGS.items())


def _read_file(file: Path, machine: type[Machine]) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Return what ``machine`` finds in the pickle, and the start and length of each storage."""
    with file.open("rb") as opened:
        zipped = opened.read(4) == b"PK\x03\x04"
        opened.seek(0)
        return (_read_zip if zipped else _read_legacy)(file, opened, machine(file))


class _Resolver:
    """Replaces references in nested containers with lazy tensors; lists and dicts are changed in place.

    Each container is visited once, because a small pickle can describe one that holds itself a billion times over.
    """

    def __init__(self, file: Path, starts: dict[str, tuple[int, int]]) -> None:
        self.file = file
        self.starts = starts
        self.seen: dict[int, tuple[Any, Any]] = {}  # by id; the original is kept, so that its id is not used again

    def resolve(self, value: Any, path: str) -> Any:
        """Return ``value`` with lazy tensors. ``path`` holds the keys that lead to it, with a dot before each."""
        if isinstance(value, TensorRef):
            return _locate(self.file, path.removeprefix("."), value, self.starts)
        if type(value) not in (dict, list, tuple, Inert):
            return value
        if id(value) in self.seen:
            return self.seen[id(value)][1]
        if len(path) > LONGEST_PATH:
            raise CheckpointError(f"{self.file} is nested deeper than any checkpoint: {path[1:40]}…")
        self.seen[id(value)] = value, value
        if isinstance(value, tuple):
            resolved = list(value)
            self._fill(resolved, enumerate(value), path)
            self.seen[id(value)] = value, tuple(resolved)
        elif isinstance(value, list):
            self._fill(value, enumerate(value), path)
        else:
            attributes = value.attributes if isinstance(value, Inert) else value
            self._fill(attributes, list(attributes.items()), path)
        return self.seen[id(value)][1]

    def _fill(self, target: Any, items: Iterable[tuple[Any, Any]], path: str) -> None:
        for key, item in items:
            target[key] = self.resolve(item, f"{path}.{key}")


def _locate(file: Path, name: object, ref: object, starts: dict[str, tuple[int, int]]) -> LazyTensor:
    """Return a reference as a byte range. ``starts`` holds the first byte and the length of each storage."""
    if not isinstance(name, str) or not isinstance(ref, TensorRef):
        raise CheckpointError(
            f"{file} holds {name!r}, which is not a tensor; expected a state dict, as model.state_dict() gives it"
        )
    refuse_shape(file, name, ref.shape)
    item = DTYPES[ref.storage.dtype].itemsize
    if ref.storage.key not in starts:
        raise CheckpointError(f"{file} is corrupt: the storage of tensor {name} is missing")
    start, length = starts[ref.storage.key]
    last = ref.offset + sum((n - 1) * step for n, step in zip(ref.shape, ref.strides, strict=True))
    if all(ref.shape) and (last + 1) * item > length:
        raise CheckpointError(f"{file} is truncated: tensor {name} reaches past the end of its storage")
    if math.prod(ref.shape) * item > max(length, MOST_EXPANDED):
        raise CheckpointError(
            f"{file}: tensor {name} {list(ref.shape)} repeats the {length} bytes of its storage; save a copy of it, "
            f"made with .contiguous()"
        )
    contiguous = all(n <= 1 or a == b for n, a, b in zip(ref.shape, ref.strides, row_major(ref.shape), strict=True))
    strides = None if contiguous else ref.strides
    return LazyTensor(name, ref.storage.dtype, ref.shape, file, start + ref.offset * item, strides)


def _read_zip(file: Path, opened: BinaryIO, machine: Machine) -> tuple[Any, dict[str, tuple[int, int]]]:
    try:
        with zipfile.ZipFile(opened) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            _refuse_outside(file, entries)
            pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(
                    f"{file} is a zip archive without a data.pkl; expected a file written by torch.save"
                )
            root = pickles[0].removesuffix("data.pkl")
            starts = {
                name.removeprefix(root): (_data_start(file, opened, entry), entry.file_size)
                for name, entry in entries.items()
                if name.startswith(root)
            }
            if root + "byteorder" in entries and archive.read(root + "byteorder") != b"little":
                raise CheckpointError(
                    f"{file} was written on a big-endian machine; save it again on a little-endian one"
                )
            state = machine.run(io.BytesIO(archive.read(pickles[0])))
    except CheckpointError:
        raise
    except ZIP_DAMAGE as error:
        raise CheckpointError(f"{file} is truncated or corrupt ({error}); download or save it again") from error
    return state, {name.removeprefix("data/"): where for name, where in starts.items() if name.startswith("data/")}


def _refuse_outside(file: Path, names: Iterable[str]) -> None:
    """Refuse an archive with a member outside it. Nothing is unpacked here, but such a file was made to do harm."""
    for name in names:
        first, *_ = parts = re.split(r"[/\\]", name)
        if not first or ".." in parts or re.fullmatch("[A-Za-z]:", first):
            raise CheckpointError(
                f"{file} holds {name[:80]!r}, which leads out of the archive; torch.save never writes that: "
                f"do not trust this file"
            )


def _data_start(file: Path, opened: BinaryIO, entry: zipfile.ZipInfo) -> int:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(
            f"{file}: {entry.filename} is compressed; torch.save never does that, save the weights again"
        )
    opened.seek(entry.header_offset)
    header = opened.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{file} is corrupt: {entry.filename} has no header")
    name_bytes, extra_bytes = LOCAL_HEADER.unpack(header)[-2:]
    start = entry.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
    if start + max(entry.file_size, entry.compress_size) > file.stat().st_size:
        raise CheckpointError(
            f"{file} is truncated or corrupt: {entry.filename} reaches past its end; download or save it again"
        )
    return start


def _read_legacy(file: Path, opened: BinaryIO, machine: Machine) -> tuple[Any, dict[str, tuple[int, int]]]:
    if Machine(file).run(opened) != LEGACY_MAGIC or Machine(file).run(opened) != LEGACY_PROTOCOL:
        raise CheckpointError(f"{file} is not a file written by torch.save")
    system = Machine(file).run(opened)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{file} was written on a big-endian machine; save it again on a little-endian one")
    state = machine.run(opened)
    keys = Machine(file).run(opened)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in machine.storages for key in keys):
        raise CheckpointError(f"{file} is corrupt: it names storages that no tensor uses")
    starts = {}
    end = file.stat().st_size
    for key in keys:
        storage = machine.storages[key]
        count = int.from_bytes(opened.read(8), "little", signed=True)
        start, length = opened.tell(), storage.size * DTYPES[storage.dtype].itemsize
        if count != storage.size or start + length > end:
            raise CheckpointError(f"{file} is truncated within storage {key}; download or save it again")
        starts[key] = (start, length)
        opened.seek(length, io.SEEK_CUR)
    return state, starts
