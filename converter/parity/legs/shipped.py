"""Read the numbers that a graph is shipped with, in float64, as an exact computation of that graph would use them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from converter import onnx_file
from converter.checkpoint.tensor import LazyTensor
from converter.errors import ModelFolderError
from converter.runtime.external import data_file
from converter.weights import write
from converter.weights.ledger import Ledger
from converter.weights.precisions import FULL, Precision
from converter.weights.quantize import Rows, dequantize
from converter.weights.table import Layout, parameters

PACKED = (TensorProto.INT4, TensorProto.UINT4)  # two numbers in a byte


class Numbers:
    """The numbers of the initializers of a graph. Each of its data files is mapped once."""

    def __init__(self, graph_file: Path) -> None:
        self.graph_file = graph_file
        self._files, self._mapped = dict[str, Path](), dict[Path, np.ndarray]()

    def shaped(self, tensor: TensorProto) -> np.ndarray:
        """Return an initializer's numbers in its dimensions; see ``flat``."""
        return self.flat(tensor).reshape(tuple(tensor.dims))

    def flat(self, tensor: TensorProto) -> np.ndarray:
        """Return an initializer's numbers in row-major order, from the mapped data file or from the graph itself.

        Raises:
            ModelFolderError: the data file is missing, too short or outside the graph's folder.
        """
        if not external_data_helper.uses_external_data(tensor):
            try:
                return numpy_helper.to_array(tensor).ravel()
            except (ValueError, KeyError, TypeError) as error:  # of another number of bytes, or of no known type
                raise ModelFolderError(f"{self.graph_file}: initializer {tensor.name} is corrupt ({error})") from error
        where = {entry.key: entry.value for entry in tensor.external_data}
        if not where.get("offset", "0").isdecimal():
            raise ModelFolderError(f"{self.graph_file}: initializer {tensor.name} has no place in a file: {where}")
        file = self._file(where.get("location", ""))
        try:
            whole = self._bytes(file)
            if tensor.data_type in PACKED:
                return numpy_helper.to_array(tensor, os.fspath(self.graph_file.parent)).ravel()
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
            begin, size = int(where.get("offset", 0)), math.prod(tensor.dims) * dtype.itemsize
            if min(tensor.dims, default=0) < 0 or not 0 <= begin <= begin + size <= len(whole):
                raise ValueError(f"{list(tensor.dims)} at {begin} is not in {len(whole)} bytes")
            return whole[begin : begin + size].view(dtype)
        except (OSError, ValueError, OverflowError, KeyError, TypeError) as error:
            raise ModelFolderError(
                f"{file} does not hold initializer {tensor.name} of {self.graph_file}: it is missing or truncated"
            ) from error

    def _file(self, location: str) -> Path:
        """Return a data file, looked up once."""
        if location not in self._files:
            self._files[location] = data_file(self.graph_file.parent, location)
        return self._files[location]

    def _bytes(self, file: Path) -> np.ndarray:
        """Return the bytes of a data file, mapped once."""
        if file not in self._mapped:
            self._mapped[file] = np.asarray(np.memmap(file, np.uint8, mode="r"))
        return self._mapped[file]


@dataclass(frozen=True)
class InMemory(LazyTensor):
    """A tensor whose numbers are in memory."""

    array: np.ndarray = field(kw_only=True, repr=False)

    def memmap(self) -> np.ndarray:
        """Return the numbers."""
        return self.array


def as_shipped(ledger: Ledger, graph_file: Path, precision: Precision) -> Ledger:
    """Return a ledger with the weights that a graph computes with. For fp32 these are the source's own."""
    if precision.name == FULL:
        return ledger
    return replace(ledger, weights=ShippedWeights(graph_file, ledger, precision))


class ShippedWeights(Mapping[str, LazyTensor]):
    """The weights of a graph by their canonical names, in the source's layout and in float64. Each is made on use.

    Raises:
        ModelFolderError: the graph lacks a weight, or has another one in its place.
    """

    def __init__(self, graph_file: Path, ledger: Ledger, precision: Precision) -> None:
        self.graph_file, self.ledger, self.precision = graph_file, ledger, precision
        graph = onnx_file.read(graph_file).graph
        self.initializers, self.numbers = {tensor.name: tensor for tensor in graph.initializer}, Numbers(graph_file)
        self.layouts = {name: layout for name, layout, _ in parameters(ledger.config)}

    def __iter__(self) -> Iterator[str]:
        return iter(self.ledger.weights)

    def __len__(self) -> int:
        return len(self.ledger.weights)

    def __contains__(self, name: object) -> bool:
        return name in self.ledger.weights

    def __getitem__(self, name: str) -> LazyTensor:
        source, layout = self.ledger.weights[name], self.layouts[name]
        scheme = self.precision.scheme
        blocks = write.blocks_of(name, layout, scheme) if scheme else None
        if blocks is None:
            array = self._numbers(name).astype(np.float64)
        else:
            outputs, inputs = write.rows_of_outputs(source, layout).shape
            parts = [self._numbers(part) for part in write.parts_of(name, blocks)]
            widths = blocks.row_bytes(inputs), blocks.count(inputs), blocks.zero_point_bytes(inputs)
            rows = [self._shaped(part, (outputs, width), name) for part, width in zip(parts, widths, strict=False)]
            array = dequantize(Rows(*rows, *[None] * (3 - len(rows))), blocks, inputs, np.float64)
            array = array.T if layout is Layout.CONV1D else array
        array = np.ascontiguousarray(self._shaped(array, source.shape, name))
        return InMemory(name, "float64", source.shape, self.graph_file, 0, array=array)

    def _numbers(self, name: str) -> np.ndarray:
        if name not in self.initializers:
            raise ModelFolderError(f"{self.graph_file} has no weight {name}; convert the source again")
        return self.numbers.flat(self.initializers[name])

    def _shaped(self, array: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
        if array.size != np.prod(shape):
            raise ModelFolderError(
                f"{self.graph_file}: {name} has {array.size} numbers; expected {list(shape)}; convert the source again"
            )
        return array.reshape(shape)
