"""Writes ``flax_model.msgpack`` as Flax does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from safetensors.numpy import load_file

KERNELS = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "lm_head.weight")


def array(value: np.ndarray, dtype: str | None = None) -> msgpack.ExtType:
    """As flax.serialization packs one."""
    return msgpack.ExtType(1, msgpack.packb((value.shape, dtype or value.dtype.name, value.tobytes())))


def write(file: Path, tree: Any) -> Path:
    file.write_bytes(msgpack.packb(tree, strict_types=True))
    return file


def nested(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """A state dict as the parameters of transformers' FlaxGPT2LMHeadModel."""
    tree: dict[str, Any] = {}
    for name, value in state.items():
        *path, leaf = name.split(".")
        if name.endswith(KERNELS):
            leaf, value = "kernel", value.T
        elif leaf == "weight":
            leaf = "embedding" if path[-1] in ("wte", "wpe") else "scale"
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[leaf] = array(np.ascontiguousarray(value))
    return tree


def as_flax(source: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    write(folder / "flax_model.msgpack", nested(load_file(source / "model.safetensors")))
    return folder
