"""Writes ``tf_model.h5`` as Keras does."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
from safetensors.numpy import load_file

CONV1D = ("c_attn.bias", "c_proj.bias", "c_fc.bias")
NORM = {"weight": "gamma", "bias": "beta"}

MODEL = "transformer/tfgp_t2lm_head_model/"  # the Keras layer, and what older versions of it call the model


def keras_name(name: str, embedding: str = "embeddings") -> str:
    *path, leaf = name.removeprefix("transformer.").split(".")
    if path[-1] in ("wte", "wpe"):
        leaf = embedding
    elif path[-1].startswith("ln_"):
        leaf = NORM[leaf]
    if path[0] == "h":
        path[:2] = [f"h_._{path[1]}"]
    return "transformer/" + "/".join((*path, leaf)) + ":0"


def as_keras(source: Path, folder: Path, embedding: str = "embeddings") -> Path:
    """What TFGPT2LMHeadModel.save_pretrained writes of a checkpoint."""
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    with h5py.File(folder / "tf_model.h5", "w") as file:
        file.attrs["layer_names"] = [b"transformer"]
        file.create_group("top_level_model_weights")
        for name, value in load_file(source / "model.safetensors").items():
            path = MODEL + keras_name(name, embedding)
            file.create_dataset(path, data=value[None] if name.endswith(CONV1D) else value)
    return folder
