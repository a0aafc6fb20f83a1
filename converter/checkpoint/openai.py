"""Read OpenAI's format, as in github.com/openai/gpt-2: a folder with ``hparams.json`` and a TensorFlow checkpoint.

TensorFlow is not needed. The index is a table in LevelDB's format (tensorflow/core/lib/io/format.h): blocks of sorted
keys and values. It maps a tensor's name to a BundleEntryProto, which says where in a data file the tensor lies
(tensorflow/core/protobuf/tensor_bundle.proto). Every block has a checksum, which is verified.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from converter.checkpoint.config import ALIASES
from converter.checkpoint.folder import choose_weight_file
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Format, Source, tied
from converter.checkpoint.tensor import LazyTensor, refuse_shape
from converter.errors import CheckpointError, ConfigError
from converter.files import read_json, refuse_lfs_pointer

HPARAMS, CONFIG, STATE, INDEX = "hparams.json", "config.json", "checkpoint", ".index"

FOOTER_BYTES = 48
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
TRAILER_BYTES = 5  # after a block: its compression and its checksum
COMPRESSIONS = {0: "uncompressed", 1: "snappy"}
MAX_INDEX_BYTES = 1 << 20  # the largest GPT-2, with its optimizer's state, takes a tenth
MAX_NAME_BYTES = 512

# enum DataType of tensorflow/core/framework/types.proto.
DTYPE_NAMES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64", 10: "bool",
    14: "bfloat16", 19: "float16",
}  # fmt: skip

# Name in hparams.json → name in config.json.
HPARAMETERS = {
    "n_vocab": "vocab_size", "n_ctx": "n_positions", "n_embd": "n_embd", "n_head": "n_head", "n_layer": "n_layer",
}  # fmt: skip

# The values that are the same for every model of gpt-2's model.py.
FIXED = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip

GPT2_VOCABULARY, END_OF_TEXT = 50257, 50256

# File name in a Hugging Face folder → file name in OpenAI's.
COMPANIONS = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}
LICENSES = ("LICENSE*", "NOTICE*")

EMBEDDING = {"": "weight"}
NORM = {"/g": "weight", "/b": "bias"}
CONV1D = {"/w": "weight", "/b": "bias"}  # a convolution of width 1, [1, in, out], as PyTorch's [in, out]

MODULES = {
    "model/wte": ("wte", EMBEDDING),
    "model/wpe": ("wpe", EMBEDDING),
    "model/h{i}/ln_1": ("h.{i}.ln_1", NORM),
    "model/h{i}/attn/c_attn": ("h.{i}.attn.c_attn", CONV1D),
    "model/h{i}/attn/c_proj": ("h.{i}.attn.c_proj", CONV1D),
    "model/h{i}/ln_2": ("h.{i}.ln_2", NORM),
    "model/h{i}/mlp/c_fc": ("h.{i}.mlp.c_fc", CONV1D),
    "model/h{i}/mlp/c_proj": ("h.{i}.mlp.c_proj", CONV1D),
    "model/ln_f": ("ln_f", NORM),
}
NAMES = {own + leaf: f"{module}.{name}" for own, (module, leaves) in MODULES.items() for leaf, name in leaves.items()}
CONVOLUTIONS = frozenset(own + "/w" for own, (_, leaves) in MODULES.items() if leaves is CONV1D)

_LAYER = re.compile(r"^model/h(0|[1-9][0-9]*)/")
_STATE = re.compile(r'^\s*model_checkpoint_path:\s*"([^"]+)"', re.MULTILINE)

Message = dict[int, list[int | bytes]]


class Handle(NamedTuple):
    """The place of a block in the index."""

    offset: int
    size: int


def read(path: Path, options: SourceOptions) -> Source:
    """Read the folder, or one of the checkpoints in it, named by its ``.index``.

    Raises:
        CheckpointError: a file is missing, truncated, damaged or compressed.
        ConfigError: ``hparams.json`` cannot be read, or a ``config.json`` beside it contradicts it.
    """
    del options
    folder, index = (path, choose_index(path)) if path.is_dir() else (path.parent, path)
    if not (folder / HPARAMS).is_file():
        raise CheckpointError(f"{folder} has no {HPARAMS}, which says what {index.name} holds; download it too")
    values = described(read_hparams(folder / HPARAMS), folder / CONFIG)
    return tied(Source("OpenAI", index.name, values, read_bundle(index), companions(folder)))


def recognises(path: Path) -> bool:
    """Tell whether this is a folder with hyper-parameters and an index, or the index of a TensorFlow checkpoint.

    A folder that also holds Hugging Face's weights is left to Hugging Face's reader.
    """
    if path.is_dir():
        converted = choose_weight_file([entry.name for entry in path.iterdir()])
        return (path / HPARAMS).is_file() and bool(indexes(path)) and converted is None
    return path.suffix == INDEX and path.is_file() and _footer(path).endswith(MAGIC)


def indexes(folder: Path) -> list[Path]:
    """Return the indexes in ``folder``, in alphabetical order."""
    return sorted(file for file in folder.glob(f"*{INDEX}") if file.is_file())


def choose_index(folder: Path) -> Path:
    """Return the index that the file ``checkpoint`` names; without that file, the only index.

    Raises:
        CheckpointError: it is not there, or there are several.
    """
    found, state = indexes(folder), folder / STATE
    named = _STATE.search(state.read_text(encoding="utf-8", errors="replace")) if state.is_file() else None
    if named:
        # TensorFlow writes the path where it saved, which may be on another machine.
        index = folder / (re.split(r"[/\\]", named[1])[-1] + INDEX)
        if index not in found:
            raise CheckpointError(f"{state} names {index.name}, which is missing; download it too, or name another one")
        return index
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:8])
        raise CheckpointError(f"{folder} holds several checkpoints ({names}); name one of them")
    return found[0]


def read_hparams(file: Path) -> dict[str, Any]:
    """Return ``hparams.json`` as the values of a ``config.json``.

    Raises:
        CheckpointError: one of the five numbers is missing.
        ConfigError: it is not JSON.
    """
    hparams = read_json(file)
    missing = next((name for name in HPARAMETERS if name not in hparams), None)
    if missing:
        raise CheckpointError(f"{file} has no {missing}; expected {', '.join(HPARAMETERS)}")
    values = FIXED | {name: hparams[own] for own, name in HPARAMETERS.items()}
    end = END_OF_TEXT if hparams["n_vocab"] == GPT2_VOCABULARY else None
    return values | {"bos_token_id": end, "eos_token_id": end}


def described(values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the values of ``hparams.json``, updated with those of a ``config.json`` beside it, if there is one.

    Raises:
        ConfigError: it cannot be read, or contradicts ``hparams.json``.
    """
    stated = read_json(file) if file.is_file() else {}
    for own, name in HPARAMETERS.items():
        for key in (name, *(alias for alias, known in ALIASES.items() if known == name)):
            if stated.get(key, values[name]) != values[name]:
                raise ConfigError(
                    f"{file} contradicts {HPARAMS} beside it: {key} is {stated[key]!r} and {own} is {values[name]!r}; "
                    f"remove the one that is not of this checkpoint"
                )
    return {**values, **stated}


