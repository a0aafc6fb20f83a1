"""Writes llm.c's files."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch.nn import functional as F

V, T, E, L, H = 61, 24, 12, 3, 3
PADDED = 64

HEADER = {
    "magic": 20240326, "version": 3, "max_seq_len": T, "vocab_size": V, "num_layers": L, "num_heads": H,
    "channels": E, "padded_vocab_size": PADDED,
}  # fmt: skip

State = dict[str, torch.Tensor]


def state_dict() -> State:
    """The parameters of llm.c's PyTorch model, none of them trivially 0 or 1."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (V, E), "wpe.weight": (T, E), "ln_f.weight": (E,)}
    for i in range(L):
        block = {"ln_1": (E,), "attn.c_attn": (3 * E, E), "attn.c_proj": (E, E), "ln_2": (E,)}
        block |= {"mlp.c_fc": (4 * E, E), "mlp.c_proj": (E, 4 * E)}
        for name, shape in block.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[:1]}
    shapes["ln_f.bias"] = (E,)
    return {name: torch.randn(shape) * 0.4 for name, shape in shapes.items()}


def write(file: Path, state: State, **header: int) -> Path:
    """Write a model as llm.c does: the header, then each parameter of all layers after the other."""
    values = HEADER | header
    names = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    padded = F.pad(state["wte.weight"], (0, 0, 0, max(0, values["padded_vocab_size"] - V)), value=float("nan"))
    ordered = [padded, state["wpe.weight"]]
    ordered += [state[f"h.{i}.{name}.{kind}"] for name in names for kind in ("weight", "bias") for i in range(L)]
    ordered += [state["ln_f.weight"], state["ln_f.bias"]]
    dtype = torch.bfloat16 if values["version"] == 5 else torch.float32
    data = b"".join(tensor.to(dtype).view(torch.uint8).numpy().tobytes() for tensor in ordered)
    file.write_bytes(struct.pack("<8i", *values.values()).ljust(1024, b"\0") + data)
    return file
