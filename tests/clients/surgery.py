"""Finds its way in a graph of any exporter by operators and shapes, and changes it there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Written = Callable[["Nodes", str], str]  # writes nodes that read a value; returns the name of what they give


class Nodes:
    """New nodes: ``write.Mul(x, 0.5)`` adds one and returns the name of its output. Arrays become constants."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.nodes = prefix, list[NodeProto]()

    def __getattr__(self, op_type: str) -> Callable[..., str]:
        return lambda *inputs, **attributes: self.node(op_type, *inputs, **attributes)

    def node(self, op_type: str, *inputs: Any, **attributes: Any) -> str:
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        return self._add(helper.make_node(op_type, names, [""], **attributes))

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        return self._add(helper.make_node("Constant", [], [""], value=numpy_helper.from_array(array)))

    def length(self, x: str, axis: int) -> str:
        """The size of a value along an axis, as a number."""
        return self.Squeeze(self.Shape(x, start=axis, end=axis + 1), [0])

    def _add(self, node: NodeProto) -> str:
        node.output[0] = node.name = f"{self.prefix}/{len(self.nodes)}"
        self.nodes.append(node)
        return node.output[0]


class Surgery:
    """A graph under the knife. Values of a layer are found by operators and by the shapes of weights."""

    def __init__(self, model: onnx.ModelProto, config: dict[str, Any]) -> None:
        self.model, self.graph, self.config = model, model.graph, config

    # --- finding ------------------------------------------------------------------------------------------------------

    def nodes(self, *op_types: str) -> list[NodeProto]:
        return [node for node in self.graph.node if node.op_type in op_types]

    def maker(self, name: str) -> NodeProto:
        return next(node for node in self.graph.node if name in node.output)

    def users(self, name: str) -> list[NodeProto]:
        return [node for node in self.graph.node if name in node.input]

    def tensor(self, name: str) -> TensorProto:
        return next(tensor for tensor in self.graph.initializer if tensor.name == name)

    def of_shape(self, *shape: int) -> list[TensorProto]:
        """The tensors of a shape, in the order in which nodes use them."""
        there = {tensor.name: tensor for tensor in self.graph.initializer if sorted(tensor.dims) == sorted(shape)}
        used = [name for node in self.graph.node for name in node.input if name in there]
        return [there[name] for name in dict.fromkeys(used)]

    def softmax(self, layer: int) -> NodeProto:
        return self.nodes("Softmax")[layer]

    def context(self, layer: int) -> NodeProto:
        """The product of probabilities and values."""
        names = [self.softmax(layer).output[0]]
        for name in names:
            for node in self.users(name):
                if node.op_type == "MatMul":
                    return node
                names.extend(node.output)
        raise LookupError("no product follows the softmax")

    def norm(self, at: int) -> NodeProto:
        return self.nodes("LayerNormalization")[at]

    def mlp(self, layer: int) -> tuple[NodeProto, NodeProto]:
        """Both products of an MLP."""
        names = [tensor.name for tensor in self.of_shape(self.config["n_inner"], self.config["n_embd"])]
        names += [node.output[0] for node in self.nodes("Transpose") if node.input[0] in names]
        products = [node for node in self.nodes("MatMul", "Gemm") if node.input[1] in names]
        return products[2 * layer], products[2 * layer + 1]

    def residual(self, layer: int) -> NodeProto:
        """The sum that the second layer norm of a layer takes."""
        return self.maker(self.norm(2 * layer + 1).input[0])

    def embedding(self, rows: int) -> NodeProto:
        names = {tensor.name for tensor in self.of_shape(rows, self.config["n_embd"])}
        return next(node for node in self.nodes("Gather") if node.input[0] in names)

    @property
    def logits(self) -> str:
        return self.graph.output[0].name

    def input(self, *words: str) -> str:
        return next(value.name for value in self.graph.input if any(word in value.name for word in words))

    def outputs(self, *words: str) -> list[str]:
        return [value.name for value in self.graph.output if any(word in value.name for word in words)]

    # --- changing -----------------------------------------------------------------------------------------------------

    def change(self, name: str, written: Written) -> None:
        """Put something else in the place of a value that a node gives."""
        maker = self.maker(name)
        at = next(at for at, node in enumerate(self.graph.node) if node is maker or name in node.output)
        maker.output[list(maker.output).index(name)] = f"{name}/was"
        self._insert(at + 1, *self._written(f"{name}/was", name, written))

    def give(self, name: str, written: Written) -> None:
        """Give something else as an output; the graph goes on with what it was."""
        for node in self.graph.node:
            node.input[:] = [f"{name}/was" if each == name else each for each in node.input]
            node.output[:] = [f"{name}/was" if each == name else each for each in node.output]
        self._insert(len(self.graph.node), *self._written(f"{name}/was", name, written))

    def feed(self, name: str, written: Written, only: NodeProto | None = None) -> None:
        """Put something else in the place of an input of the graph, or of what one node reads."""
        readers = self.users(name) if only is None else [only]
        at = min(at for at, node in enumerate(self.graph.node) if any(node == reader for reader in readers))
        new = f"{name}/for/{readers[0].output[0] if only is not None else 'all'}"
        for node in readers:
            node.input[:] = [new if each == name else each for each in node.input]
        self._insert(at, *self._written(name, new, written))

    def numbers(self, tensor: TensorProto, changed: Callable[[np.ndarray], None]) -> None:
        """Change the numbers of a tensor in place."""
        array = numpy_helper.to_array(tensor).copy()
        changed(array)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def _written(self, old: str, new: str, written: Written) -> list[NodeProto]:
        write = Nodes(f"{new}/edit")
        done = written(write, old)
        return [*write.nodes, helper.make_node("Identity", [done], [new], name=f"{new}/edited")]

    def _insert(self, at: int, *nodes: NodeProto) -> None:
        after = [*self.graph.node[:at], *nodes, *self.graph.node[at:]]
        copies = [NodeProto.FromString(node.SerializeToString()) for node in after]
        del self.graph.node[:]
        self.graph.node.extend(copies)
