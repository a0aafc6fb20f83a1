"""Read the quantized weights of ONNX files of other programs, as far as their operators and names tell them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from onnx import NodeProto

from converter import onnx_file
from converter.onnx_file import nodes_of
from converter.parity.exports.suspects import LOOKS_UP
from converter.parity.exports.tensors import Held, tensors_of
from converter.parity.legs.unquantize import (
    DEFAULT_BITS,
    WEIGHTS,
    Dequantized,
    attributes_of,
    dequantized,
    inputs_of,
    scaled,
)

INTEGERS = ("int", "uint")  # how the names of the types begin that a weight is quantized to

# What onnxruntime's quantizer adds to a weight's name.
NUMBERS, SCALE, ZERO_POINT = "_quantized", "_scale", "_zero_point"

# Operators that show that a file is quantized, with the number of bits of its weights; None: an attribute says it.
BITS: dict[str, int | None] = {
    "MatMulInteger": 8,
    "DynamicQuantizeLinear": 8,
    "DynamicQuantizeMatMul": 8,
    "MatMulIntegerToFloat": 8,
    "QLinearMatMul": 8,
    "QAttention": 8,
    "QGemm": 8,
    "MatMulNBits": None,
    "GatherBlockQuantized": None,
}
PRODUCTS = tuple(name for name, bits in BITS.items() if bits and name != "DynamicQuantizeLinear")  # of whole numbers
DEQUANTIZE, OF_FOUR_BITS = "DequantizeLinear", ("int4", "uint4")  # the type of its numbers says it

# Operators that hand on what they are given in another form.
HANDS_ON = ("DequantizeLinear", "Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Quantized:
    """A quantized weight.

    Attributes:
        name: the name of its numbers.
        shape: of the numbers that it stands for, ``[inputs, outputs]`` or in any other order.
        read: returns these numbers.
        embeds, multiplies: whether rows of it are looked up, and whether something is multiplied by it.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Dequantized]
    embeds: bool = False
    multiplies: bool = True


def multiplies_int8(file: Path) -> bool:
    """Tell whether a file multiplies whole numbers with weights of int8."""
    held = {each.name: each.dtype for each in tensors_of(file)}
    products = (node for node in nodes_of([onnx_file.read(file).graph]) if node.op_type in PRODUCTS)
    return any(held.get(name) == "int8" for node in products for name in node.input)


def bits_of(file: Path) -> int | None:
    """Return the number of bits of a file's quantized weights; None if it has none."""
    tensors, found = {held.name: held for held in tensors_of(file)}, set[int]()
    for node in nodes_of([onnx_file.read(file).graph]):
        if node.op_type in BITS:
            found.add(BITS[node.op_type] or attributes_of(node).get("bits", DEFAULT_BITS))
        if node.op_type == DEQUANTIZE:
            numbers = tensors.get(node.input[0])
            found.add(4 if numbers is not None and numbers.dtype in OF_FOUR_BITS else 8)
    return min(found, default=None)


def quantized_of(file: Path) -> Iterator[Quantized]:
    """Yield the quantized weights of a file."""
    tensors = {held.name: held for held in tensors_of(file)}
    nodes = list(nodes_of([onnx_file.read(file).graph]))
    seen: set[str] = set()
    for node in nodes:
        for found in (*_of_operator(node, tensors), *_by_name(node, tensors)):
            if found.name not in seen:
                seen.add(found.name)
                users = _users(found.name, nodes)
                embeds = any(user in LOOKS_UP for user in users)
                yield replace(found, embeds=embeds, multiplies=any(user not in LOOKS_UP for user in users))


def _of_operator(node: NodeProto, tensors: Mapping[str, Held]) -> Iterator[Quantized]:
    """Yield the weight of a node whose operator says how it is quantized."""
    names = [name for at in WEIGHTS.get(node.op_type, ()) for name in inputs_of(node, at + 1)[at:] if name]
    if not names or any(name not in tensors for name in names) or tensors[names[0]].size == 1:
        return
    parts = [tensors[name] for name in names]
    if not parts[0].dtype.startswith(INTEGERS):
        return
    given = attributes_of(node)
    shape = (given["K"], given["N"]) if node.op_type == "MatMulNBits" else parts[0].shape
    if node.op_type == "GatherBlockQuantized" and parts[0].dtype == "uint8":
        shape = (*shape[:-1], shape[-1] * 8 // given.get("bits", DEFAULT_BITS))
    yield Quantized(names[0], shape, lambda: dequantized(node, [part.array() for part in parts]))


def _by_name(node: NodeProto, tensors: Mapping[str, Held]) -> Iterator[Quantized]:
    """Yield the weights of a node that have the names of onnxruntime's quantizer."""
    for name in node.input:
        base = name.removesuffix(NUMBERS)
        if name in tensors and base != name and f"{base}{SCALE}" in tensors:
            parts = [tensors[part] for part in (name, f"{base}{SCALE}", f"{base}{ZERO_POINT}") if part in tensors]
            axis = _axis(*parts[:2])
            if axis is not None and parts[0].dtype.startswith(INTEGERS):
                yield Quantized(name, parts[0].shape, partial(_scaled, parts, axis))


def _axis(numbers: Held, scale: Held) -> int | None:
    """Return the axis along which scales differ; None if they fit none. The last one, but for a transposed weight."""
    fits = [axis for axis in (-1, 0) if numbers.shape and scale.size in (1, numbers.shape[axis])]
    return fits[0] if fits else None


def _scaled(parts: list[Held], axis: int) -> Dequantized:
    return scaled([part.array() for part in parts], axis)


def _users(name: str, nodes: list[NodeProto]) -> set[str]:
    """Return the operators that use a tensor, also in another form."""
    names, users = [name], set[str]()
    for each in names:
        for node in nodes:
            if each not in node.input:
                continue
            if node.op_type in HANDS_ON:
                names.extend(output for output in node.output if output not in names)
            else:
                users.add(node.op_type)
    return users
