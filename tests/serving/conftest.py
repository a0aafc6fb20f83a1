"""Servers that the tests of this room share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from converter.data import CHECKPOINT
from converter.folder.convert import convert
from tests.conftest import random_head
from tests.serving.servers import Running, running


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of the small trained model, which no test of another room has proven."""
    out = tmp_path_factory.mktemp("served") / "onnx-folder"
    convert(CHECKPOINT, out)
    return out


@pytest.fixture(scope="session")
def server(bundled: Path) -> Iterator[Running]:
    """A server of the small trained model."""
    with running(bundled) as made:
        yield made


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory, bundled: Path) -> dict[str, Path]:
    """A folder of each other head, with the tokenizer of the small model."""
    import shutil

    home, found = tmp_path_factory.mktemp("heads"), dict[str, Path]()
    size = {"vocab_size": 2048, "n_positions": 64}
    for head in ("base", "sequence-classification", "token-classification", "question-answering"):
        source = home / f"{head}-source"
        random_head(head, 3, num_labels=3, **size).save_pretrained(source)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(bundled / name, source)
        found[head] = home / head
        convert(source, found[head])
    return found
