"""Read a Hugging Face folder for ``GPT2.from_pretrained``, through the libraries that wrote it.

A folder with a state dict of the model here can be read too. ``converter.checkpoint`` reads the same files without
torch, and says why it refuses one. Neither reader uses the other, so that comparing them proves something.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from torch import Tensor

from reference.config import STATE_FILE, STATE_KEY, GPT2Config
from reference.errors import ConfigError, WeightsError

WRAPPERS = ("module.", "_orig_mod.", "model.", "transformer.")
BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
# Weights that are nn.Linear, [out, in], in a state dict of the model here, and Conv1D, [in, out], in Hugging Face's.
PROJECTIONS = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")

ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


def read_folder(path: str | os.PathLike[str]) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Return the architecture of a folder, and its memory-mapped weights by canonical name.

    A head that differs from ``wte.weight`` unties the config, whatever that says. A head that equals it ties the
    config, and is left out.

    Raises:
        ConfigError: there is neither a ``config.json`` of a GPT-2 nor a state dict of the model here.
        WeightsError: there are no weights, or two tensors claim one name.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        if (folder / STATE_FILE).is_file():
            return read_state(folder / STATE_FILE)
        raise ConfigError(f"{folder} has no config.json; expected a Hugging Face folder, or one with {STATE_FILE}")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if values.get("model_type", "gpt2") != "gpt2":
        raise ConfigError(f"{folder / 'config.json'} describes a {values['model_type']}; expected gpt2")
    config = GPT2Config.from_dict({ALIASES.get(key, key): value for key, value in values.items()})
    weights: dict[str, Tensor] = {}
    for source_name, tensor in tensors(folder):
        name = canonical(source_name)
        if BUFFER.fullmatch(name):
            continue
        if name in weights:
            raise WeightsError(f"{folder} holds {name} twice, once as {source_name}")
        weights[name] = tensor
    head = weights.get("lm_head.weight")
    if head is None:
        return config, weights
    tied = "wte.weight" in weights and torch.equal(head, weights["wte.weight"])
    if tied:
        del weights["lm_head.weight"]
    return replace(config, tie_word_embeddings=tied), weights


def read_state(file: Path) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Return the config and weights of a state dict of ``GPT2(config)``, with projections as Hugging Face's: [in, out].

    Raises:
        ConfigError: the file's metadata holds no config.
    """
    with safe_open(file, framework="pt") as opened:
        described = (opened.metadata() or {}).get(STATE_KEY)
        if described is None:
            raise ConfigError(f"{file} has no {STATE_KEY} in its metadata; expected what --to reference writes")
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    config = GPT2Config.from_dict(json.loads(described))
    return config, {name: weight.T if name.endswith(PROJECTIONS) else weight for name, weight in weights.items()}


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the memory-mapped tensor for everything in the folder's weight files."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (folder / stem).is_file():
            files = [stem]
        elif (folder / f"{stem}.index.json").is_file():
            index = json.loads((folder / f"{stem}.index.json").read_text(encoding="utf-8"))
            files = sorted(set(index["weight_map"].values()))
        else:
            continue
        for file in files:
            yield from _safetensors(folder / file) if stem.endswith("safetensors") else _pickle(folder / file)
        return
    raise WeightsError(f"{folder} has neither model.safetensors nor pytorch_model.bin, nor an index of either")


def _safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            yield name, opened.get_tensor(name)


def _pickle(file: Path) -> Iterator[tuple[str, Tensor]]:
    # Only files in the zip format of torch >= 1.6 can be mapped.
    yield from torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file)).items()


def canonical(name: str) -> str:
    """Return a name without the prefixes of DataParallel, torch.compile and GPT2LMHeadModel."""
    while prefix := next((p for p in WRAPPERS if name.startswith(p)), None):
        name = name[len(prefix) :]
    return name
