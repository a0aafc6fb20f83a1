"""Graphs of every opset on ONNX Runtimes of any age, the oldest one that PyPI still has for Python 3.11 among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from onnx import helper

from converter import convert
from converter.data import CHECKPOINT
from converter.weights.precisions import PRECISIONS

OPSETS = range(17, 26)
# Version → the newest opset that it supports officially, and the newest IR version that it reads.
RUNTIMES = {
    "1.15.0": (19, 9),
    "1.17.3": (20, 9),
    "1.19.2": (21, 10),
    "1.20.1": (21, 10),
    "1.22.1": (22, 10),
    "1.23.2": (23, 11),
    "1.32.0": (26, 13),
}
NEW_IR, NEW_OPSET = "Unsupported model IR version", "is under development and support for this is limited"

# (version, precision) → why not, whatever the opset; and why not some precision of an opset that is supported.
NO_KERNEL = {
    ("1.15.0", "int8"): "MatMulNBits(-1) is not a registered function/op",
    ("1.15.0", "int4"): "MatMulNBits(-1) is not a registered function/op",
    ("1.17.3", "int8"): "MatMulNBits_node_30) has input size 6 not in range [min=3, max=4]",
    ("1.17.3", "int4"): "MatMulNBits_node_30) has input size 6 not in range [min=3, max=4]",
    ("1.19.2", "int8"): "Only 4b quantization is supported for MatMulNBits op",
    ("1.19.2", "int4"): "Only 4b quantization is supported for MatMulNBits op",
    ("1.20.1", "int8"): "Only 4b quantization is supported for MatMulNBits op",
    ("1.20.1", "int4"): "Only 4b quantization is supported for MatMulNBits op",
}
NOT_QUITE = {
    ("1.15.0", 18, "fp16"): "Unrecognized attribute: axes for operator ReduceMean",
    ("1.15.0", 19, "fp16"): "Unrecognized attribute: axes for operator ReduceMean",
    ("1.15.0", 19, "fp32"): "Could not find an implementation for Shape(19)",
}

Reply = dict[str, Any]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``"17 fp32"`` → the graph's file."""
    out = tmp_path_factory.mktemp("opsets")
    for opset in OPSETS:
        convert(CHECKPOINT, out / str(opset), opset=opset, precision=list(PRECISIONS))
    return {f"{opset} {row.name}": str(out / str(opset) / row.model) for opset in OPSETS for row in PRECISIONS.values()}


@pytest.fixture(scope="module")
def replies() -> dict[str, Reply]:
    return {}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("version", RUNTIMES)
def test_a_runtime_runs_what_it_is_new_enough_for(
    version: str,
    opset: int,
    precision: str,
    graphs: dict[str, str],
    questions: Reply,
    expected: Callable[[str, str], Any],
    ask: Callable[..., Reply],
    hold: Callable[..., None],
    replies: dict[str, Reply],
) -> None:
    client = f"onnxruntime-{version}"
    if client not in replies:
        replies[client] = ask(client, "run_onnxruntime.py", {**questions, "graphs": graphs})
    reply = {precision: replies[client].get(f"{opset} {precision}", replies[client])}
    hold(client, f"opset {opset}", precision, reply, expected(precision, "batch"), too_old(version, opset, precision))


def too_old(version: str, opset: int, precision: str) -> str:
    """What its error says; empty where it runs."""
    newest, ir_version = RUNTIMES[version]
    if helper.find_min_ir_version_for([helper.make_opsetid("", opset)]) > ir_version:
        return NEW_IR
    if opset > newest:
        return NEW_OPSET
    return NO_KERNEL.get((version, precision)) or NOT_QUITE.get((version, opset, precision), "")
