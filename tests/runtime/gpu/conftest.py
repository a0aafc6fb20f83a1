"""The graph for a GPU, run by a CPU, which has its operators, too, but captures nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from converter.folder.convert import convert
from converter.runtime import opening
from converter.runtime.ort import CPU_PROVIDER
from converter.runtime.session import Model
from tests.conftest import random_gpt2


@pytest.fixture(scope="module")
def captures() -> Iterator[None]:
    """Let a CPU run what is made for a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(opening.CAPTURING, CPU_PROVIDER, {})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in fp16, with heads of 8."""
    place = tmp_path_factory.mktemp("gpu")
    random_gpt2(n_embd=24, n_positions=200).save_pretrained(place / "source")
    convert(place / "source", place / "out", precision="fp16")
    return place / "out"


@pytest.fixture(scope="module")
def plain(folder: Path) -> Model:
    """The shipped graph."""
    return opening.load(folder)


@pytest.fixture(scope="module")
def gpu(folder: Path, captures: None) -> Model:
    """The graph for a GPU."""
    return opening.load(folder, cuda_graphs=True)
