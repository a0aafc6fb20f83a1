"""The activations of ``reference/activations.py`` as ONNX operators: one row each, newest operator first.

A row is a function of the op builder, the input and the opset. What an opset lacks is spelled out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from converter.graph.module import Module, Parameter

GELU_SINCE = 20  # the opset that brought Gelu
MISH_SINCE = 18

Write = Callable[[Any, ir.Value], ir.Value]


def gelu(op: Any, x: ir.Value) -> ir.Value:
    """x·Φ(x)."""
    if op.version >= GELU_SINCE:
        return op.Gelu(x)
    return op.Mul(op.Mul(x, 0.5), op.Add(op.Erf(op.Mul(x, math.sqrt(0.5))), 1.0))


def gelu_tanh(op: Any, x: ir.Value) -> ir.Value:
    """0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    if op.version >= GELU_SINCE:
        return op.Gelu(x, approximate="tanh")
    cubic = op.Mul(op.Add(op.Mul(op.Mul(x, x), 0.044715), 1.0), x)
    return op.Mul(op.Mul(x, 0.5), op.Add(op.Tanh(op.Mul(cubic, math.sqrt(2 / math.pi))), 1.0))


def laplace(op: Any, x: ir.Value) -> ir.Value:
    """0.5·(1 + erf((x − mu) / (sigma·√2)))."""
    scaled = op.Div(op.Sub(x, 0.707107), 0.282095 * math.sqrt(2.0))
    return op.Mul(op.Add(op.Erf(scaled), 1.0), 0.5)


def mish(op: Any, x: ir.Value) -> ir.Value:
    """x·tanh(softplus(x))."""
    return op.Mish(x) if op.version >= MISH_SINCE else op.Mul(x, op.Tanh(op.Softplus(x)))


def relu2(op: Any, x: ir.Value) -> ir.Value:
    """relu(x)²."""
    positive = op.Relu(x)
    return op.Mul(positive, positive)


ACTIVATIONS: dict[str, Write] = {
    "gelu": gelu,
    "gelu_10": lambda op, x: op.Clip(gelu(op, x), -10.0, 10.0),
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": lambda op, x: op.HardSwish(x),
    "laplace": laplace,
    "leaky_relu": lambda op, x: op.LeakyRelu(x, alpha=0.01),
    "linear": lambda op, x: op.Identity(x),
    "mish": mish,
    "quick_gelu": lambda op, x: op.Mul(x, op.Sigmoid(op.Mul(x, 1.702))),
    "relu": lambda op, x: op.Relu(x),
    "relu2": relu2,
    "relu6": lambda op, x: op.Clip(x, 0.0, 6.0),
    "sigmoid": lambda op, x: op.Sigmoid(x),
    "silu": lambda op, x: op.Mul(x, op.Sigmoid(x)),
    "sqrtsoftplus": lambda op, x: op.Sqrt(op.Softplus(x)),
    "swish": lambda op, x: op.Mul(x, op.Sigmoid(x)),
    "tanh": lambda op, x: op.Tanh(x),
}


class Activation(Module):
    """One row of the table."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.write = ACTIVATIONS[name]

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return self.write(op, x)


class PRelu(Module):
    """x where positive, else slope·x; the one activation with a weight."""

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        self.weight = Parameter([1], dtype)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return op.Where(op.Less(x, 0.0), op.Mul(x, self.weight), x)  # ONNX Runtime has no PRelu in float64


def activation(name: str, dtype: ir.DataType) -> Module:
    """Return the module of an ``activation_function``."""
    return PRelu(dtype) if name == "prelu" else Activation(name)
