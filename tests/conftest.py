"""Small GPT-2s of every shape, made on the spot by transformers itself."""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may ask the network
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GPT2ONNX_NO_SYNC", "1")  # nothing here outlives the system
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else of whatever HOME a test has; Ray remembers it

import onnxruntime
import pytest
import torch
import transformers

from converter.data import CHECKPOINT
from converter.folder.convert import convert
from converter.runtime import ort
from reference.head import HEADS
from tests.workplace import things  # noqa: F401 - a fixture


def one_thread() -> ort.SessionOptions:
    """ONNX Runtime's defaults, but for the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


torch.set_num_threads(1)  # models as small as these only lose time to threads that wait for each other
ort.SessionOptions = one_thread
gc.freeze()  # what the imports left need not be looked at again and again
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

# No two dimensions alike, so that a transposition or a mix-up cannot go unseen.
SMALL = {"vocab_size": 61, "n_positions": 24, "n_embd": 12, "n_layer": 3, "n_head": 3, "n_inner": 20}


def random_gpt2(seed: int = 0, **config: Any) -> transformers.GPT2LMHeadModel:
    """transformers' GPT-2 with no parameter trivially 0 or 1."""
    return random_head("lm", seed, **config)


def random_head(head: str, seed: int = 0, **config: Any) -> Any:
    """Likewise of any of transformers' classes for GPT-2, by the name in ``reference.head.HEADS``."""
    torch.manual_seed(seed)
    model = getattr(transformers, HEADS[head].class_name)(
        transformers.GPT2Config(**{"bos_token_id": 0, "eos_token_id": 0} | SMALL | config)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


Save = Callable[..., Path]


# These tests take longest. They begin first, as the other processes would wait for one that begins last.
SLOWEST = ("tests/docs/", "tests/cli/test_examples.py", "tests/parity/test_precisions.py", "tests/parity/seeded/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(SLOWEST))  # stable


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clients-table", metavar="FILE", help="with -m clients: the page whose tables are written")
    parser.addoption("--exporters-table", metavar="FILE", help="with -m clients: the page on exporters, likewise")


@pytest.fixture(scope="session")
def head_model() -> Callable[..., Any]:
    """``head_model(head, seed=0, **config)``: see ``random_head``."""
    return random_head


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """``save(**config)`` writes a random checkpoint with ``save_pretrained`` and returns its folder.

    ``name`` names the folder, ``dtype`` converts the weights, ``max_shard_size`` shards them, ``head`` is what stands
    on the body; all else is config.
    """

    def write(
        name: str = "source", *, dtype: torch.dtype | None = None, seed: int = 0, head: str = "lm", **config: Any
    ) -> Path:
        options = {key: config.pop(key) for key in ("max_shard_size",) if key in config}
        model = random_head(head, seed, **config)
        (model if dtype is None else model.to(dtype)).save_pretrained(tmp_path / name, **options)
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of the checkpoint that ships with the project."""
    out = tmp_path_factory.mktemp("bundled") / "onnx-folder"
    convert(CHECKPOINT, out)
    return out
