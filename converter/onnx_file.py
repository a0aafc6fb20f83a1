"""Reads ONNX files, of strangers too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from converter.errors import ModelFolderError


def read(file: str | os.PathLike[str]) -> ModelProto:
    """Return the model of an ONNX file. Weights outside of it are not read.

    Raises:
        DecodeError: the file is no ONNX file, or a damaged one.
        OSError: it cannot be read.
        ModelFolderError: a name is not UTF-8, which protobuf would hand over as bytes.
    """
    model = onnx.load(file, format="protobuf", load_external_data=False)
    for name in names(model):
        if not isinstance(name, str):
            raise ModelFolderError(f"{os.fspath(file)} is damaged: {name!r} is a name in it, and not UTF-8")
    return model


def type_name(element: int) -> str:
    """Return the name of an element type, such as FLOAT; of one that ONNX does not know, its number."""
    return TensorProto.DataType.Name(element) if element in TensorProto.DataType.values() else f"number {element}"


def names(model: ModelProto) -> Iterator[str | bytes]:
    """Yield every name of a model: of values, nodes, attributes, dimensions and files."""
    yield model.producer_name
    for opset in model.opset_import:
        yield opset.domain
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output, *function.attribute)
        yield from _of_nodes(function.node)
        yield from _of_values(function.value_info)


def _of_graph(graph: GraphProto) -> Iterator[str | bytes]:
    yield graph.name
    yield from _of_values((*graph.input, *graph.output, *graph.value_info))
    yield from _of_tensors(graph.initializer)
    for sparse in graph.sparse_initializer:
        yield from _of_tensors((sparse.values, sparse.indices))
    yield from _of_nodes(graph.node)


def _of_values(values: Iterable[ValueInfoProto]) -> Iterator[str | bytes]:
    for value in values:
        yield value.name
        for dimension in value.type.tensor_type.shape.dim:
            yield dimension.dim_param


def _of_tensors(tensors: Iterable[TensorProto]) -> Iterator[str | bytes]:
    for tensor in tensors:
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[str | bytes]:
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            if attribute.type not in PLAIN:
                yield from _of_tensors((attribute.t, *attribute.tensors))
                for graph in (attribute.g, *attribute.graphs):
                    yield from _of_graph(graph)


# Attributes that hold numbers, or bytes that are no names.
PLAIN = {
    AttributeProto.FLOAT,
    AttributeProto.FLOATS,
    AttributeProto.INT,
    AttributeProto.INTS,
    AttributeProto.STRING,
    AttributeProto.STRINGS,
}
