"""Every initializer of the graph against the source's tensor, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, numpy_helper

from converter.checkpoint import LazyTensor, safetensors_file
from converter.checkpoint.tensor import to_float32
from converter.errors import CheckpointError, ModelFolderError
from converter.weights import Ledger, canonical


@dataclass(frozen=True)
class Exactness:
    """What the comparison found.

    Attributes:
        compared: how many initializers were looked at.
        faults: a sentence for each that is not the source's.
    """

    compared: int
    faults: tuple[str, ...]


def compare_initializers(graph_file: Path, ledger: Ledger) -> Exactness:
    """Compare the weights that ``graph_file`` points to with the source's, widened where they are narrower.

    Raises:
        ModelFolderError: the graph cannot be read, or points at bytes that are not there.
    """
    try:
        graph = onnx.load(graph_file, load_external_data=False).graph
    except (DecodeError, OSError, ValueError) as error:
        raise ModelFolderError(f"{graph_file} is not an ONNX file, or a corrupt one ({error})") from error
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    faults = []
    for name, weight in ledger.weights.items():
        if name not in initializers:
            faults.append(f"{name} is not in the graph")
            continue
        fault = _compare(graph_file, initializers[name], weight)
        if fault:
            faults.append(f"{name} {fault}")
    foreign = [
        t.name for t in graph.initializer if external_data_helper.uses_external_data(t) and t.name not in ledger.weights
    ]
    faults += [f"{name} is in the graph and not in the source" for name in foreign]
    faults += _compare_headers(graph_file, [initializers[name] for name in ledger.weights if name in initializers])
    return Exactness(len(ledger.weights), tuple(faults))


def _compare(graph_file: Path, tensor: TensorProto, weight: LazyTensor) -> str | None:
    """What is wrong with an initializer, if anything is."""
    if tuple(tensor.dims) != weight.shape or tensor.data_type != TensorProto.FLOAT:
        found_type = TensorProto.DataType.Name(tensor.data_type)
        return f"is {list(tensor.dims)} of type {found_type}; the source has {list(weight.shape)}"
    shipped = shipped_values(graph_file, tensor)
    before = 0
    for chunk in weight.chunks():
        expected = to_float32(chunk, weight.dtype)
        found = shipped[before : before + expected.size]
        differs = found.view(np.uint32) != expected.view(np.uint32)
        if differs.any():
            first = int(differs.argmax())
            at = [int(i) for i in np.unravel_index(before + first, weight.shape)]
            return f"is {found[first]!s} at {at}; the source has {expected[first]!s}"
        before += expected.size
    return None


def _compare_headers(graph_file: Path, tensors: list[TensorProto]) -> list[str]:
    """Data files are safetensors files, which clients open by their own header: it must agree with the graph."""
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
                headers[location] = {canonical(name): entry.offset for name, entry in entries.items()}
        except CheckpointError as error:
            return [f"{location} is no safetensors file any more: {error}"]
        if headers[location].get(tensor.name) != int(where.get("offset", 0)):
            faults.append(f"{tensor.name} is elsewhere by the header of {location} than by the graph")
    return faults


def shipped_values(graph_file: Path, tensor: TensorProto) -> np.ndarray:
    """A float32 initializer's numbers in row-major order, from the mapped data file or from the graph itself.

    Raises:
        ModelFolderError: the data file is missing or too short.
    """
    if not external_data_helper.uses_external_data(tensor):
        try:
            return numpy_helper.to_array(tensor).ravel()
        except ValueError as error:
            raise ModelFolderError(f"{graph_file}: initializer {tensor.name} is corrupt ({error})") from error
    where = {entry.key: entry.value for entry in tensor.external_data}
    file = graph_file.parent / where.get("location", "")
    if not file.resolve().is_relative_to(graph_file.parent.resolve()):
        raise ModelFolderError(
            f"{graph_file}: initializer {tensor.name} points outside its folder, at {where['location']}"
        )
    count = int(np.prod(tensor.dims, dtype=np.int64))
    try:
        return np.memmap(file, np.dtype("<f4"), mode="r", offset=int(where.get("offset", 0)), shape=(count,))
    except (OSError, ValueError) as error:
        raise ModelFolderError(
            f"{file} does not hold initializer {tensor.name} of {graph_file}: it is missing or truncated"
        ) from error
