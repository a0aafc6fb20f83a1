"""Feeds a graph by hand, with what the table says of its interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tests.clients.exports import Interface

PROMPT = 4  # tokens of the first call, where there are others
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
Arrays = dict[str, np.ndarray]
Config = dict[str, Any]  # of the source


def logits(
    folder: Path, interface: Interface, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, config: Config
) -> np.ndarray:
    """Return the logits ``[rows, tokens, vocab_size]`` of ``ids`` ``[rows, tokens]``, in several calls if it can."""
    first = session(folder / interface.graph)
    later = session(folder / interface.decode) if interface.decode else first
    past, found = empty(interface, len(ids), config), []
    for begin, end in calls(interface, ids.shape[1]):
        given = {
            interface.ids: ids[:, begin:end],
            interface.mask: mask[:, :end],
            interface.positions: positions[:, begin:end],
            interface.branch: np.array([begin > 0]),
            **past,
        }
        answer, *present = run(later if begin else first, given)
        found.append(answer.astype(np.float64))
        past = dict(zip(past, present, strict=False))
    return np.concatenate(found, 1)


def session(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(graph: onnxruntime.InferenceSession, given: Arrays) -> list[np.ndarray]:
    """Feed what the graph takes of it, as the types that it takes."""
    fed = {value.name: given[value.name].astype(TYPES[value.type]) for value in graph.get_inputs()}
    return graph.run(None, fed)


def calls(interface: Interface, length: int) -> Iterator[tuple[int, int]]:
    """Where the calls begin and end."""
    begins = [0, *range(PROMPT, length, interface.step)] if interface.past else [0]
    return zip(begins, [*begins[1:], length], strict=True)


def empty(interface: Interface, rows: int, config: Config) -> Arrays:
    """Return a past of no token."""
    if not interface.past:
        return {}
    heads, width = config["n_head"], config["n_embd"] // config["n_head"]
    both = () if "{part}" in interface.past else (2,)
    return {
        interface.past.format(layer=layer, part=part): np.zeros((*both, rows, heads, 0, width))
        for layer in range(config["n_layer"])
        for part in ("key", "value")
    }
