"""Writes GGUF files as llama.cpp does, with its own library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

gguf = pytest.importorskip("gguf")

SIZES = {"vocab_size": 61, "n_positions": 24, "n_embd": 96, "n_layer": 3, "n_head": 4}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # as llama.cpp's GPT2Model.modify_tensors has them
NAMES = {
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output", "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}  # fmt: skip
TYPES = {name: gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0")}


def random_gpt2(seed: int = 0, **config: Any) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES | config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def llama_name(name: str) -> str:
    name = name.removeprefix("transformer.")
    module, part = name.rsplit(".", 1)
    if not module.startswith("h."):
        return f"{NAMES[module]}.{part}"
    _, layer, inner = module.split(".", 2)
    return f"blk.{layer}.{NAMES[inner]}.{part}"


def arrays(model: transformers.GPT2LMHeadModel, tied: bool = True) -> dict[str, np.ndarray]:
    """What llama.cpp's converter makes of a state dict: its names, and projections as [out, in]."""
    state = {n: t.detach().numpy() for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    return {
        llama_name(name): np.ascontiguousarray(array.T if name.endswith(TRANSPOSED) else array)
        for name, array in state.items()
    }


def writer(file: Path, architecture: str = "gpt2", **changes: Any) -> Any:
    """A writer with the metadata of llama.cpp's ``set_gguf_parameters``."""
    found = gguf.GGUFWriter(file, architecture)
    sizes = SIZES | changes
    found.add_block_count(sizes["n_layer"])
    found.add_context_length(sizes["n_positions"])
    found.add_embedding_length(sizes["n_embd"])
    found.add_feed_forward_length(4 * sizes["n_embd"])
    found.add_head_count(sizes["n_head"])
    found.add_layer_norm_eps(1e-5)
    found.add_file_type(1)
    return found


def finish(found: Any) -> None:
    found.write_header_to_file()
    found.write_kv_data_to_file()
    found.write_tensors_to_file()
    found.close()


def write(
    file: Path, weights: dict[str, np.ndarray], kind: str = "F32", extra: Callable[[Any], None] = lambda w: None
) -> Path:
    """Vectors as float32 and matrices as ``kind``, as llama.cpp does."""
    found = writer(file)
    extra(found)
    for name, array in weights.items():
        wanted = TYPES[kind if array.ndim == 2 else "F32"]
        data = gguf.quants.quantize(array, wanted)
        found.add_tensor(name, data, raw_dtype=wanted)
    finish(found)
    return file


def dequantized(file: Path) -> dict[str, np.ndarray]:
    """Every tensor as the gguf package reads it, float32."""
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1].tolist()).astype(np.float32)
        for t in gguf.GGUFReader(file).tensors
    }