def companions(folder: Path) -> dict[str, Path]:
    """Return the vocabulary, merges and licences, by the names that they have in a Hugging Face folder."""
    found = {name: folder / own for name, own in COMPANIONS.items() if (folder / own).is_file()}
    licences = sorted(entry for entry in folder.iterdir() if any(fnmatchcase(entry.name, glob) for glob in LICENSES))
    return found | {entry.name: entry for entry in licences if entry.is_file()}


def read_bundle(index: Path) -> dict[str, LazyTensor]:
    """Return every tensor that ``index`` names, by Hugging Face's name.

    A tensor that GPT-2 does not have keeps its own name.

    Raises:
        CheckpointError: a data file is missing or truncated, or the index is damaged.
    """
    refuse_lfs_pointer(index)
    try:
        entries = dict(read_table(index))
        header = parse(entries.pop(b""))
        if number(header, 2):
            raise CheckpointError(f"{index} was written on a big-endian machine; save it again on a little-endian one")
        shards = Shards(index, number(header, 1))
        found = [_entry(index, name.decode(), parse(entry), shards) for name, entry in entries.items()]
    except CheckpointError:  # it is a ValueError, too, and says more
        raise
    except (ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{index} is truncated or corrupt ({error}); download or save it again") from error
    return {hf_name(tensor.name): tensor for tensor in found}  # one to one: no two keys of NAMES have the same value


def hf_name(name: str) -> str:
    """Return Hugging Face's name for ``model/h0/ln_1/g``; other names stay as they are."""
    pattern, layer = _pattern(name)
    return NAMES[pattern].replace("{i}", layer) if pattern in NAMES else name


def _pattern(name: str) -> tuple[str, str]:
    """Return a name with ``{i}`` for the layer, as in ``NAMES``, and the layer's number.

    The number is empty if there is none.
    """
    match = _LAYER.match(name)
    return _LAYER.sub("model/h{i}/", name), match[1] if match else ""


class Shards:
    """The data files of a checkpoint, and their sizes."""

    def __init__(self, index: Path, count: int) -> None:
        self.prefix = str(index).removesuffix(INDEX)
        self.count = count
        self.sizes: dict[int, int] = {}

    def file(self, shard: int) -> Path:
        """Return the path of a data file.

        Raises:
            CheckpointError: it is missing, or only a Git LFS pointer.
            ValueError: the checkpoint has fewer data files.
        """
        if shard >= self.count:
            raise ValueError(f"data file {shard} of {self.count}")
        file = Path(f"{self.prefix}.data-{shard:05d}-of-{self.count:05d}")
        if shard not in self.sizes:
            if not file.is_file():
                raise CheckpointError(f"{file} is missing; {Path(self.prefix).name}{INDEX} names it, download it too")
            refuse_lfs_pointer(file)
            self.sizes[shard] = file.stat().st_size
        return file


def _entry(index: Path, name: str, entry: Message, shards: Shards) -> LazyTensor:
    """Return the tensor of a BundleEntryProto, as a byte range."""
    dtype = number(entry, 1)
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(
            f"{index}: tensor {name} is of TensorFlow's type {dtype}, which no GPT-2 is trained in; save it as float32"
        )
    if 7 in entry:
        raise CheckpointError(f"{index}: tensor {name} is partitioned into slices; save it in one piece")
    shape = tuple(number(parse(dim), 1) for dim in messages(parse(message(entry, 2)), 2))
    refuse_shape(index, name, shape)
    tensor = LazyTensor(name, DTYPE_NAMES[dtype], shape, shards.file(number(entry, 3)), number(entry, 4))
    size = number(entry, 5)
    if size != tensor.nbytes:
        raise ValueError(f"tensor {name} of {tensor.dtype} {list(shape)} cannot take {size} bytes")
    held = shards.sizes[number(entry, 3)]
    if tensor.offset + size > held:
        raise CheckpointError(
            f"{tensor.file} is truncated: tensor {name} ends at byte {tensor.offset + size}, the file at {held}; "
            f"download it again"
        )
    return _squeezed(tensor) if _pattern(name)[0] in CONVOLUTIONS else tensor


def _squeezed(weight: LazyTensor) -> LazyTensor:
    """Return the weight of a convolution of width 1, [1, in, out], as PyTorch's Conv1D, [in, out]."""
    if len(weight.shape) != 3 or weight.shape[0] != 1:
        raise CheckpointError(f"{weight.file}: tensor {weight.name} is {list(weight.shape)}; expected [1, in, out]")
    return weight.reshaped(*weight.shape[1:])


def read_table(file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table, in the order of the keys.

    Raises:
        CheckpointError: it is not a table, or is compressed.
        ValueError, IndexError: it is damaged.
    """
    if not _footer(file).endswith(MAGIC) or file.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{file} is not the index of a TensorFlow checkpoint, or truncated; download it again")
    data = file.read_bytes()
    footer = data[-FOOTER_BYTES:]
    _, at = read_handle(footer, 0)  # skips the block of filters, which checkpoints do not use
    top, _ = read_handle(footer, at)
    end, previous = 0, None
    for _, value in entries_of(block(file, data, top)):
        handle, _ = read_handle(value, 0)
        if handle.offset < end:
            raise ValueError("its blocks overlap")
        end = handle.offset + handle.size
        for key, inner in entries_of(block(file, data, handle)):
            if previous is not None and key <= previous:
                raise ValueError("its names are not in order")
            previous = key
            yield key, inner


def _footer(file: Path) -> bytes:
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - FOOTER_BYTES))
        found = opened.read(FOOTER_BYTES)
    return found if len(found) == FOOTER_BYTES else b""


def block(file: Path, data: bytes, handle: Handle) -> bytes:
    """Return the contents of a block, after verifying its checksum."""
    end = handle.offset + handle.size
    trailer = data[end : end + TRAILER_BYTES]
    if len(trailer) < TRAILER_BYTES:
        raise ValueError("a block reaches past its end")
    if unmasked(int.from_bytes(trailer[1:], "little")) != crc32c(data[handle.offset : end + 1]):
        raise ValueError("the checksum of a block is wrong")
    if trailer[0]:
        method = COMPRESSIONS.get(trailer[0], f"method {trailer[0]}")
        raise CheckpointError(f"{file} is compressed ({method}), which TensorFlow does not do for a checkpoint")
    return data[handle.offset : end]


def entries_of(contents: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield a block's keys and values. An entry says how many bytes its key shares with the key before it."""
    restarts = int.from_bytes(contents[-4:], "little")
    end = len(contents) - 4 - 4 * restarts
    if len(contents) < 4 or end < 0:
        raise ValueError("a block is too short")
    key, at = b"", 0
    while at < end:
        shared, at = varint(contents, at)
        own, at = varint(contents, at)
        size, at = varint(contents, at)
        if shared > len(key) or shared + own > MAX_NAME_BYTES or at + own + size > end:
            raise ValueError("a block has a malformed entry")
        key = key[:shared] + contents[at : at + own]
        yield key, contents[at + own : at + own + size]
        at += own + size


def read_handle(data: bytes, at: int) -> tuple[Handle, int]:
    """Read a block's place; return it, and where the next value begins."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return Handle(offset, size), at


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Read an integer of seven bits a byte; return it, and where the next value begins.

    The eighth bit is set in every byte but the last.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without end")


def parse(data: bytes) -> Message:
    """Parse a protocol buffer; return field number → its values. Only the caller knows their meaning."""
    found: Message = {}
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        value: int | bytes
        if tag & 7 == 0:
            value, at = varint(data, at)
        elif tag & 7 in WIRE_BYTES:
            size = WIRE_BYTES[tag & 7]
            if size is None:
                size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError("an entry is malformed")
        if at > len(data):
            raise ValueError("an entry ends early")
        found.setdefault(tag >> 3, []).append(value)
    return found


# Wire type → bytes of the value; None if the value begins with its length.
WIRE_BYTES = {1: 8, 2: None, 5: 4}


def number(fields: Message, field: int) -> int:
    """Return a number; 0 if it is left out."""
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise ValueError("an entry has bytes in the place of a number")
    return value


def message(fields: Message, field: int) -> bytes:
    """Return a nested message; empty if it is left out."""
    return messages(fields, field)[-1] if field in fields else b""


def messages(fields: Message, field: int) -> list[bytes]:
    """Return the nested messages of a repeated field."""
    found = [value for value in fields.get(field, []) if isinstance(value, bytes)]
    if len(found) < len(fields.get(field, [])):
        raise ValueError("an entry has a number in the place of bytes")
    return found


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Return Castagnoli's checksum, CRC-32C. Python's own libraries have only other checksums."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def unmasked(crc: int) -> int:
    """Undo LevelDB's masking of a checksum, which rotates it and adds a constant.

    Masking keeps the checksum good for data that itself holds checksums.
    """
    moved = (crc - 0xA282EAD8) & 0xFFFFFFFF
    return (moved >> 17 | moved << 15) & 0xFFFFFFFF


FORMAT = Format("an OpenAI TensorFlow checkpoint with hparams.json", recognises, read)
