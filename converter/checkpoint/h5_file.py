"""Keras' HDF5 files, ``tf_model.h5``, as transformers before 5 wrote them with TFGPT2LMHeadModel and TFGPT2Model.

A dataset without chunks or compression lies in the file as one range of bytes; h5py says where, and reads no weights.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from converter.checkpoint.tensor import DTYPES, LazyTensor
from converter.errors import CheckpointError

MAGIC = b"\x89HDF\r\n\x1a\n"

# What h5py raises for a damaged file, depending on the place.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)

# numpy's name for a dataset's type → a key of DTYPES; bfloat16 is none of numpy's and of none that Keras wrote.
DTYPE_NAMES = {dtype.str: name for name, dtype in DTYPES.items() if name != "bfloat16"}

# What Keras calls a module's parameters → what PyTorch does.
EMBEDDING = {"weight": "weight", "embeddings": "weight"}  # until and since transformers 4.25
NORM = {"gamma": "weight", "beta": "bias"}
CONV1D = {"weight": "weight", "bias": "bias"}  # [in, out], as in PyTorch; the bias is [1, out]

MODULES = {
    "wte": EMBEDDING,
    "wpe": EMBEDDING,
    "h.{i}.ln_1": NORM,
    "h.{i}.attn.c_attn": CONV1D,
    "h.{i}.attn.c_proj": CONV1D,
    "h.{i}.ln_2": NORM,
    "h.{i}.mlp.c_fc": CONV1D,
    "h.{i}.mlp.c_proj": CONV1D,
    "ln_f": NORM,
}

# Behind the layer's own prefix, joined with points.
NAMES = {f"{module}.{leaf}": f"{module}.{name}" for module, leaves in MODULES.items() for leaf, name in leaves.items()}
ROWS = frozenset(f"{module}.bias" for module, leaves in MODULES.items() if leaves is CONV1D)

_LAYER = re.compile(r"^h_\._(0|[1-9][0-9]*)/")


def read(file: Path) -> dict[str, LazyTensor]:
    """Every tensor of ``file`` by Hugging Face's name, or its own where GPT-2 has no such tensor.

    Raises:
        CheckpointError: h5py is not installed, or the file is truncated, damaged, compressed, or of no usable type.
    """
    h5py = _library(file)
    found: list[tuple[str, Any]] = []
    tensors: dict[str, LazyTensor] = {}

    def visit(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            found.append((name, entry))

    try:
        with h5py.File(file, "r", locking="best-effort") as opened:  # not every file system can lock
            opened.visititems(visit)  # hard links only: it never leaves the file
            for name, dataset in found:
                key = hf_name(name)
                if key in tensors:
                    raise CheckpointError(f"{file} holds {key} twice: as {tensors[key].name} and as {name}")
                tensors[key] = _locate(file, name, dataset)
    except CheckpointError:
        raise
    except DAMAGE as error:
        raise CheckpointError(f"{file} is truncated or corrupt ({error}); download or save it again") from error
    if not tensors:
        raise CheckpointError(f"{file} holds no tensors; expected a tf_model.h5 that save_pretrained wrote")
    return tensors


def hf_name(path: str) -> str:
    """Hugging Face's name of ``transformer/…/transformer/h_._0/ln_1/gamma:0``; other paths stay as they are.

    What stands before the last ``transformer/`` is the names of the Keras layer and model, which differ from file to
    file, and which the files of a sharded model leave out.
    """
    pattern, layer = _pattern(path)
    return NAMES[pattern].replace("{i}", layer) if pattern in NAMES else path


def _pattern(path: str) -> tuple[str, str]:
    """A key of ``NAMES``, if the path is of GPT-2, and the layer's number."""
    own = path.removesuffix(":0").rpartition("transformer/")[2]
    match = _LAYER.match(own)
    return _LAYER.sub("h.{i}/", own).replace("/", "."), match[1] if match else ""


def _library(file: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise CheckpointError(
            f"{file} is an HDF5 file, and h5py, which reads them, is not installed; pip install 'gpt2onnx[sources]'"
        ) from error
    return h5py


def _locate(file: Path, name: str, dataset: Any) -> LazyTensor:
    """A dataset as a byte range."""
    shape, offset, dtype = dataset.shape, dataset.id.get_offset(), dataset.dtype.str
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(
            f"{file}: tensor {name} is of type {dtype}, which no GPT-2 is saved in; save the weights as float32"
        )
    # Without an offset: in chunks, which is how compression stores it, in another file, or never written.
    if shape is None or offset is None:
        layout = "in chunks or compressed" if shape and dataset.chunks else "elsewhere than in one range of the file"
        raise CheckpointError(f"{file}: tensor {name} is stored {layout}; save it again with save_pretrained")
    tensor = LazyTensor(name, DTYPE_NAMES[dtype], tuple(map(int, shape)), file, int(offset))
    if dataset.id.get_storage_size() != tensor.nbytes or tensor.offset + tensor.nbytes > file.stat().st_size:
        raise CheckpointError(f"{file} is truncated or corrupt: tensor {name} reaches past its end")
    return _squeezed(tensor) if _pattern(name)[0] in ROWS else tensor


def _squeezed(bias: LazyTensor) -> LazyTensor:
    """The bias of Keras' Conv1D, [1, out], as PyTorch's, [out]."""
    if len(bias.shape) != 2 or bias.shape[0] != 1:
        raise CheckpointError(f"{bias.file}: tensor {bias.name} is {list(bias.shape)}; expected [1, out]")
    return bias.reshaped(math.prod(bias.shape))
