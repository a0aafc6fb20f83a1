"""Read the from-scratch model's format: a state dict of ``GPT2(config)`` (reference/model.py) in a safetensors file.

The file's metadata holds the config. Names are Hugging Face's without a prefix. Projections are ``nn.Linear``: [out,
in].
"""

from __future__ import annotations

import json
from pathlib import Path

from converter.checkpoint import huggingface, safetensors_file
from converter.checkpoint.folder import choose_weight_file
from converter.checkpoint.linear import PROJECTIONS
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Format, Source
from converter.errors import CheckpointError
from reference.config import STATE_FILE, STATE_KEY

NAME = "from-scratch reference"


def recognises(path: Path) -> bool:
    """Tell whether this is such a file, or a folder with one and without Hugging Face's weights."""
    if not path.is_dir():
        return _has_key(path)
    return _has_key(path / STATE_FILE) and choose_weight_file([entry.name for entry in path.iterdir()]) is None


def read(path: Path, options: SourceOptions) -> Source:
    """Read a file, or the folder that ``--to reference`` wrote.

    Raises:
        CheckpointError: it is damaged, or its metadata holds no config.
    """
    del options
    file = path / STATE_FILE if path.is_dir() else path
    metadata, found = safetensors_file.read_with_metadata(file)
    try:
        values = json.loads(metadata[STATE_KEY])
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: {STATE_KEY} in its metadata is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: {STATE_KEY} in its metadata is not a JSON object; expected a config")
    tensors = {name: tensor.transposed() if name.endswith(PROJECTIONS) else tensor for name, tensor in found.items()}
    return Source(NAME, file.name, values, tensors, huggingface.companions(file.parent))


def _has_key(file: Path) -> bool:
    """Tell whether a file's header has the key. Other faults are left for others to report."""
    try:
        if huggingface.reader_of(file) is not safetensors_file.read:
            return False
        header, _ = safetensors_file.read_header(file)
    except (CheckpointError, OSError):
        return False
    metadata = header.get("__metadata__")
    return isinstance(metadata, dict) and STATE_KEY in metadata


FORMAT = Format("a state dict of reference/model.py", recognises, read)
