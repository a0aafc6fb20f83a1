"""The activations that a GPT-2 checkpoint can name, one function each.

Definitions follow ``transformers/activations.py``. The GELUs are Hendrycks & Gimpel's (arXiv:1606.08415).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def gelu(x: Tensor) -> Tensor:
    """Return x·Φ(x), exactly, through erf."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Return OpenAI's tanh approximation of GELU, with which GPT-2 was trained."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def laplace(x: Tensor) -> Tensor:
    """Return MEGA's bounded squared ReLU (arXiv:2209.10655), with MEGA's mu and sigma."""
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_10": lambda x: gelu(x).clamp(-10.0, 10.0),
    "gelu_accurate": gelu_tanh,
    # The same curve with sqrt(2/pi) written to ten digits.
    "gelu_fast": lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "laplace": laplace,
    "leaky_relu": F.leaky_relu,
    "linear": lambda x: x,
    "mish": F.mish,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
    "swish": F.silu,
    "tanh": torch.tanh,
}


class Activation(nn.Module):
    """An activation of ``FUNCTIONS`` as a module, so that a hook can observe it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.function = FUNCTIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def activation(name: str) -> nn.Module:
    """Return the activation called ``name``. Only ``prelu`` has a parameter: its slope."""
    return nn.PReLU() if name == "prelu" else Activation(name)
