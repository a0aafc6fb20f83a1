"""Read what an ONNX file takes and gives: names, types and shapes. No weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import TensorProto, ValueInfoProto

from converter import onnx_file
from converter.errors import ModelFolderError

Dimension = int | str  # a number, or the name of a dimension of any size

# The element types of numpy for the inputs and outputs of a language model.
NUMPY: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.BOOL: np.bool_,
}


@dataclass(frozen=True)
class Value:
    """An input or output of a graph.

    Attributes:
        name: its name.
        type: its element type, numpy's; None for one that no language model has.
        shape: its dimensions; None if the graph does not tell their number.
    """

    name: str
    type: Any
    shape: tuple[Dimension, ...] | None

    @property
    def rank(self) -> int:
        """Return the number of dimensions; -1 if it is unknown."""
        return -1 if self.shape is None else len(self.shape)

    @property
    def is_whole(self) -> bool:
        """Tell whether its elements are integers."""
        return self.type is not None and np.issubdtype(self.type, np.integer)

    @property
    def is_float(self) -> bool:
        """Tell whether its elements are floating point numbers."""
        return self.type is not None and np.issubdtype(self.type, np.floating)

    def __str__(self) -> str:
        kind = "?" if self.type is None else np.dtype(self.type).name
        return f"{self.name} ({kind} {'of unknown shape' if self.shape is None else list(self.shape)})".replace("'", "")


@dataclass(frozen=True)
class Signature:
    """What an ONNX file takes and gives.

    Attributes:
        file: the file.
        inputs, outputs: its values, in the order of the graph. Weights that are listed as inputs are left out.
        optional: inputs with a default.
        producer: the program that wrote the file, as it says itself; may be empty.
    """

    file: Path
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    optional: tuple[Value, ...]
    producer: str

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all its inputs and outputs."""
        return tuple(value.name for value in (*self.inputs, *self.outputs, *self.optional))

    def __str__(self) -> str:
        takes, gives = (", ".join(map(str, shortened(values))) for values in (self.inputs, self.outputs))
        return f"takes {takes} and gives {gives}"


SHOWN = 5  # values of a signature that a message lists


def shortened(values: tuple[Value, ...]) -> list[Value | str]:
    """Return the first values, and how many follow."""
    more = [f"{len(values) - SHOWN} more"] if len(values) > SHOWN else []
    return [*values[:SHOWN], *more]


def read_signature(file: Path) -> Signature:
    """Read the signature of an ONNX file.

    Raises:
        ModelFolderError: it is not there, or no ONNX file.
    """
    try:
        model = onnx_file.read(file)
    except FileNotFoundError as error:
        raise ModelFolderError(f"there is no ONNX file {file}") from error
    except (DecodeError, OSError, ValueError) as error:
        raise ModelFolderError(f"{file} is not an ONNX file, or a corrupt one ({error})") from error
    graph = model.graph
    if not graph.output:
        raise ModelFolderError(f"{file} is not an ONNX file: it has no outputs")
    # Up to IR version 3 every weight was an input too. A scalar input with a default is optional.
    defaults = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    inputs = tuple(_value(value) for value in graph.input)
    return Signature(
        file,
        tuple(value for value in inputs if value.name not in defaults),
        tuple(_value(value) for value in graph.output),
        tuple(value for value in inputs if defaults.get(value.name) == 0),
        f"{model.producer_name} {model.producer_version}".strip(),
    )


def _value(value: ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    shape = tuple(map(_dimension, tensor.shape.dim)) if tensor.HasField("shape") else None
    return Value(value.name, NUMPY.get(tensor.elem_type), shape)


def _dimension(dimension: Any) -> Dimension:
    """Return a dimension. Some exporters write a number as a name."""
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    return int(dimension.dim_param) if dimension.dim_param.isdecimal() else str(dimension.dim_param)
