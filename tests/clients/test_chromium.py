"""transformers.js in a headless Chromium that reaches one host: the server of its pages, its wasm and the folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from converter import convert
from converter.data import CHECKPOINT
from converter.weights.precisions import PRECISIONS
from tests.clients.javascript import CANNOT, CHROMIUM, ENVIRONMENT, NODE, NOTES, WHAT, Reply, asked, wanted


@pytest.fixture(scope="module")
def browse(ask: Callable[..., Reply]) -> Callable[[Reply], Reply]:
    """``browse(request)``: a worker's reply, and the ``requests`` that the page made."""
    browser = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    if browser is None:
        pytest.skip("there is no Chromium; Debian has it with: apt-get install chromium")
    return lambda request: ask(ENVIRONMENT, CHROMIUM, {**request, "browser": browser})


@pytest.fixture(scope="module", params=PRECISIONS)
def answered(
    request: pytest.FixtureRequest, folder: Path, questions: Reply, browse: Callable[[Reply], Reply]
) -> tuple[str, Reply]:
    return request.param, browse(asked(folder, questions, request.param))


@pytest.mark.parametrize("what", WHAT)
def test_it_answers_as_hugging_face_does(
    what: str,
    answered: tuple[str, Reply],
    folder: Path,
    expected: Callable[[str, str], Any],
    hold: Callable[..., None],
) -> None:
    precision, reply = answered
    cannot = CANNOT.get(what, ""), NOTES.get(what, "")
    hold("transformers.js, Chromium", precision, what, reply, wanted(expected, folder, precision, what), *cannot)


def test_it_answers_as_node_does(
    answered: tuple[str, Reply], folder: Path, questions: Reply, ask: Callable[..., Reply]
) -> None:
    precision, reply = answered
    node = ask(ENVIRONMENT, NODE, asked(folder, questions, precision))
    assert {what: reply[what] for what in WHAT} == {what: node[what] for what in WHAT}


def test_it_loads_one_precision_and_asks_no_other_host(answered: tuple[str, Reply], folder: Path) -> None:
    precision, reply = answered
    urls = [urlsplit(url) for url in reply["requests"]]
    assert {url.netloc for url in urls} == {urlsplit(reply["origin"]).netloc}
    row = PRECISIONS[precision]
    loaded = {url.path.removeprefix(f"/models/{folder.name}/") for url in urls if "/onnx/" in url.path}
    assert loaded == {row.model, row.data}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_folder_of_one_precision_needs_no_dtype(
    precision: str,
    questions: Reply,
    expected: Callable[[str, str], Any],
    browse: Callable[[Reply], Reply],
    tmp_path: Path,
) -> None:
    convert(CHECKPOINT, tmp_path / "only", precision=precision)
    reply = browse({**asked(tmp_path / "only", questions, precision), "dtype": None})
    assert reply["single"]["tokens"] == expected(precision, "single")
