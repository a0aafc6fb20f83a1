"""Write a Hugging Face folder in the format of another project, for benchmarks.

    python scripts/make_sources.py SOURCE --format gguf OUT

Weights are mapped from SOURCE's safetensors and passed on one by one, so that gpt2-xl needs little memory. Where the
other format has projections as [out, in], only the shape is changed, not the bytes. That is enough for benchmarks, as
SOURCE is random.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from converter.checkpoint import gguf_file, h5_file, nanogpt
from converter.checkpoint.linear import PROJECTIONS
from converter.checkpoint.open import open_checkpoint
from converter.weights.ledger import account
from reference.config import GPT2Config

Weights = dict[str, np.ndarray]  # Hugging Face's name, without a prefix → the mapped tensor

# The tables of names from the readers, inverted.
KERAS = {name: own for own, name in h5_file.NAMES.items()}
LLAMA = {target: own for own, (target, _) in gguf_file.INSIDE.items()}
LLAMA |= {target: own for own, target in gguf_file.OUTSIDE.items()}


def linear(weights: Weights) -> Weights:
    """Return the weights with projections in the shape [out, in]."""
    return {
        n: array.reshape(array.shape[::-1]) if f".{n}".endswith(PROJECTIONS) else array for n, array in weights.items()
    }


def write_bin(out: Path, config: GPT2Config, weights: Weights) -> None:
    """Write ``pytorch_model.bin``."""
    import torch

    del config
    torch.save({f"transformer.{name}": torch.from_numpy(array) for name, array in weights.items()}, out)


def write_nanogpt(out: Path, config: GPT2Config, weights: Weights) -> None:
    """Write ``ckpt.pt``, without the optimizer's state."""
    import torch

    state = {f"transformer.{name}": torch.from_numpy(array) for name, array in linear(weights).items()}
    args = {own: getattr(config, name) for name, own in nanogpt.ARGUMENTS.items()}
    head = {"lm_head.weight": state["transformer.wte.weight"]}
    torch.save({"model": state | head, "model_args": args | {"bias": True, "dropout": 0.0}, "iter_num": 0}, out)


def write_h5(out: Path, config: GPT2Config, weights: Weights) -> None:
    """Write ``tf_model.h5``, with the names of TFGPT2LMHeadModel."""
    import h5py

    del config
    with h5py.File(out, "w") as file:
        for name, array in weights.items():
            layer, pattern = _pattern(name)
            path = KERAS[pattern].replace(".", "/").replace("h/{i}/", f"h_._{layer}/")
            is_row = KERAS[pattern] in h5_file.ROWS  # biases are [1, out]
            file[f"transformer/tfgp_t2lm_head_model/transformer/{path}:0"] = array[None] if is_row else array


def write_gguf(out: Path, config: GPT2Config, weights: Weights) -> None:
    """Write a GGUF file in F32, as llama.cpp's converter does, without a tokenizer."""
    import gguf

    writer = gguf.GGUFWriter(out, gguf_file.ARCHITECTURE)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.inner_dim)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    for name, array in linear(weights).items():
        layer, pattern = _pattern(name)
        module, _, part = pattern.removeprefix("h.{i}.").rpartition(".")
        writer.add_tensor(f"blk.{layer}.{LLAMA[module]}.{part}" if layer else f"{LLAMA[module]}.{part}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _pattern(name: str) -> tuple[str, str]:
    """Return the layer's number, empty if there is none, and the name with ``{i}`` in its place."""
    first, _, rest = name.partition(".")
    layer, _, inner = rest.partition(".")
    return (layer, f"h.{{i}}.{inner}") if first == "h" else ("", name)


# Name of a format → its file, the function that writes it, and whether a config.json is written beside it.
FORMATS: dict[str, tuple[str, Callable[[Path, GPT2Config, Weights], None], bool]] = {
    "bin": ("pytorch_model.bin", write_bin, True),
    "h5": ("tf_model.h5", write_h5, True),
    "gguf": ("model.gguf", write_gguf, False),
    "nanogpt": ("ckpt.pt", write_nanogpt, False),
}


@click.command(help=__doc__)
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(list(FORMATS)), required=True)
def main(source: Path, out: Path, kind: str) -> None:
    ledger = account(open_checkpoint(source))
    file, write, has_config = FORMATS[kind]
    out.mkdir(parents=True, exist_ok=True)
    write(out / file, ledger.config, {name: tensor.memmap() for name, tensor in ledger.weights.items()})
    if has_config:
        shutil.copyfile(source / "config.json", out / "config.json")


if __name__ == "__main__":
    main()
