"""How weights are stored in the graph and multiplied. Only this differs between precisions.

The rest of the graph asks its ``Layers`` for ``linear``, ``embed`` and ``head`` and is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx_ir as ir

from converter.graph.module import Module, Parameter
from converter.weights.precisions import Blocks, Precision

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators

# MatMulNBits may compute with activations of 8 bits: several times as fast on CPUs that multiply bytes, and less
# exact by far less than weights of 8 bits are.
ACCURACY_LEVEL = 4


class Conv1D(Module):
    """``x @ weight + bias`` with the weight ``[in, out]``. Conv1D's layout is MatMul's; nothing is transposed."""

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
    """The projection on the body, ``[batch, kept, n_embd]`` → ``[batch, kept, rows]``, always in float32.

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
        given = [op.Reshape(x, [-1, n_embd]), self.weight, *([self.bias] if hasattr(self, "bias") else [])]
        if self.weight.dtype != ir.DataType.FLOAT:  # half precision would round logits of 100 to steps of a sixteenth
            given = [op.Cast(value, to=ir.DataType.FLOAT) for value in given]
        leading = op.Shape(x, start=0, end=2)
        return op.Reshape(op.Gemm(*given, transB=1), op.Concat(leading, [rows], axis=0))


class Quantized(Module):
    """A weight ``[outputs, inputs]`` in blocks along its inputs; see ``converter.weights.quantize``.

    Args:
        shape: of the numbers' bytes.
    """

    def __init__(self, outputs: int, inputs: int, blocks: Blocks, shape: list[int]) -> None:
        super().__init__()
        self.outputs, self.inputs, self.blocks = outputs, inputs, blocks
        self.weight = Parameter(shape, ir.DataType.UINT8)
        self.scales = Parameter([outputs, blocks.count(inputs)], ir.DataType.FLOAT)
        if not blocks.symmetric:
            self.zero_points = Parameter([outputs, blocks.zero_point_bytes(inputs)], ir.DataType.UINT8)

    @property
    def of_blocks(self) -> list[ir.Value]:
        """Return the scales and zero points that belong to the numbers."""
        return [self.scales] if self.blocks.symmetric else [self.scales, self.zero_points]


class QuantizedConv1D(Quantized):
    """``x @ weight + bias`` by MatMulNBits, which takes the weight as ``[nf, nx]``."""

    def __init__(self, nx: int, nf: int, blocks: Blocks, bias: bool = True) -> None:
        super().__init__(nf, nx, blocks, packed_shape(nf, nx, blocks))
        if bias:
            self.bias = Parameter([nf], ir.DataType.FLOAT)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        scales, zero_points = [*self.of_blocks, None][:2]
        weight = (self.weight, scales, zero_points, None, getattr(self, "bias", None))
        return matmul(op, x, weight, self.outputs, self.inputs, self.blocks)


class QuantizedEmbedding(Quantized):
    """The rows of the ids. Only these are dequantized, by operators that browsers have, too."""

    def __init__(self, rows: int, width: int, blocks: Blocks) -> None:
        super().__init__(rows, width, blocks, packed_shape(rows, width, blocks))

    def forward(self, op: Any, ids: ir.Value) -> ir.Value:
        bits, count = self.blocks.bits, self.blocks.count(self.inputs)
        numbers = op.Reshape(unpacked(op, op.Gather(self.weight, ids), bits), [0, 0, count, -1])
        middle: Any = float(self.blocks.middle)
        if not self.blocks.symmetric:
            zero_points = unpacked(op, op.Gather(self.zero_points, ids), bits)
            middle = op.Unsqueeze(op.Slice(zero_points, [0], [count], [-1]), [-1])
        values = op.Mul(op.Sub(numbers, middle), op.Unsqueeze(op.Gather(self.scales, ids), [-1]))
        rows, whole = op.Reshape(values, [0, 0, -1]), count * self.blocks.size_for(self.inputs)
        return rows if whole == self.inputs else op.Slice(rows, [0], [self.inputs], [-1])


