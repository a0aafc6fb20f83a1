"""ONNX Runtime's Node API on the plain graph: nothing else of the folder is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.weights.precisions import PRECISIONS
from tests.clients.javascript import ENVIRONMENT, ONNXRUNTIME, Reply, asked, wanted


@pytest.fixture(scope="module", params=PRECISIONS)
def answered(
    request: pytest.FixtureRequest, folder: Path, questions: Reply, ask: Callable[..., Reply]
) -> tuple[str, Reply]:
    return request.param, ask(ENVIRONMENT, ONNXRUNTIME, asked(folder, questions, request.param))


@pytest.mark.parametrize("what", ["single", "batch"])
def test_a_plain_loop_answers_as_hugging_face_does(
    what: str,
    answered: tuple[str, Reply],
    folder: Path,
    expected: Callable[[str, str], Any],
    hold: Callable[..., None],
) -> None:
    precision, reply = answered
    hold("ONNX Runtime, Node", precision, what, reply, wanted(expected, folder, precision, what))
