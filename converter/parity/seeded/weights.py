"""Seed defects into weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from converter.parity.legs.cases import SHORT_TOKENS
from converter.parity.seeded.mutation import Apply, Copy
from reference.config import GPT2Config

# The element that is changed has the median magnitude of its tensor: it matters, and it does not stand out.
ELEMENT_CHANGE = 0.01


def in_layer(name: str, change: Callable[[np.ndarray, GPT2Config], np.ndarray]) -> Apply:
    """Change one weight of the middle layer."""

    def apply(copy: Copy) -> None:
        copy.edit_weight(f"h.{copy.layer}.{name}", lambda weight: change(weight, copy.config))

    return apply


def transpose(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
    """Store the transpose in the same shape. A square weight hides it."""
    return weight.T.reshape(weight.shape)


def swap_q_and_k(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
    """Swap the first two thirds."""
    q, k, v = np.split(weight, 3, axis=-1)
    return np.concatenate([k, q, v], axis=-1)


def interleave(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
    """Put q, k and v of each head side by side, as Megatron-LM stores them."""
    parts = weight.reshape(*weight.shape[:-1], 3, config.n_head, config.head_dim)
    return np.swapaxes(parts, -3, -2).reshape(weight.shape)


def both(name: str, change: Callable[[np.ndarray, GPT2Config], np.ndarray]) -> Apply:
    """Change a projection's weight and bias alike."""
    weight, bias = in_layer(f"{name}.weight", change), in_layer(f"{name}.bias", change)

    def apply(copy: Copy) -> None:
        weight(copy)
        bias(copy)

    return apply


def rounded(dtype: torch.dtype) -> Callable[[np.ndarray, GPT2Config], np.ndarray]:
    """Round to a narrower type."""
    return lambda weight, config: torch.from_numpy(weight).to(dtype).float().numpy()


def spoil(value: float) -> Callable[[np.ndarray, GPT2Config], np.ndarray]:
    """Replace the number of median magnitude."""

    def change(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
        weight.flat[median(weight)] = value
        return weight

    return change


def element(name: str) -> Apply:
    """Change the number of median magnitude in a tensor by 1 %."""

    def change(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
        part = weight
        if name.endswith("c_attn.bias"):  # the keys' bias changes no logit: softmax drops what all keys share
            part = weight[: config.n_embd]
        if name == "wpe.weight":  # the positions that every level feeds
            part = weight[:SHORT_TOKENS]
        part.flat[median(part)] *= np.float32(1 + ELEMENT_CHANGE)
        return weight

    return lambda copy: copy.edit_weight(name.format(i=copy.layer), lambda weight: change(weight, copy.config))


def median(weight: np.ndarray) -> int:
    """Return the flat index of the number of median magnitude."""
    return int(np.argsort(np.abs(weight), axis=None)[weight.size // 2])


def scaled_matrix(name: str, change: float) -> Apply:
    """Multiply a whole matrix by 1 + ``change``."""
    return lambda copy: copy.edit_weight(name, lambda weight: weight * np.float32(1 + change))
