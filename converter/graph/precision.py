"""How weights lie in the graph and are multiplied: the one thing that differs between precisions.

The rest of the graph asks its ``Precision`` for ``linear``, ``embed`` and ``head`` and is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from converter.graph.module import Module, Parameter


class Conv1D(Module):
    """``x @ weight + bias``, the weight ``[in, out]``: Conv1D's layout is MatMul's, nothing is transposed."""

    def __init__(self, nx: int, nf: int, dtype: ir.DataType) -> None:
        super().__init__()
        self.weight = Parameter([nx, nf], dtype)
        self.bias = Parameter([nf], dtype)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return op.Add(op.MatMul(x, self.weight), self.bias)


class Embedding(Module):
    """The rows of ``weight`` that the ids name."""

    def __init__(self, rows: int, width: int, dtype: ir.DataType) -> None:
        super().__init__()
        self.weight = Parameter([rows, width], dtype)

    def forward(self, op: Any, ids: ir.Value) -> ir.Value:
        return op.Gather(self.weight, ids)


class Head(Module):
    """What stands on the body, ``[batch, kept, n_embd]`` → ``[batch, kept, rows]``; in float32 whatever the body is.

    Gemm takes the transpose of ``[rows, n_embd]`` in its stride, so that a tied head is the very initializer that the
    embedding gathers from.
    """

    def __init__(self, weight: Parameter, bias: Parameter | None = None) -> None:
        super().__init__()
        self.weight = weight
        if bias is not None:
            self.bias = bias

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        rows, n_embd = self.weight.shape
        bias = [self.bias] if hasattr(self, "bias") else []
        flat = op.Gemm(op.Reshape(x, [-1, n_embd]), self.weight, *bias, transB=1)
        leading = op.Shape(x, start=0, end=2)
        logits = op.Reshape(flat, op.Concat(leading, [rows], axis=0))
        return logits if self.weight.dtype == ir.DataType.FLOAT else op.Cast(logits, to=ir.DataType.FLOAT)


@dataclass(frozen=True)
class Precision:
    """The types and modules of one precision.

    Attributes:
        dtype: of activations, cache and unquantized weights.
        linear: ``(nx, nf)`` → a projection.
        embed: ``(rows, width)`` → an embedding.
        head: ``(vocab_size, n_embd, wte)`` → the output head; ``wte`` is the embedding it is tied to, or None.
    """

    dtype: ir.DataType
    linear: Callable[[int, int], Module]
    embed: Callable[[int, int], Module]
    head: Callable[[int, int, Module | None], Module]


def floating(dtype: ir.DataType) -> Precision:
    """Weights as they are, all of one floating-point type."""

    def head(vocab_size: int, n_embd: int, wte: Module | None) -> Module:
        return Head(wte.weight if isinstance(wte, Embedding) else Parameter([vocab_size, n_embd], dtype))

    return Precision(
        dtype,
        linear=lambda nx, nf: Conv1D(nx, nf, dtype),
        embed=lambda rows, width: Embedding(rows, width, dtype),
        head=head,
    )


FLOAT32 = floating(ir.DataType.FLOAT)
