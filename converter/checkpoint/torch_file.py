"""PyTorch's ``.bin``/``.pt`` files, read without torch and without executing anything.

A state dict is a pickle that names storages; this reader follows it with an unpickler that knows seven globals and
builds nothing but (storage, offset, shape, strides), and turns those into byte ranges of the file. Both containers
are understood: the zip archive of torch >= 1.6 and the older one of consecutive pickles. Formats: ``_save`` and
``_legacy_save`` in torch/serialization.py.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from converter.checkpoint.tensor import DTYPES, LazyTensor, row_major
from converter.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
LOCAL_HEADER = struct.Struct("<4s2B4HL2L2H")  # a zip entry's own header, before its name and extra field

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
}  # fmt: skip


# Named tuples, because a pickle cannot alter one once it is made.
class Storage(NamedTuple):
    """What a pickle says of a storage; ``key`` leads to its bytes."""

    key: str
    dtype: str
    size: int  # elements


class TensorRef(NamedTuple):
    """What a pickle says of a tensor; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class StorageType(NamedTuple):
    """Stands for ``torch.FloatStorage`` and its kin."""

    dtype: str


def read(file: Path) -> dict[str, LazyTensor]:
    """Every tensor of the state dict in ``file``; no tensor's bytes are read.

    Raises:
        CheckpointError: the file is truncated, compressed, no plain state dict, or asks for code to be run.
    """
    with file.open("rb") as opened:
        if opened.read(4) == b"PK\x03\x04":
            opened.seek(0)
            state, starts = _read_zip(file, opened)
        else:
            opened.seek(0)
            state, starts = _read_legacy(file, opened)
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} holds a {type(state).__name__}; expected a state dict, tensor name → tensor")
    return {name: _locate(file, name, value, starts) for name, value in state.items()}


def _locate(file: Path, name: object, ref: object, starts: dict[str, tuple[int, int]]) -> LazyTensor:
    """A reference as a byte range; ``starts`` gives each storage's first byte and length."""
    if not isinstance(name, str) or not isinstance(ref, TensorRef):
        raise CheckpointError(
            f"{file} holds {name!r}, which is not a tensor; expected a state dict, as model.state_dict() gives it"
        )
    item = DTYPES[ref.storage.dtype].itemsize
    if ref.storage.key not in starts:
        raise CheckpointError(f"{file} is corrupt: the storage of tensor {name} is missing")
    start, length = starts[ref.storage.key]
    last = ref.offset + sum((n - 1) * step for n, step in zip(ref.shape, ref.strides, strict=True))
    if all(ref.shape) and (last + 1) * item > length:
        raise CheckpointError(f"{file} is truncated: tensor {name} reaches past the end of its storage")
    contiguous = all(n <= 1 or a == b for n, a, b in zip(ref.shape, ref.strides, row_major(ref.shape), strict=True))
    strides = None if contiguous else ref.strides
    return LazyTensor(name, ref.storage.dtype, ref.shape, file, start + ref.offset * item, strides)


def _read_zip(file: Path, opened: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    try:
        with zipfile.ZipFile(opened) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(
                    f"{file} is a zip archive without a data.pkl; expected a file written by torch.save"
                )
            root = pickles[0].removesuffix("data.pkl")
            if root + "byteorder" in entries and archive.read(root + "byteorder") != b"little":
                raise CheckpointError(
                    f"{file} was written on a big-endian machine; save it again on a little-endian one"
                )
            state = _unpickle(file, io.BytesIO(archive.read(pickles[0])))
            starts = {
                name.removeprefix(root + "data/"): (_data_start(file, opened, entry), entry.file_size)
                for name, entry in entries.items()
                if name.startswith(root + "data/")
            }
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{file} is truncated or corrupt ({error}); download or save it again") from error
    return state, starts


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
    return entry.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes


def _read_legacy(file: Path, opened: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    if _unpickle(file, opened) != LEGACY_MAGIC or _unpickle(file, opened) != LEGACY_PROTOCOL:
        raise CheckpointError(f"{file} is not a file written by torch.save")
    system = _unpickle(file, opened)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{file} was written on a big-endian machine; save it again on a little-endian one")
    unpickler = _Unpickler(file, opened)
    state = unpickler.load_checked()
    keys = _unpickle(file, opened)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in unpickler.storages for key in keys):
        raise CheckpointError(f"{file} is corrupt: it names storages that no tensor uses")
    starts = {}
    end = file.stat().st_size
    for key in keys:
        storage = unpickler.storages[key]
        count = int.from_bytes(opened.read(8), "little", signed=True)
        start, length = opened.tell(), storage.size * DTYPES[storage.dtype].itemsize
        if count != storage.size or start + length > end:
            raise CheckpointError(f"{file} is truncated within storage {key}; download or save it again")
        starts[key] = (start, length)
        opened.seek(length, io.SEEK_CUR)
    return state, starts


def _unpickle(file: Path, opened: BinaryIO) -> Any:
    return _Unpickler(file, opened).load_checked()


def _rebuild_tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: object) -> TensorRef:
    """Stands for ``torch._utils._rebuild_tensor_v2``."""
    ref = TensorRef(storage, offset, tuple(shape), tuple(strides))
    sound = isinstance(storage, Storage) and len(ref.shape) == len(ref.strides)
    if not sound or not all(type(n) is int and n >= 0 for n in (offset, *ref.shape, *ref.strides)):
        raise pickle.UnpicklingError("a tensor with a malformed offset, shape or stride")
    return ref


def _rebuild_parameter(data: TensorRef, *_: object) -> TensorRef:
    """Stands for ``torch._utils._rebuild_parameter``."""
    return data


# All that a state dict needs; any other global is refused before it is looked up.
GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): StorageType(dtype) for name, dtype in STORAGES.items()},
}

# What a damaged pickle makes the machine stumble over, besides its own UnpicklingError.
DAMAGE = (EOFError, pickle.UnpicklingError, AttributeError, IndexError, KeyError, TypeError, ValueError,
          MemoryError, OverflowError, RecursionError)  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Path, opened: BinaryIO) -> None:
        super().__init__(opened, encoding="utf-8")
        self.file = file
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in GLOBALS:
            raise CheckpointError(
                f"{self.file} asks to import {module}.{name}; only plain tensors are read, nothing is executed: "
                f"save model.state_dict() instead"
            )
        return GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage_type, key, _location, size, *_ = pid
        if kind != "storage" or not isinstance(storage_type, StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("a persistent id that is not a storage")
        if type(size) is not int or size < 0:
            raise pickle.UnpicklingError("a storage with a malformed size")
        return self.storages.setdefault(key, Storage(key, storage_type.dtype, size))

    def load_checked(self) -> Any:
        try:
            return self.load()
        except CheckpointError:
            raise
        except DAMAGE as error:
            raise CheckpointError(
                f"{self.file} is not a file written by torch.save, or is truncated or corrupt ({error}); "
                f"download or save it again"
            ) from error
