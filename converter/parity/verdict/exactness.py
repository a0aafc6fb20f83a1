"""Compare every initializer of the graph with the source's tensor, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper

from converter import onnx_file
from converter.checkpoint import safetensors_file
from converter.checkpoint.names import canonical
from converter.checkpoint.tensor import LazyTensor
from converter.errors import CheckpointError, ModelFolderError
from converter.parity.legs.shipped import Numbers
from converter.weights import data_file, write
from converter.weights.ledger import Ledger
from converter.weights.precisions import PRECISIONS, Blocks, Precision
from converter.weights.quantize import Rows, not_nearest, quantize_rows, row_pieces
from converter.weights.table import parameters

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
PART_TYPES = (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8)  # numbers, scales, zero points


@dataclass(frozen=True)
class Exactness:
    """The result of the comparison.

    Attributes:
        compared: the number of initializers that were compared.
        faults: a sentence for each initializer that differs.
    """

    compared: int
    faults: tuple[str, ...]


def compare_initializers(graph_file: Path, ledger: Ledger, precision: Precision = PRECISIONS["fp32"]) -> Exactness:
    """Compare the weights that ``graph_file`` points to with the source's, in the type of the precision.

    A quantized number must be the nearest to the source's: within half a step, except beyond the ends of a block. Its
    block must be the one that quantizing the source gives.

    Raises:
        ModelFolderError: the graph cannot be read, or points at bytes that are not there.
    """
    try:
        graph = onnx_file.read(graph_file).graph
    except (DecodeError, OSError, ValueError) as error:
        raise ModelFolderError(f"{graph_file} is not an ONNX file, or a corrupt one ({error})") from error
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    layouts = {name: layout for name, layout, _ in parameters(ledger.config)}
    where = "" if precision.name == "fp32" else f"{graph_file.name}: "
    numbers, faults, known = Numbers(graph_file), [], set(ledger.weights)
    for name, weight in ledger.weights.items():
        blocks = write.blocks_of(name, layouts[name], precision.scheme) if precision.scheme else None
        if blocks is not None:
            known |= set(write.parts_of(name, blocks))
        if name not in initializers:
            faults.append(f"{where}{name} is not in the graph")
            continue
        if blocks is None:
            fault = _compare(numbers, initializers[name], weight, precision.dtype)
        else:
            seen = write.rows_of_outputs(weight, layouts[name])
            fault = _compare_quantized(numbers, initializers, name, seen, blocks)
        if fault:
            faults.append(f"{where}{name} {fault}")
    foreign = [t.name for t in graph.initializer if external_data_helper.uses_external_data(t) and t.name not in known]
    faults += [f"{where}{name} is in the graph and not in the source" for name in foreign]
    there = {name: weight.name for name, weight in ledger.weights.items() if name in initializers}
    faults += _compare_headers(graph_file, [initializers[name] for name in there], there)
    return Exactness(len(ledger.weights), tuple(faults))


def _compare_quantized(
    numbers: Numbers, initializers: Mapping[str, TensorProto], name: str, weight: LazyTensor, blocks: Blocks
) -> str | None:
    """Return what is wrong with a weight ``[outputs, inputs]`` in blocks; None if nothing is."""
    parts = write.parts_of(name, blocks)
    missing = next((part for part in parts if part not in initializers), None)
    if missing is not None:
        return f"lacks {missing}"
    outputs, inputs = weight.shape
    widths = blocks.row_bytes(inputs), blocks.count(inputs), blocks.zero_point_bytes(inputs)
    arrays = []
    for part, width, kind in zip(parts, widths, PART_TYPES, strict=False):
        if initializers[part].data_type != kind:
            return f"is of another type: {part} is {onnx_file.type_name(initializers[part].data_type)}"
        values = numbers.flat(initializers[part])
        if values.size != outputs * width:
            return f"is of another shape: {part} has {values.size} numbers, {outputs * width} are expected"
        arrays.append(values.reshape(outputs, width))
    first = 0
    for rows in row_pieces(weight):
        piece = Rows(*(array[first : first + len(rows)] for array in arrays), *[None] * (3 - len(arrays)))
        wrong = not_nearest(piece, rows, blocks)
        if wrong is not None:
            return f"[{first + wrong[0]}, {wrong[1]}] is not the number nearest to the source's {rows[wrong]!s}"
        fault = _other_blocks(piece, quantize_rows(rows, blocks), parts, first)
        if fault is not None:
            return fault
        first += len(rows)
    return None


def _other_blocks(found: Rows, expected: Rows, parts: Sequence[str], first: int) -> str | None:
    """Return a sentence about the first row that differs from the quantized source; None if no row does."""
    names = ("numbers", "scales", "zero_points")
    for part, name in zip(parts, names, strict=False):
        differs = (getattr(found, name) != getattr(expected, name)).any(axis=1)
        if differs.any():
            return f"has other {name} in row {first + int(differs.argmax())} than the source gives: {part}"
    return None


def _compare(numbers: Numbers, tensor: TensorProto, weight: LazyTensor, dtype: str) -> str | None:
    """Return what is wrong with an initializer; None if nothing is."""
    if tuple(tensor.dims) != weight.shape or tensor.data_type != TYPES[dtype]:
        found_type = onnx_file.type_name(tensor.data_type)
        return f"is {list(tensor.dims)} of type {found_type}; the source has {list(weight.shape)}"
    shipped = numbers.flat(tensor)
    before = 0
    for chunk in weight.chunks():
        expected = data_file.converted(chunk, weight, dtype)
        found = shipped[before : before + expected.size]
        bits = f"u{expected.itemsize}"
        differs = found.view(bits) != expected.view(bits)
        if differs.any():
            first = int(differs.argmax())
            at = [int(i) for i in np.unravel_index(before + first, weight.shape)]
            return f"is {found[first]!s} at {at}; the source has {expected[first]!s}"
        before += expected.size
    return None


def _compare_headers(graph_file: Path, tensors: list[TensorProto], sources: Mapping[str, str]) -> list[str]:
    """Return a sentence for each weight that its data file's header puts in another place than the graph does.

    Data files are safetensors files, and clients may open them by their own header. The graph of a conversion in place
    points into the source's own file, where a weight has its name in ``sources``.
    """
    headers: dict[str, dict[str, int]] = {}
    faults = []
    for tensor in tensors:
        where = {entry.key: entry.value for entry in tensor.external_data}
        location = where.get("location", "")
        if not location or not (graph_file.parent / location).is_file():
            continue
        try:
            if location not in headers:
                entries = safetensors_file.read(graph_file.parent / location)
                headers[location] = {n: e.offset for name, e in entries.items() for n in (name, canonical(name))}
        except CheckpointError as error:
            return [f"{location} is no longer a safetensors file: {error}"]
        known = headers[location]
        if str(known.get(tensor.name, known.get(sources[tensor.name]))) != where.get("offset", "0"):
            faults.append(f"{tensor.name} has another place in the header of {location} than in the graph")
    return faults
