"""The base of every graph module: an ``onnxscript.nn.Module`` whose output has the name of the module's path."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import nn
from onnxscript.nn import ModuleList, Parameter

__all__ = ["Module", "ModuleList", "Parameter", "name_values"]


class Module(nn.Module):
    """The counterpart of the module of the same name in ``reference/``. ``forward(op, …)`` writes nodes.

    The first value that ``forward`` returns is the module's output; after ``name_values`` it is called what the
    module is called (``h.3.mlp.act``), so that a tap in PyTorch and a value in the graph share their name.
    """

    output: ir.Value | None = None

    def __call__(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        result = super().__call__(op, *args, **kwargs)
        self.output = result[0] if isinstance(result, tuple) else result
        return result


def name_values(graph: ir.Graph, root: Module) -> None:
    """Give each value its readable name. Of nested modules with one output, the innermost gives the name."""
    for node in graph:
        node.metadata_props.clear()  # where a node was written is not part of the model
        for value in node.outputs:
            if value.name is not None:
                value.name = value.name.removeprefix("v_")
    outputs = set(graph.outputs)
    for path, module in root.named_modules():
        output = getattr(module, "output", None)
        if path and output is not None and output not in outputs:
            output.name = path
