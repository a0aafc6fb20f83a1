"""Reads, changes and compares folders that were saved, and opens them with transformers."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]

PROJECTIONS = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
IDS = torch.tensor([[5, 60, 0, 17, 17, 3, 42]])

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
either_head = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def digest(folder: Path, *, manifest: bool = False) -> dict[str, str]:
    """Each file's hash; without the manifest, which says what the source was."""
    files = (file for file in folder.rglob("*") if file.is_file() and (manifest or file.name != "gpt2onnx.json"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def change(file: Path, *without: str, **values: Any) -> None:
    kept = {key: value for key, value in json.loads(file.read_text()).items() if key not in without}
    file.write_text(json.dumps(kept | values))


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        bits = [t.contiguous().view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*bits), name


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What transformers logs as a warning or worse, and what Python warns of."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    said: list[str] = []
    logger, collector = logging.getLogger("transformers"), Collector(logging.WARNING)
    before = logger.level
    transformers.utils.logging.warning_once.cache_clear()  # else a warning of an earlier test is not repeated
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [str(warning.message) for warning in caught]
    finally:
        logger.removeHandler(collector)
        logger.setLevel(before)


def open_quietly(folder: Path) -> transformers.GPT2LMHeadModel:
    """transformers' model of a folder, which it opens without a word and finds complete."""
    with complaints() as said:
        model, info = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert said == [], said
    assert not any(info.values()), info
    return model.eval()


def nanogpt(source: Path, file: Path) -> Path:
    """The checkpoint of a Hugging Face folder as nanoGPT has it."""
    weights, config = load_file(source / "model.safetensors"), config_of(source)
    state = {name: t.T.contiguous() if name.endswith(PROJECTIONS) else t for name, t in weights.items()}
    args = {name: config[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    args |= {"block_size": config["n_positions"], "bias": True}
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    torch.save({"model": {f"_orig_mod.{name}": t for name, t in state.items()}, "model_args": args}, file)
    return file
