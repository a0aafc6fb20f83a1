"""Read GGUF files of a GPT-2, as llama.cpp's converter writes them.

The header is read here and not through the ``gguf`` package. That package builds several arrays for each of the hundred
thousand texts of a vocabulary, and a damaged count can keep it busy forever. Here every claim of the header is compared
with the file's length before it is believed. The format is described in ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Format, Source
from converter.checkpoint.tensor import DTYPES, Computed, LazyTensor
from converter.errors import CheckpointError, TokenizerError
from converter.files import starts_with

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 counts in 32 bits
ARCHITECTURE = "gpt2"
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

# llama.cpp's name → Hugging Face's. In INSIDE also: whether llama.cpp stores the weight transposed, as [out, in].
OUTSIDE = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head"}
INSIDE = {
    "attn_norm": ("ln_1", False),
    "attn_qkv": ("attn.c_attn", True),
    "attn_output": ("attn.c_proj", True),
    "ffn_norm": ("ln_2", False),
    "ffn_up": ("mlp.c_fc", True),
    "ffn_down": ("mlp.c_proj", True),
}
FOREIGN = re.compile(r"(?:^|\.)(?:wte|wpe|ln_f|lm_head|h\.\d+)\.")  # names in a file that llama.cpp did not write
NAME = re.compile(r"(?:blk\.(0|[1-9][0-9]*)\.)?([a-z_]+)\.(weight|bias)")

# Key after ``gpt2.`` → key of config.json. All are required.
SIZES = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
}
EPSILON = "attention.layer_norm_epsilon"

# Beginnings of keys that llama.cpp ignores in a gpt2, or compares with the tensors, as we do.
WITHOUT_EFFECT = ("rope.", "vocab_size", "tensor_data_layout")

# Values of tokenizer.ggml.pre that split words as GPT-2 does. Files from before May 2024 have none.
GPT2_WORDS = ("gpt-2", "phi-2", None)
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5  # in tokenizer.ggml.token_type
SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

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


def read(file: Path, options: SourceOptions) -> Source:
    """Read a file of architecture ``gpt2``. Only its header is read.

    Raises:
        CheckpointError: it is damaged, not a GPT-2, one of several parts, or of an unsupported quantization.
    """
    header = read_header(file)
    _refuse_others(file, header.values)
    tensors = _tensors(file, header)
    values = _config(file, header.values, tensors, options)
    notes = []
    if options.activation is None:
        notes.append(
            f"{file.name} does not record its activation; gelu_new was taken, which is what llama.cpp computes"
        )
    why_not = _no_tokenizer(header.values)
    if why_not is not None:
        notes.append(f"{file.name} gives no tokenizer: {why_not}")
    tokenizer = None if why_not is not None else partial(write_tokenizer, file, header.values)
    return Source("GGUF", file.name, values, tensors, tokenizer=tokenizer, notes=tuple(notes))


def _refuse_others(file: Path, values: Metadata) -> None:
    """Refuse a file that is not one whole GPT-2. The error names the key."""
    architecture = values.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise CheckpointError(f"{file} is not a GPT-2: general.architecture is {architecture!r}; expected 'gpt2'")
    if values.get("general.type", "model") != "model":
        raise CheckpointError(f"{file} is not a model: general.type is {values['general.type']!r}")
    if values.get("split.count") not in (None, 0, 1):
        raise CheckpointError(
            f"{file} is one of {values['split.count']} parts; put them together with: llama-gguf-split --merge"
        )


def _config(file: Path, values: Metadata, tensors: Mapping[str, LazyTensor], options: SourceOptions) -> dict[str, Any]:
    """Return the ``config.json`` that the metadata describes."""
    left = {key.removeprefix("gpt2."): value for key, value in values.items() if key.startswith("gpt2.")}
    sizes = {name: _take(file, left, key, int) for key, name in SIZES.items()}
    epsilon = _take(file, left, EPSILON, float)
    width = sizes["n_embd"] // max(1, sizes["n_head"])
    implied = {"attention.head_count_kv": sizes["n_head"]}
    implied |= {f"attention.{part}_length": width for part in ("key", "value")}
    for key, value in left.items():
        if implied.get(key) != value and not key.startswith(WITHOUT_EFFECT):
            raise CheckpointError(f"{file} sets gpt2.{key} to {value!r}, which GPT-2 does not have")
    if "wte.weight" not in tensors:
        raise CheckpointError(f"{file} has no tensor token_embd.weight; it is incomplete: write it again")
    ids = {f"{name}_id": values.get(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL_TOKENS.items()}
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": tensors["wte.weight"].shape[0],
        **sizes,
        "layer_norm_epsilon": float(str(np.float32(epsilon))),  # undoes the rounding to 32 bits: 1e-05
        "activation_function": options.activation or "gelu_new",
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        **{key: ids[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if type(ids[key]) is int},
    }


def _take(file: Path, left: dict[str, Any], key: str, kind: type) -> Any:
    value = left.pop(key, None)
    if type(value) is not kind:
        raise CheckpointError(f"{file}: gpt2.{key} is {value!r}; expected {'a number' if kind is float else 'a count'}")
    return value


def _tensors(file: Path, header: Header) -> dict[str, LazyTensor]:
    """Return Hugging Face's name → tensor, in Hugging Face's layout. An unknown name stays as it is."""
    tensors: dict[str, LazyTensor] = {}
    for name, kind, shape, offset in header.tensors:
        target, flipped = _target(name)
        if target == name and FOREIGN.search(name):
            raise CheckpointError(f"{file}: tensor {name} has a name of Hugging Face's; expected llama.cpp's")
        if kind == "Q8_0":
            tensors[target] = _dequantized(name, file, shape, offset, flipped)
        else:
            tensor = LazyTensor(name, PLAIN[kind], shape, file, offset)
            tensors[target] = tensor.transposed() if flipped and len(shape) == 2 else tensor
    return tensors


def _target(name: str) -> tuple[str, bool]:
    found = NAME.fullmatch(name)
    layer, module, part = found.groups() if found else (None, "", "")
    if layer is None:
        return (f"{OUTSIDE[module]}.{part}" if module in OUTSIDE else name), False
    if module not in INSIDE:
        return name, False
    target, flipped = INSIDE[module]
    return f"h.{layer}.{target}.{part}", flipped and part == "weight"


def _dequantized(name: str, file: Path, shape: tuple[int, ...], offset: int, flipped: bool) -> Computed:
    """Return a Q8_0 tensor as scale times quants. This is exact in float32: 11 bits times 8 bits take 19."""
    blocks = (shape[0], shape[1] // BLOCK)

    def mapped() -> np.ndarray:
        try:
            return np.memmap(file, Q8_0, mode="r", offset=offset, shape=blocks) if math.prod(blocks) else EMPTY
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file}: tensor {name} cannot be mapped ({error})") from error

    def rows(first: int, end: int) -> np.ndarray:
        return _floats(mapped()[first:end])

    def columns(first: int, end: int) -> np.ndarray:
        begin = first // BLOCK
        wide = _floats(mapped()[:, begin : -(-end // BLOCK)])
        return wide[:, first - begin * BLOCK : end - begin * BLOCK].T

    compute, seen = (columns, shape[::-1]) if flipped else (rows, shape)
    return Computed(name, "float32", seen, file, offset, compute=compute)


EMPTY = np.empty((0, 0), Q8_0)


def _floats(blocks: np.ndarray) -> np.ndarray:
    """Return ``[rows, blocks]`` of Q8_0 as ``[rows, blocks · 32]`` float32."""
    values = blocks["quants"].astype(np.float32)
    values *= blocks["scale"].astype(np.float32)[..., None]
    return values.reshape(len(blocks), -1)


def _no_tokenizer(values: Metadata) -> str | None:
    """Return why the metadata gives no tokenizer of GPT-2's kind; None if it gives one."""
    model, words = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if model != "gpt2":
        return f"tokenizer.ggml.model is {model!r}; expected 'gpt2'"
    if words not in GPT2_WORDS:
        return f"tokenizer.ggml.pre is {words!r}, which does not split words as GPT-2 does"
    missing = [key for key in ("tokens", "merges") if f"tokenizer.ggml.{key}" not in values]
    return f"tokenizer.ggml.{missing[0]} is missing" if missing else None


