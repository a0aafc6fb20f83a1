"""Say what a seeded defect is, and change the files of a conversion as a bug in an exporter would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto

from converter.files import read_json, write_json
from converter.runtime.opening import model_file
from converter.weights.precisions import FULL
from reference.config import GPT2Config


@dataclass(frozen=True)
class Copy:
    """A conversion that may be changed.

    Attributes:
        source: a copy of the source's folder.
        out: the model folder made from it.
        config: the architecture.
    """

    source: Path
    out: Path
    config: GPT2Config

    @property
    def layer(self) -> int:
        """Return the layer in the middle, which takes defects of a single layer."""
        return self.config.n_layer // 2

    def edit_graph(self, edit: Callable[[GraphProto], None]) -> None:
        """Change the graph and write it back."""
        file = model_file(self.out)
        model = onnx.load(file, load_external_data=False)
        before = model.SerializeToString(deterministic=True)
        edit(model.graph)
        if model.SerializeToString(deterministic=True) != before:
            onnx.save(model, file)

    def edit_weight(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change a tensor in the data file."""
        file = model_file(self.out)
        tensor = next(t for t in onnx.load(file, load_external_data=False).graph.initializer if t.name == name)
        where = {entry.key: entry.value for entry in tensor.external_data}
        mapped = np.memmap(
            file.parent / where["location"], "<f4", "r+", offset=int(where["offset"]), shape=tuple(tensor.dims)
        )
        mapped[...] = change(np.array(mapped))
        mapped.flush()

    def edit_config(self, **values: Any) -> None:
        """Change both configs, and leave the graph as it is."""
        for folder in (self.source, self.out):
            write_json(folder / "config.json", read_json(folder / "config.json") | values)


Apply = Callable[[Copy], None]


@dataclass(frozen=True)
class Mutation:
    """A defect.

    Attributes:
        name: its row in the matrix of defects.
        causes: the values of ``Finding.cause`` that name it.
        apply: seeds the defect into a copy.
        variant: rewrites the source, which is then converted anew; None if the source stays as it is.
        possible: tells whether a model has a place for it.
        needs: a weight that must not be all zeros, as the defect would change nothing; ``{i}`` is the middle layer.
        precision: the precision of the conversion that is changed.
        said: for a defect that no logits show, the beginning of the sentence that names it.
    """

    name: str
    causes: tuple[str, ...]
    apply: Apply
    variant: Callable[[Path], None] | None = None
    possible: Callable[[GPT2Config], bool] = lambda config: True
    needs: str = ""
    precision: str = FULL
    said: str = ""