class TiedHead(Module):
    """The output head that multiplies with the embedding's numbers."""

    def __init__(self, wte: QuantizedEmbedding) -> None:
        super().__init__()
        self.weight, self.shape = wte.weight, (wte.outputs, wte.inputs, wte.blocks)
        self.scales, self.zero_points = [*wte.of_blocks, None][:2]

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        outputs, inputs, blocks = self.shape
        return matmul(op, x, (self.weight, self.scales, self.zero_points), outputs, inputs, blocks)


def unpacked(op: Any, packed: ir.Value, bits: int) -> ir.Value:
    """Unpack ``[batch, tokens, …]`` bytes to ``[batch, tokens, numbers]`` float32, as ``quantize.unpack`` does."""
    if bits == 4:
        upper, lower = op.Div(packed, 16), op.Mod(packed, 16)
        packed = op.Concat(op.Unsqueeze(lower, [-1]), op.Unsqueeze(upper, [-1]), axis=-1)
    return op.Cast(op.Reshape(packed, [0, 0, -1]), to=ir.DataType.FLOAT)


def packed_shape(outputs: int, inputs: int, blocks: Blocks) -> list[int]:
    """Return the shape of a weight's bytes in MatMulNBits."""
    return [outputs, blocks.count(inputs), blocks.size_for(inputs) * blocks.bits // 8]


def matmul(op: Any, x: ir.Value, weight: tuple[Any, ...], outputs: int, inputs: int, blocks: Blocks) -> ir.Value:
    """Multiply ``[batch, tokens, inputs]`` to ``[batch, tokens, outputs]``."""
    y = op.MatMulNBits(
        x, *weight,
        K=inputs, N=outputs, bits=blocks.bits, block_size=blocks.size_for(inputs), accuracy_level=ACCURACY_LEVEL,
        _domain=MICROSOFT, _version=1,
    )  # fmt: skip
    return declare(y, [None, None, outputs])


def declare(value: ir.Value, shape: list[int | None]) -> ir.Value:
    """Declare type and shape, which onnx cannot infer for an operator that is not its own."""
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(shape)
    return value


@dataclass(frozen=True)
class Layers:
    """The type and the modules that one precision supplies.

    Attributes:
        dtype: of activations, cache and unquantized weights.
        linear: ``(nx, nf)`` → a projection.
        embed: ``(rows, width)`` → the embedding of tokens.
        head: ``(vocab_size, n_embd, wte)`` → the output head; ``wte`` is the embedding it is tied to, or None.
    """

    dtype: ir.DataType
    linear: Callable[[int, int], Module]
    embed: Callable[[int, int], Module]
    head: Callable[[int, int, Module | None], Module]


@cache
def layers_of(row: Precision) -> Layers:
    """Return the modules of a row of the table of precisions."""
    return blockwise(row.scheme.linear, row.scheme.head) if row.scheme else FLOATS[row.dtype]


def floating(dtype: ir.DataType) -> Layers:
    """Return layers whose weights are all of one floating-point type."""

    def head(vocab_size: int, n_embd: int, wte: Module | None) -> Module:
        return Head(wte.weight if isinstance(wte, Embedding) else Parameter([vocab_size, n_embd], dtype))

    return Layers(
        dtype,
        linear=lambda nx, nf: Conv1D(nx, nf, dtype),
        embed=lambda rows, width: Embedding(rows, width, dtype),
        head=head,
    )


def blockwise(linear: Blocks, head: Blocks) -> Layers:
    """Return layers with quantized weights; all else is float32. A tied head uses the embedding's numbers."""

    def output_head(vocab_size: int, n_embd: int, wte: Module | None) -> Module:
        if isinstance(wte, QuantizedEmbedding):
            return TiedHead(wte)
        return QuantizedConv1D(n_embd, vocab_size, head, bias=False)

    return Layers(
        ir.DataType.FLOAT,
        linear=lambda nx, nf: QuantizedConv1D(nx, nf, linear),
        embed=lambda rows, width: QuantizedEmbedding(rows, width, head),
        head=output_head,
    )


FLOAT32, FLOAT16 = floating(ir.DataType.FLOAT), floating(ir.DataType.FLOAT16)
FLOATS = {"float32": FLOAT32, "float16": FLOAT16}
