"""Read the safetensors format: an 8-byte length, a JSON header, then the bytes of the tensors.

The header is read here and not through the library, because the library does not say where in the file a tensor lies.
The checks are as strict as https://github.com/huggingface/safetensors#format asks: no gaps, no overlaps, no duplicate
names.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from converter.checkpoint.tensor import DTYPES, LazyTensor, refuse_shape
from converter.errors import CheckpointError
from reference.config import STATE_KEY

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit

DTYPE_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip


def read(file: Path) -> dict[str, LazyTensor]:
    """Return every tensor of ``file``, which must be in Hugging Face's layout. Only its header is read.

    Raises:
        CheckpointError: the file is truncated or in another layout, or its header breaks a rule of the format.
    """
    metadata, tensors = read_with_metadata(file)
    if STATE_KEY in metadata:
        raise CheckpointError(
            f"{file} is a state dict of reference/model.py and not Hugging Face's, which has its projections "
            f"transposed; take it out of the folder, or name the file itself"
        )
    return tensors


def read_with_metadata(file: Path) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Return the header's metadata, and every tensor by name.

    Raises:
        CheckpointError: the file is truncated or its header breaks a rule of the format.
    """
    header, data_start = read_header(file)
    metadata = header.pop("__metadata__", None)
    data_bytes = file.stat().st_size - data_start
    found = [_entry(file, name, entry, data_start) for name, entry in header.items()]
    end = 0
    for tensor, begin, stop in sorted(found, key=lambda item: item[1:]):
        if begin != end:
            fault = "overlaps its neighbour" if begin < end else "leaves a gap before it"
            raise CheckpointError(f"{file}: corrupt header: tensor {tensor.name} {fault} at byte {begin} of the data")
        end = stop
    if end != data_bytes:
        raise CheckpointError(
            f"{file} is {'truncated' if end > data_bytes else 'too long'}: its header describes {end} bytes of "
            f"tensors, the file holds {data_bytes}; download or save it again"
        )
    return metadata if isinstance(metadata, dict) else {}, {tensor.name: tensor for tensor, _, _ in found}


def other_names(file: Path) -> dict[str, str]:
    """Return the names that ``save_model`` left out → the name that it kept for the same tensor.

    All of the metadata is taken for such names: what is none names no tensor of the file.
    """
    metadata = read_header(file)[0].get("__metadata__")
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    return {name: kept for name, kept in pairs if isinstance(kept, str)}


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the parsed header, and the offset in bytes at which the data begins."""
    with file.open("rb") as opened:
        prefix = opened.read(LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < LENGTH_BYTES or length > MAX_HEADER_BYTES:
            raise CheckpointError(f"{file} is not a safetensors file, or a corrupt one: its header length is {length}")
        text = opened.read(length)
    if len(text) < length:
        raise CheckpointError(
            f"{file} is truncated: its header should be {length} bytes and ends after {len(text)}; "
            f"download or save it again"
        )
    try:
        header = json.loads(text, object_pairs_hook=lambda pairs: _unique(file, pairs))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is corrupt: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} is corrupt: its header is not a JSON object")
    return header, LENGTH_BYTES + length


def _unique(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise CheckpointError(f"{file} is corrupt: its header names {twice} twice")
    return values


def _entry(file: Path, name: str, entry: Any, data_start: int) -> tuple[LazyTensor, int, int]:
    """Return a header entry as a tensor, with the begin and end of its bytes, counted from the start of the data."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = isinstance(dtype, str) and isinstance(shape, list)
        sound = sound and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{file} is corrupt: the header's entry of tensor {name} is malformed")
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(
            f"{file}: tensor {name} is of type {dtype}, which no GPT-2 is trained in; "
            f"save the weights as F32, F16 or BF16"
        )
    dtype = DTYPE_NAMES[dtype]
    refuse_shape(file, name, shape)
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise CheckpointError(f"{file} is corrupt: tensor {name} of {dtype} {shape} cannot take {end - begin} bytes")
    return LazyTensor(name, dtype, tuple(shape), file, data_start + begin), begin, end
