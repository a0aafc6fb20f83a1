"""Read every tensor that ONNX files hold: initializers and constants, those of branches and functions too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from converter import onnx_file
from converter.errors import ModelFolderError
from converter.onnx_file import graphs_of
from converter.parity.legs.shipped import Numbers


@dataclass(frozen=True)
class Held:
    """A tensor of an ONNX file. Its numbers are read on use.

    Attributes:
        name: of the initializer, or of the output of the node that holds it.
        file: the ONNX file.
        tensor: the tensor itself.
    """

    name: str
    file: Path
    tensor: TensorProto

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its dimensions."""
        return tuple(self.tensor.dims)

    @property
    def size(self) -> int:
        """Return the number of its elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def dtype(self) -> str:
        """Return the name of its element type, such as ``float32``."""
        return helper.tensor_dtype_to_np_dtype(self.tensor.data_type).name

    def array(self) -> np.ndarray:
        """Return its numbers, mapped if they are outside the graph.

        Raises:
            ModelFolderError: they are missing, or outside the folder.
        """
        return Numbers(self.file).shaped(self.tensor)


def tensors_of(file: Path) -> list[Held]:
    """Return every tensor of an ONNX file.

    Raises:
        DecodeError: the file is corrupt.
        ModelFolderError: a tensor is of an unknown type.
    """
    model = onnx_file.read(file)
    graphs = graphs_of(model.graph)
    held = [Held(tensor.name, file, tensor) for graph in graphs for tensor in graph.initializer]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    held += [
        Held(node.output[0], file, attribute.t)
        for node in nodes
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.HasField("t")
    ]
    for one in held:
        if one.tensor.data_type not in TensorProto.DataType.values():
            kind = onnx_file.type_name(one.tensor.data_type)
            raise ModelFolderError(f"{file} is damaged: the type of {one.name} is {kind}, which ONNX does not know")
    return [one for one in held if one.size]
