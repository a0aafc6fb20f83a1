"""Every initializer of the graph against the source's tensor, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

from converter.checkpoint import LazyTensor
from converter.checkpoint.tensor import to_float32
from converter.errors import ModelFolderError
from converter.weights import Ledger


@dataclass(frozen=True)
class Exactness:
    """What the comparison found.

    Attributes:
        compared: how many initializers were looked at.
        faults: a sentence for each that is not the source's.
    """

    compared: int
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every weight is the source's."""
        return not self.faults


def compare_initializers(graph_file: Path, ledger: Ledger) -> Exactness:
    """Compare the weights that ``graph_file`` points to with the source's, widened where they are narrower.

    Raises:
        ModelFolderError: the graph cannot be read, or points at bytes that are not there.
    """
    try:
        graph = onnx.load(graph_file, load_external_data=False).graph
    except Exception as error:  # protobuf's DecodeError, whose module moves between versions
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


def shipped_values(graph_file: Path, tensor: TensorProto) -> np.ndarray:
    """A float32 initializer's numbers in row-major order, from the mapped data file or from the graph itself.

    Raises:
        ModelFolderError: the data file is missing or too short.
    """
    if not external_data_helper.uses_external_data(tensor):
        return numpy_helper.to_array(tensor).ravel()
    where = {entry.key: entry.value for entry in tensor.external_data}
    file = graph_file.parent / where["location"]
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
