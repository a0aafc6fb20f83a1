"""Sources: from a folder or a Hub id to a mapping of tensor name → lazy tensor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.config import parse_config, read_json
from converter.checkpoint.folder import read_folder
from converter.checkpoint.hub import fetch, is_hub_id
from converter.checkpoint.tensor import LazyTensor
from converter.errors import CheckpointError
from reference.config import GPT2Config

__all__ = ["Checkpoint", "LazyTensor", "open_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A GPT-2 checkpoint as its files describe it, before any weight is accounted for.

    Attributes:
        name: the folder's name, or ``user/model@commit`` for a Hub model: the same wherever it lies.
        folder: where its files are.
        weight_file: the file that holds the weights, or indexes their shards.
        config: the architecture.
        config_values: ``config.json`` as it stands.
        tensors: every tensor of the source by its name there.
    """

    name: str
    folder: Path
    weight_file: str
    config: GPT2Config
    config_values: dict[str, Any]
    tensors: dict[str, LazyTensor]


def open_checkpoint(source: str | os.PathLike[str], bars: bool = False) -> Checkpoint:
    """Open a Hugging Face folder, or a Hub id such as ``openai-community/gpt2`` or ``user/model@revision``.

    What exists on this machine is never looked up on the network.

    Args:
        bars: let a download show its progress on standard error.

    Raises:
        ConfigError: it is not a GPT-2, or one with parts that GPT-2 does not have.
        CheckpointError: it does not exist, is incomplete or damaged.
    """
    folder = Path(source)
    try:
        exists, name = folder.exists(), folder.resolve().name
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, links in a circle
        raise CheckpointError(f"{os.fspath(source)!r} cannot be a folder ({error})") from error
    if not exists:
        if not is_hub_id(os.fspath(source)):
            raise CheckpointError(
                f"there is no folder {source}; expected a Hugging Face model folder, "
                f"or a Hub id such as openai-community/gpt2"
            )
        folder, name = fetch(os.fspath(source), bars)
    if not folder.is_dir():
        raise CheckpointError(f"{source} is a file; expected the folder that holds it with its config.json")
    try:
        if not any(folder.iterdir()):
            raise CheckpointError(
                f"{source} is empty; expected a Hugging Face model folder with config.json and weights"
            )
        values = read_json(folder / "config.json")
        config = parse_config(values, folder / "config.json")
        weight_file, tensors = read_folder(folder)
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error
    return Checkpoint(name, folder, weight_file, config, values, tensors)
