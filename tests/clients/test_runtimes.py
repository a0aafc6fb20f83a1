"""Graphs of every opset on ONNX Runtimes of any age, the oldest one that PyPI still has for Python 3.11 among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from converter import convert
from converter.data import CHECKPOINT
from converter.precisions import PRECISIONS

OPSETS = range(17, 26)
RUNTIMES = ("1.15.0", "1.17.3", "1.19.2", "1.20.1", "1.22.1", "1.23.2", "1.32.0")

Reply = dict[str, Any]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``"opset 17 fp32"`` → the graph's file."""
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
    return ""