def write_tokenizer(file: Path, values: Metadata, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into a folder, made from the metadata.

    Raises:
        TokenizerError: the metadata is damaged.
    """
    from converter.files import write_json

    try:
        tokenizer = _tokenizer(values)
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"{file}: the tokenizer in its header cannot be used ({error})") from error
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    named = {name: _special(values, key) for name, key in SPECIAL_TOKENS.items()}
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": values["gpt2.context_length"]}
    settings |= {name: token for name, token in named.items() if token is not None}
    template = values.get("tokenizer.chat_template")
    write_json(folder / "tokenizer_config.json", settings | ({"chat_template": template} if template else {}))


def _tokenizer(values: Metadata) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, merges = (_texts(values, f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
    kinds = values.get("tokenizer.ggml.token_type", (1,) * len(tokens))
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, {len(set(tokens))} of them different, and {len(kinds)} types")
    vocabulary = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
    pairs = [_pair(merge) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    prefix_space = bool(values.get("tokenizer.ggml.add_space_prefix", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _post_processor(values)
    added = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    for token, kind in added:  # in the order of their ids
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL)])
    return tokenizer


def _post_processor(values: Metadata) -> Any:
    """Return the post-processor, which adds tokens before and after every text. Most GPT-2s add none."""
    from tokenizers import processors

    byte_level = processors.ByteLevel(trim_offsets=False)
    asked = {key: values.get(f"tokenizer.ggml.add_{key}_token") is True for key in ("bos", "eos")}
    tokens = {key: _special(values, key) for key in asked if asked[key]}
    if not any(tokens.values()):
        return byte_level
    before, after = ([token] if (token := tokens.get(key)) else [] for key in ("bos", "eos"))
    ids = {token: values[f"tokenizer.ggml.{key}_token_id"] for key, token in tokens.items() if token}
    template = processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", "$B", *after], special_tokens=list(ids.items())
    )
    return processors.Sequence([byte_level, template])


def _texts(values: Metadata, key: str) -> tuple[str, ...]:
    found = values[key]
    if not isinstance(found, tuple) or not all(isinstance(text, str) for text in found):
        raise TypeError(f"{key} is not an array of texts")
    return found


def _pair(merge: str) -> tuple[str, str]:
    """Split a merge such as ``Ġ t`` into its halves. In a byte-level vocabulary neither half holds a space."""
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise ValueError(f"the merge {merge!r} is not a pair")
    return left, right


def _special(values: Metadata, key: str) -> str | None:
    """Return the token that ``tokenizer.ggml.<key>_token_id`` names; None if there is none."""
    tokens, index = values.get("tokenizer.ggml.tokens", ()), values.get(f"tokenizer.ggml.{key}_token_id")
    return tokens[index] if type(index) is int and 0 <= index < len(tokens) else None


FORMAT = Format("GGUF", lambda path: starts_with(path, MAGIC), read)
