"""Makes checkpoints as nanoGPT does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

V, T, E, L, H = 61, 24, 12, 3, 3
ARGS = {"n_layer": L, "n_head": H, "n_embd": E, "block_size": T, "bias": True, "vocab_size": V, "dropout": 0.2}

State = dict[str, torch.Tensor]


def state_dict(bias: bool = True, tied: bool = True, mask: bool = False) -> State:
    """What nanoGPT's model.state_dict() gives, with no weight trivially 0 or 1."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (V, E), "wpe.weight": (T, E)}
    for i in range(L):
        block = {"ln_1": (E,), "attn.c_attn": (3 * E, E), "attn.c_proj": (E, E), "ln_2": (E,)}
        block |= {"mlp.c_fc": (4 * E, E), "mlp.c_proj": (E, 4 * E)}
        for name, shape in block.items():
            shapes[f"h.{i}.{name}.weight"] = shape
            if bias:
                shapes[f"h.{i}.{name}.bias"] = shape[:1]
    shapes |= {"ln_f.weight": (E,)} | ({"ln_f.bias": (E,)} if bias else {})
    state = {f"transformer.{name}": torch.randn(shape) * 0.4 for name, shape in shapes.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"] if tied else torch.randn(V, E)
    if mask:
        state |= {f"transformer.h.{i}.attn.bias": torch.ones(T, T).tril().view(1, 1, T, T) for i in range(L)}
    return state


def checkpoint(state: State, prefix: str = "", **args: Any) -> dict[str, Any]:
    """What nanoGPT's train.py saves, after a step of its optimizer."""
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in state.values()]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95))
    sum(p.square().sum() for p in parameters).backward()
    optimizer.step()
    return {
        "model": {prefix + name: tensor for name, tensor in state.items()},
        "optimizer": optimizer.state_dict(),
        "model_args": ARGS | args,
        "iter_num": 250,
        "best_val_loss": torch.tensor(3.25),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True, "max_iters": 600_000},
    }


def save(value: Any, folder: Path, **options: Any) -> Path:
    torch.save(value, folder / "ckpt.pt", **options)
    return folder / "ckpt.pt"
