"""Read GGUF files of a GPT-2, as llama.cpp's converter writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.checkpoint.gguf_header import BLOCK, MAGIC, PLAIN, Q8_0, Header, Metadata, read_header
from converter.checkpoint.gguf_tokenizer import SPECIAL_TOKENS, no_tokenizer, write_tokenizer
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Format, Source
from converter.checkpoint.tensor import Computed, LazyTensor
from converter.errors import CheckpointError
from converter.files import starts_with

if TYPE_CHECKING:
    pass

ARCHITECTURE = "gpt2"

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
    why_not = no_tokenizer(header.values)
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


FORMAT = Format("GGUF", lambda path: starts_with(path, MAGIC), read)
