"""Read llm.c's ``.bin``: a header of 256 int32, then all parameters without names, each stacked over the layers.

``write_model`` in llm.c's train_gpt2.py and ``gpt2_write_to_checkpoint`` in its train_gpt2.cu write it. Projections are
[out, in]. The embedding is padded with rows that are no tokens. The head is tied. GELU is the tanh approximation.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from converter.checkpoint.linear import PROJECTIONS, config_values
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Format, Source
from converter.checkpoint.tensor import DTYPES, LazyTensor
from converter.errors import CheckpointError
from converter.files import starts_with

NAME = "llm.c"
HEADER_BYTES = 256 * 4
FIELDS = struct.Struct("<8i")
MAGIC = 20240326

# Version → type of the parameters. Versions 2 and 4 existed for a few days only, and 2 had two orders.
VERSIONS = {1: "float32", 3: "float32", 5: "bfloat16"}
UNPADDED = 1  # the version without a padded vocabulary

# Magic number → another kind of file of llm.c.
OTHERS = {
    20240327: "llm.c's debug state (gradients and activations of one step)",
    20240328: "llm.c's tokenizer",
    20240520: "llm.c's training tokens",
    20240522: "llm.c's evaluation data",
    20240527: "llm.c's optimizer state",
    20240801: "llm.c's training tokens for Llama 3",
    20240803: "a Llama 3 of llm.c",
}


class Header(NamedTuple):
    """The fields of the header, in the order of the file."""

    magic: int
    version: int
    max_seq_len: int
    vocab_size: int
    num_layers: int
    num_heads: int
    channels: int
    padded_vocab_size: int


class Parameter(NamedTuple):
    """One array of the file. If ``target`` has ``{i}``, the file holds num_layers of them, one for each layer."""

    name: str  # in llm.c's ParameterTensors
    target: str  # Hugging Face's name
    shape: Callable[[Header], tuple[int, ...]]


# In the file's order.
PARAMETERS = (
    Parameter("wte", "transformer.wte.weight", lambda h: (h.padded_vocab_size, h.channels)),
    Parameter("wpe", "transformer.wpe.weight", lambda h: (h.max_seq_len, h.channels)),
    Parameter("ln1w", "transformer.h.{i}.ln_1.weight", lambda h: (h.channels,)),
    Parameter("ln1b", "transformer.h.{i}.ln_1.bias", lambda h: (h.channels,)),
    Parameter("qkvw", "transformer.h.{i}.attn.c_attn.weight", lambda h: (3 * h.channels, h.channels)),
    Parameter("qkvb", "transformer.h.{i}.attn.c_attn.bias", lambda h: (3 * h.channels,)),
    Parameter("attprojw", "transformer.h.{i}.attn.c_proj.weight", lambda h: (h.channels, h.channels)),
    Parameter("attprojb", "transformer.h.{i}.attn.c_proj.bias", lambda h: (h.channels,)),
    Parameter("ln2w", "transformer.h.{i}.ln_2.weight", lambda h: (h.channels,)),
    Parameter("ln2b", "transformer.h.{i}.ln_2.bias", lambda h: (h.channels,)),
    Parameter("fcw", "transformer.h.{i}.mlp.c_fc.weight", lambda h: (4 * h.channels, h.channels)),
    Parameter("fcb", "transformer.h.{i}.mlp.c_fc.bias", lambda h: (4 * h.channels,)),
    Parameter("fcprojw", "transformer.h.{i}.mlp.c_proj.weight", lambda h: (h.channels, 4 * h.channels)),
    Parameter("fcprojb", "transformer.h.{i}.mlp.c_proj.bias", lambda h: (h.channels,)),
    Parameter("lnfw", "transformer.ln_f.weight", lambda h: (h.channels,)),
    Parameter("lnfb", "transformer.ln_f.bias", lambda h: (h.channels,)),
)


def recognises(path: Path) -> bool:
    """Tell whether a file begins with a magic number of llm.c."""
    return starts_with(path, *(struct.pack("<i", magic) for magic in (MAGIC, *OTHERS)))


def read(file: Path, options: SourceOptions) -> Source:
    """Read a model of llm.c.

    Raises:
        CheckpointError: it is another file of llm.c, of an unknown version, or of another size than its header says.
    """
    del options
    header = read_header(file)
    tensors = dict(_tensors(file, header))
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"].rows(header.vocab_size)
    sizes = {
        "vocab_size": header.vocab_size,
        "n_positions": header.max_seq_len,
        "n_embd": header.channels,
        "n_layer": header.num_layers,
        "n_head": header.num_heads,
    }
    values = config_values(sizes, activation_function="gelu_new", tie_word_embeddings=True)
    return Source(NAME, file.name, values, tensors)


def read_header(file: Path) -> Header:
    """Return the header of ``file``, after comparing it with the file's size.

    Raises:
        CheckpointError: see ``read``.
    """
    with file.open("rb") as opened:
        data = opened.read(HEADER_BYTES)
    if len(data) < HEADER_BYTES:
        raise CheckpointError(f"{file} is truncated: it has {len(data)} bytes; llm.c's header alone has {HEADER_BYTES}")
    header = Header(*FIELDS.unpack_from(data))
    if header.magic in OTHERS:
        raise CheckpointError(f"{file} is {OTHERS[header.magic]}; expected a GPT-2 model, such as model_00019560.bin")
    if header.version not in VERSIONS:
        known = ", ".join(map(str, VERSIONS))
        raise CheckpointError(
            f"{file} is of llm.c's version {header.version}; expected one of {known}: write it again with llm.c"
        )
    if header.version == UNPADDED:
        header = header._replace(padded_vocab_size=header.vocab_size)
    for name, value in list(header._asdict().items())[2:]:
        if value < 1:
            raise CheckpointError(f"{file} is corrupt: its header has {value} for {name}; expected a positive integer")
    if header.padded_vocab_size < header.vocab_size:
        raise CheckpointError(
            f"{file} is corrupt: its padded_vocab_size {header.padded_vocab_size} is below "
            f"its vocab_size {header.vocab_size}"
        )
    _check_size(file, header)
    return header


def _check_size(file: Path, header: Header) -> None:
    item = DTYPES[VERSIONS[header.version]].itemsize
    elements = sum(math.prod(p.shape(header)) * _copies(p, header) for p in PARAMETERS)
    expected, found = HEADER_BYTES + elements * item, file.stat().st_size
    if found != expected:
        state = "truncated" if found < expected else "corrupt"
        raise CheckpointError(f"{file} is {state}: it has {found} bytes; its header asks for {expected}")


def _copies(parameter: Parameter, header: Header) -> int:
    return header.num_layers if "{i}" in parameter.target else 1


def _tensors(file: Path, header: Header) -> Iterator[tuple[str, LazyTensor]]:
    """Yield Hugging Face's name and the tensor, with projections transposed. The embedding is still padded."""
    dtype = VERSIONS[header.version]
    offset = HEADER_BYTES
    for name, target, shape in PARAMETERS:
        for i in range(header.num_layers if "{i}" in target else 1):
            own_name = f"{name}[{i}]" if "{i}" in target else name
            tensor = LazyTensor(own_name, dtype, shape(header), file, offset)
            offset += tensor.nbytes
            yield target.format(i=i), tensor.transposed() if target.endswith(PROJECTIONS) else tensor


FORMAT = Format("an llm.c model", recognises, read)
