"""Read Keras' HDF5 files, ``tf_model.h5``.

transformers before version 5 wrote them with TFGPT2LMHeadModel and TFGPT2Model. A dataset without chunks or compression
lies in the file as one range of bytes. h5py says where; it reads no weights.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from converter.checkpoint.tensor import DTYPES, LazyTensor
from converter.errors import CheckpointError

MAGIC = b"\x89HDF\r\n\x1a\n"

# The errors that h5py raises for a damaged file; which one depends on the place of the damage.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)

# numpy's name of a type → a key of DTYPES. numpy has no bfloat16, and Keras never wrote it.
DTYPE_NAMES = {dtype.str: name for name, dtype in DTYPES.items() if name != "bfloat16"}

# Keras' name of a parameter → PyTorch's.
EMBEDDING = {"weight": "weight", "embeddings": "weight"}  # the name before transformers 4.25, and since
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

# Keras' name after the prefix of its layer, joined with dots → Hugging Face's name.
NAMES = {f"{module}.{leaf}": f"{module}.{name}" for module, leaves in MODULES.items() for leaf, name in leaves.items()}
ROWS = frozenset(f"{module}.bias" for module, leaves in MODULES.items() if leaves is CONV1D)

_LAYER = re.compile(r"^h_\._(0|[1-9][0-9]*)/")


def read(file: Path) -> dict[str, LazyTensor]:
    """Return every tensor of ``file`` by Hugging Face's name. A tensor that GPT-2 does not have keeps its own name.

    Raises:
        CheckpointError: h5py is not installed, or the file is truncated, damaged, compressed, or of an unusable type.
    """
    h5py = _library(file)
    found: list[tuple[str, Any]] = []
    tensors: dict[str, LazyTensor] = {}

    def visit(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            found.append((name, entry))

    try:
        with h5py.File(file, "r", locking="best-effort") as opened:  # not every file system has locks
            opened.visititems(visit)  # follows hard links only, which never leave the file
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
    """Return Hugging Face's name for ``transformer/…/transformer/h_._0/ln_1/gamma:0``; other paths stay as they are.

    The part before the last ``transformer/`` holds the names of the Keras layer and model. They differ from file to
    file. The files of a sharded model leave them out.
    """
    pattern, layer = _pattern(path)
    return NAMES[pattern].replace("{i}", layer) if pattern in NAMES else path


def _pattern(path: str) -> tuple[str, str]:
    """Return a path with ``{i}`` for the layer, as in ``NAMES``, and the layer's number.

    The number is empty if there is none.
    """
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
    """Return a dataset as a byte range of the file."""
    shape, offset, dtype = dataset.shape, dataset.id.get_offset(), dataset.dtype.str
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(
            f"{file}: tensor {name} is of type {dtype}, which no GPT-2 is saved in; save the weights as float32"
        )
    # A dataset has no offset if it is in chunks (as when compressed), in another file, or was never written.
    if shape is None or offset is None:
        layout = "in chunks or compressed" if shape and dataset.chunks else "elsewhere than in one range of the file"
        raise CheckpointError(f"{file}: tensor {name} is stored {layout}; save it again with save_pretrained")
    tensor = LazyTensor(name, DTYPE_NAMES[dtype], tuple(map(int, shape)), file, int(offset))
    if dataset.id.get_storage_size() != tensor.nbytes or tensor.offset + tensor.nbytes > file.stat().st_size:
        raise CheckpointError(f"{file} is truncated or corrupt: tensor {name} reaches past its end")
    return _squeezed(tensor) if _pattern(name)[0] in ROWS else tensor


def _squeezed(bias: LazyTensor) -> LazyTensor:
    """Return the bias of Keras' Conv1D, [1, out], as PyTorch's, [out]."""
    if len(bias.shape) != 2 or bias.shape[0] != 1:
        raise CheckpointError(f"{bias.file}: tensor {bias.name} is {list(bias.shape)}; expected [1, out]")
    return bias.reshaped(math.prod(bias.shape))
