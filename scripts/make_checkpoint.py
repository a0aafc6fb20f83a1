"""Write a randomly initialised GPT-2 of a real size, for benchmarks.

    python scripts/make_checkpoint.py --size gpt2-xl OUT

The result is a Hugging Face folder with float32 weights. LayerNorm weights and all biases are perturbed too, so that no
parameter is simply 0 or 1. One tensor is written at a time: gpt2-xl needs 6.2 GB on disk and little memory. With
--tokenizer DIR the files of a tokenizer, such as GPT-2's, are copied beside the weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import numpy as np

from converter.checkpoint.folder import companions
from converter.weights.table import Layout, parameters
from reference.config import GPT2Config

SIZES = {
    "gpt2": GPT2Config(n_embd=768, n_layer=12, n_head=12),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}
SEED = 0
VECTOR_STD = 0.02  # of biases around 0 and LayerNorm weights around 1
END_OF_TEXT = 50256


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--size", type=click.Choice(list(SIZES)), default="gpt2", show_default=True)
@click.option("--tokenizer", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Copy its files.")
def main(out: Path, size: str, tokenizer: Path | None) -> None:
    config = SIZES[size]
    out.mkdir(parents=True, exist_ok=True)
    write_weights(out / "model.safetensors", config)
    sizes = {key: getattr(config, key) for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    values = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": config.activation_function,
        "n_ctx": config.n_positions,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TEXT,
        "dtype": "float32",
        **sizes,
    }
    (out / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for name in companions(tokenizer) if tokenizer else ():
        shutil.copyfile(tokenizer / name, out / name)  # type: ignore[operator]


def write_weights(file: Path, config: GPT2Config) -> None:
    """Write a safetensors file in alphabetical order, as save_pretrained does."""
    weights = sorted((f"transformer.{name}", layout, shape) for name, layout, shape in parameters(config))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, _, shape in weights:
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(SEED)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name, layout, shape in weights:
            draw(rng, name, layout, shape, config).tofile(opened)


def draw(rng: np.random.Generator, name: str, layout: Layout, shape: tuple[int, ...], config: GPT2Config) -> np.ndarray:
    """Return one parameter, drawn as GPT-2 is initialised, with vectors perturbed."""
    values = rng.standard_normal(shape, dtype=np.float32)
    if layout is Layout.VECTOR:
        is_gain = ".ln_" in f".{name}" and name.endswith("weight")
        return values * np.float32(VECTOR_STD) + np.float32(is_gain)
    residual = name.endswith("c_proj.weight")
    std = config.initializer_range / (2 * config.n_layer) ** 0.5 if residual else config.initializer_range
    return values * np.float32(std)


if __name__ == "__main__":
    main()
