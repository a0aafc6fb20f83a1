"""Makes checkpoints as Megatron-LM does, and computes with them in its own layout."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

V, T, E, L, H, INNER = 64, 24, 12, 3, 3, 20
D = E // H
IDS = torch.tensor([5, 60, 0, 17, 17, 3, 42])
ARGS = {
    "padded_vocab_size": V, "max_position_embeddings": T, "hidden_size": E, "num_layers": L, "num_attention_heads": H,
    "ffn_hidden_size": INNER, "kv_channels": D, "layernorm_epsilon": 1e-5, "openai_gelu": False,
    "bias_gelu_fusion": True, "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1,
    "apply_residual_connection_post_layernorm": False, "params_dtype": torch.float16, "save": "out", "seed": 1234,
    "data_path": ["1.0", "data"], "lr": 1.5e-4, "rank": 0, "consumed_samples": None,
}  # fmt: skip

# How Megatron-LM's attention takes its query, key and value out of the joint projection, [S, 3·E] → three of [S, H, D].
SPLITS: dict[float, Callable[[torch.Tensor], tuple[torch.Tensor, ...]]] = {
    0.0: lambda x: x.view(-1, 3, H, D).unbind(1),
    1.0: lambda x: x.view(-1, H, D, 3).unbind(3),
    2.0: lambda x: x.view(-1, H, 3, D).unbind(2),
    3.0: lambda x: x.view(-1, H, 3, D).unbind(2),
}

# The parts of a layer, in the code that wrote it.
OLD = {
    "norm": "input_layernorm", "qkv": "attention.query_key_value", "proj": "attention.dense",
    "norm2": "post_attention_layernorm", "fc1": "mlp.dense_h_to_4h", "fc2": "mlp.dense_4h_to_h",
}  # fmt: skip
NEW = OLD | {"qkv": "self_attention.query_key_value", "proj": "self_attention.dense"}

State = dict[str, torch.Tensor]


def layers(names: dict[str, str], bias: bool = True) -> State:
    """The transformer's part of a state dict, with no weight trivially 0 or 1."""
    torch.manual_seed(0)
    shapes = {"norm": (E,), "qkv": (3 * E, E), "proj": (E, E), "norm2": (E,), "fc1": (INNER, E), "fc2": (E, INNER)}
    state = {}
    for i in range(L):
        for part, shape in shapes.items():
            state[f"layers.{i}.{names[part]}.weight"] = torch.randn(shape) * 0.4
            if bias or part.startswith("norm"):
                state[f"layers.{i}.{names[part]}.bias"] = torch.randn(shape[0]) * 0.4
    state |= {"final_layernorm.weight": torch.randn(E), "final_layernorm.bias": torch.randn(E)}
    return state


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(V, E) * 0.4, torch.randn(T, E) * 0.4


def forward(
    state: State, names: dict[str, str], version: float, gelu: Callable[[torch.Tensor], torch.Tensor],
    head: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Logits [S, V] for IDS, computed in Megatron-LM's layout."""
    wte, wpe = embeddings()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (E,), state[f"{name}.weight"].float(), state[f"{name}.bias"].float())

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        bias = state.get(f"{name}.bias")
        return F.linear(x, state[f"{name}.weight"].float(), None if bias is None else bias.float())

    x = wte[IDS] + wpe[: len(IDS)]
    for i in range(L):
        part = {key: f"layers.{i}.{name}" for key, name in names.items()}
        q, k, v = (t.transpose(0, 1) for t in SPLITS[version](linear(norm(x, part["norm"]), part["qkv"])))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(-1, E)
        x = x + linear(attended, part["proj"])
        x = x + linear(gelu(linear(norm(x, part["norm2"]), part["fc1"])), part["fc2"])
    return F.linear(norm(x, "final_layernorm"), wte if head is None else head)


def checkpoint(transformer: State, key: str = "encoder", version: float | None = 3.0, **args: Any) -> dict[str, Any]:
    """What Megatron-LM's save_checkpoint saves."""
    wte, wpe = embeddings()
    embedding = {"word_embeddings": {"weight": wte}, "position_embeddings": {"weight": wpe}}
    master = torch.ones(3)
    master.tensor_model_parallel = True  # as Megatron-LM marks its parameters
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.partition_dim = 0
    return {
        "args": argparse.Namespace(**ARGS | args),
        **({} if version is None else {"checkpoint_version": version}),
        "iteration": 100,
        "model": {"language_model": {"embedding": embedding, key: transformer}},
        "optimizer": {"optimizer": {"state": {0: {"step": 7}}}, "fp32_from_fp16_params": [[master, parameter]]},
        "random_rng_state": random.Random(0).getstate(),
        "np_rng_state": np.random.RandomState(0).get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
        "lowest_loss": np.float64(2.5),
        "shape": torch.ones(2, 3).shape,
    }


def save(value: Any, folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(value, folder / "model_optim_rng.pt", **options)
    return folder / "model_optim_rng.pt"
