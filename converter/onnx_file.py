"""Reads ONNX files, of strangers too, and walks through what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

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


def branches(node: NodeProto) -> list[GraphProto]:
    """Return the graphs inside a node: the branches of an If, the body of a Loop."""
    return [
        graph
        for attribute in node.attribute
        for graph in ((attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs)
    ]


def graphs_of(graph: GraphProto) -> list[GraphProto]:
    """Return a graph and all graphs inside it."""
    found = [graph]
    for each in found:
        found.extend(inner for node in each.node for inner in branches(node))
    return found


def nodes_of(graphs: Iterable[GraphProto]) -> Iterator[NodeProto]:
    """Yield every node, those of branches too."""
    for graph in graphs:
        for each in graphs_of(graph):
            yield from each.node


def every_graph(model: ModelProto) -> list[GraphProto]:
    """Return the graph of a model, its functions as graphs, and all graphs inside these."""
    functions = (GraphProto(node=each.node) for each in model.functions)
    return [inner for outer in (model.graph, *functions) for inner in graphs_of(outer)]


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model, those of attributes, branches and functions too."""
    for graph in every_graph(model):
        yield from graph.initializer
        sparse = [*graph.sparse_initializer]
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            yield from ((attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors)
            sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            sparse += attribute.sparse_tensors
        for each in sparse:
            yield from (each.values, each.indices)


def names(model: ModelProto) -> Iterator[str | bytes]:
    """Yield every name of a model: of values, nodes, attributes, dimensions and files."""
    yield model.producer_name
    for opset in model.opset_import:
        yield opset.domain
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output, *function.attribute)
    for graph in every_graph(model):
        yield graph.name
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            yield from (dimension.dim_param for dimension in value.type.tensor_type.shape.dim)
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            yield from (attribute.name for attribute in node.attribute)
    for tensor in tensors_of(model):
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)
