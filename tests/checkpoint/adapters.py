"""Merges LoRA adapters into small GPT-2s, and computes in numpy what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

import converter
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.weights.ledger import account
from tests.checkpoint.writers.lora import Tensors

SIZES = {"vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 72}


def save_base(folder: Path, **config: Any) -> Path:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES | config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def merged(base: Path, adapter: Path) -> Tensors:
    """Every weight of the merged checkpoint, as it is written."""
    ledger = account(open_checkpoint(base, SourceOptions(adapter=adapter)))
    found = {}
    for name, tensor in ledger.weights.items():
        found[name] = np.concatenate(list(tensor.chunks())).reshape(tensor.shape)
        assert found[name].tobytes() == tensor.memmap().tobytes(), name
    return found


def weights_of(base: Path) -> Tensors:
    found = load_file(base / "model.safetensors")
    return {name.removeprefix("transformer."): array.astype(np.float64) for name, array in found.items()}


def expected_of(base: Path, tensors: Tensors, scale: Callable[[str], float]) -> Tensors:
    """Plain LoRA in plain numpy: W + s · (B A)ᵀ for Conv1D."""
    expected = weights_of(base)
    for name, a in tensors.items():
        if not name.endswith("lora_A.weight"):
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = tensors[name.replace("lora_A", "lora_B")]
        delta = scale(module) * (b.astype(np.float64) @ a.astype(np.float64))
        expected[f"{module.removeprefix('transformer.')}.weight"] += delta.T
    return expected


def assert_rounded(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array.astype(np.float32), err_msg=name)


def assert_close(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, array in expected.items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=0, atol=4e-6 * scale, err_msg=name)


def embedding_tensors(names: tuple[str, ...]) -> Tensors:
    random = np.random.default_rng(5)
    sizes = {"wte": 61, "wpe": 24}
    tensors = {}
    for name in names:
        tensors[f"base_model.model.transformer.{name}.lora_embedding_A"] = random.standard_normal(
            (3, sizes[name]), np.float32
        )
        tensors[f"base_model.model.transformer.{name}.lora_embedding_B"] = random.standard_normal((32, 3), np.float32)
    return tensors


def assert_logits(base: Path, tmp_path: Path, model: transformers.GPT2LMHeadModel) -> None:
    converter.convert(base, tmp_path / "out", adapter=tmp_path / "adapter")
    ids = np.array([[5, 17, 60, 0, 33, 21, 9]])
    with torch.inference_mode():
        truth = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(converter.load(tmp_path / "out").logits(ids), truth, atol=2e-5 * np.abs(truth).max())


def randomize(trained: torch.nn.Module) -> None:
    """Change every parameter that PEFT trains."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


def state_of(whole: torch.nn.Module) -> Tensors:
    """The weights of a merged model, by canonical name; a head that is the embedding is left out."""
    state = {name.removeprefix("transformer."): t.detach().numpy() for name, t in whole.state_dict().items()}
    if "lm_head.weight" in state and np.array_equal(state["lm_head.weight"], state["wte.weight"]):
        del state["lm_head.weight"]
    return state
