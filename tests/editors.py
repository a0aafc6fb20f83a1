"""Changes the files of a model folder as a hand would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx


def graphs(out: Path) -> list[Path]:
    """The graphs of a model folder."""
    return sorted((out / "onnx").glob("*.onnx"))


def change_weight(out: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change one tensor of the data file in its bytes."""
    tensors = (t for file in graphs(out) for t in onnx.load(file, load_external_data=False).graph.initializer)
    tensor = next(t for t in tensors if t.name == name)
    where = {entry.key: entry.value for entry in tensor.external_data}
    file = out / "onnx" / "model.onnx_data"
    data = np.memmap(file, "<f4", "r+", offset=int(where["offset"]), shape=tuple(tensor.dims))
    data[...] = change(np.array(data))
    data.flush()


def edit_graph(file: Path, edit: Callable[[onnx.GraphProto], None]) -> None:
    """Change the graph in a file; its weights stay where they are."""
    model = onnx.load(file, load_external_data=False)
    edit(model.graph)
    onnx.save(model, file)
