"""A merged adapter is what numpy computes of its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.weights.ledger import account
from tests.checkpoint.adapters import (
    assert_close,
    assert_rounded,
    embedding_tensors,
    expected_of,
    merged,
    save_base,
    weights_of,
)
from tests.checkpoint.writers.lora import MODULES, OUTER, pairs, write


@pytest.mark.parametrize(
    ("config", "ranks", "scale"),
    [
        ({}, {}, lambda m: 7 / 3),
        ({"fan_in_fan_out": False}, {}, lambda m: 7 / 3),  # PEFT knows better: a Conv1D is one
        ({"use_rslora": True}, {}, lambda m: 7 / 3**0.5),
        ({"alpha_pattern": {"c_attn": 5, "h.1.attn.c_attn": 99}}, {}, lambda m: (5 if "c_attn" in m else 7) / 3),
        ({"alpha_pattern": {"h.1.attn.c_attn": 9, "c_attn": 5}}, {},
         lambda m: (9 if "h.1.attn.c_attn" in m else 5 if "c_attn" in m else 7) / 3),
        ({"rank_pattern": {r"h\.[12]\.attn\.c_attn": 2}}, dict.fromkeys((MODULES[2], MODULES[4]), 2),
         lambda m: 7 / (2 if m in (MODULES[2], MODULES[4]) else 3)),
        ({"rank_pattern": {"^transformer.h.0.mlp.c_proj": 5}, "use_rslora": True}, {MODULES[1]: 5},
         lambda m: 7 / (5 if m == MODULES[1] else 3) ** 0.5),
        ({"rank_pattern": {"attn": 2, "proj": 4}}, {}, lambda m: 7 / 3),  # no whole part of a name: they fit nothing
        ({"lora_alpha": 0}, {}, lambda m: 0),
        ({"target_modules": r".*\.(c_attn|mlp\.c_proj)"}, {}, lambda m: 7 / 3),
        ({"target_modules": MODULES}, {}, lambda m: 7 / 3),
        ({"target_modules": ["c_attn", "c_proj"], "exclude_modules": ["attn.c_proj"]}, {}, lambda m: 7 / 3),
    ],
)  # fmt: skip
def test_an_adapter_is_added_as_its_config_says(
    tmp_path: Path, base: Path, config: dict[str, Any], ranks: dict[str, int], scale: Callable[[str], float]
) -> None:
    tensors = pairs(MODULES, ranks=ranks)
    adapter = write(tmp_path / "adapter", tensors, **config)
    assert_rounded(merged(base, adapter), expected_of(base, tensors, scale))


@pytest.mark.parametrize(
    ("config", "modules"),
    [
        ({"target_modules": ["c_attn"], "layers_to_transform": [0, 2]}, [MODULES[0], MODULES[4]]),
        ({"target_modules": ["c_attn"], "layers_to_transform": 1, "layers_pattern": "h"}, [MODULES[2]]),
        ({"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": ["layer", "h"]}, [MODULES[2]]),
        ({"target_modules": None}, [m for m in MODULES if m.endswith("c_attn")]),
        ({"target_modules": "all-linear"}, [f"transformer.h.{i}.{name}" for i in range(3) for name in OUTER]),
    ],
)
def test_only_the_modules_that_are_targeted_are_expected(
    tmp_path: Path, base: Path, config: dict[str, Any], modules: list[str]
) -> None:
    tensors = pairs(modules)
    found = merged(base, write(tmp_path / "adapter", tensors, **config))
    assert_rounded(found, expected_of(base, tensors, lambda m: 7 / 3))


def test_defaults_are_peft_s_own(tmp_path: Path, base: Path) -> None:
    tensors = pairs([m for m in MODULES if m.endswith("c_attn")], rank=8)
    adapter = write(tmp_path / "adapter", tensors, without=("r", "lora_alpha", "target_modules"))
    assert_rounded(merged(base, adapter), expected_of(base, tensors, lambda m: 1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_narrow_adapter_and_one_saved_by_torch_are_read(tmp_path: Path, base: Path, dtype: Any) -> None:
    tensors = {name: array.astype(dtype) for name, array in pairs(MODULES).items()}
    adapter = write(tmp_path / "adapter", {})
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({name: torch.tensor(array) for name, array in tensors.items()}, adapter / "adapter_model.bin")
    assert_rounded(merged(base, adapter), expected_of(base, tensors, lambda m: 7 / 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_narrow_base_of_any_layout_in_its_file_is_widened(tmp_path: Path, base: Path, dtype: torch.dtype) -> None:
    state = transformers.GPT2LMHeadModel.from_pretrained(base).to(dtype).transformer.state_dict()
    (base / "model.safetensors").unlink()
    turned = {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in state.items()}
    torch.save(turned, base / "pytorch_model.bin")
    tensors = pairs(MODULES)
    expected = {name: tensor.double().numpy() for name, tensor in state.items()}
    for module in MODULES:
        a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
        expected[f"{module.removeprefix('transformer.')}.weight"] += 7 / 3 * (b @ a).T
    ledger = account(open_checkpoint(base, SourceOptions(adapter=write(tmp_path / "adapter", tensors))))
    for module in MODULES:
        name = f"{module.removeprefix('transformer.')}.weight"
        np.testing.assert_array_equal(ledger.weights[name].memmap(), expected[name].astype(np.float32))
    assert ledger.weights["ln_f.bias"].dtype == str(dtype).removeprefix("torch.")


def test_dora_gives_every_output_the_length_it_learned(tmp_path: Path, base: Path) -> None:
    tensors = pairs(MODULES)
    expected = expected_of(base, tensors, lambda m: 7 / 3)
    for module in MODULES:
        lengths = np.random.default_rng(1).uniform(1, 2, OUTER[module.split(".", 3)[3]][1]).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_magnitude_vector"] = lengths
        weight = expected[f"{module.removeprefix('transformer.')}.weight"]
        weight *= lengths.astype(np.float64) / np.linalg.norm(weight, axis=0)
    assert_close(merged(base, write(tmp_path / "adapter", tensors, use_dora=True)), expected)


def test_biases_are_shifted_or_replaced(tmp_path: Path, base: Path) -> None:
    tensors = pairs(MODULES)
    expected = expected_of(base, tensors, lambda m: 7 / 3)
    for module in MODULES:
        shift = np.random.default_rng(1).standard_normal(OUTER[module.split(".", 3)[3]][1]).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.bias"] = shift
        expected[f"{module.removeprefix('transformer.')}.bias"] += 7 / 3 * shift.astype(np.float64)
    tensors["base_model.model.transformer.ln_f.bias"] = expected["ln_f.bias"] = np.arange(32, dtype=np.float32)
    assert_rounded(merged(base, write(tmp_path / "adapter", tensors, lora_bias=True, bias="all")), expected)


def test_modules_to_save_stand_in_the_base_s_stead(tmp_path: Path, base: Path) -> None:
    tensors = pairs(MODULES)
    expected = expected_of(base, tensors, lambda m: 7 / 3)
    for name, shape in {"ln_f.weight": (32,), "ln_f.bias": (32,), "h.1.mlp.c_fc.weight": (32, 72)}.items():
        expected[name] = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
        tensors[f"base_model.model.transformer.{name}"] = expected[name]
    adapter = write(tmp_path / "adapter", tensors, modules_to_save=["ln_f", "1.mlp.c_fc"])
    assert_rounded(merged(base, adapter), expected)


def test_a_head_that_was_trained_as_a_whole_is_no_longer_the_embedding(tmp_path: Path, base: Path) -> None:
    head = np.random.default_rng(2).standard_normal((61, 32)).astype(np.float32)
    tensors = pairs(MODULES) | {"base_model.model.lm_head.weight": head}
    adapter = write(tmp_path / "adapter", tensors, modules_to_save=["lm_head"])
    expected = expected_of(base, tensors, lambda m: 7 / 3) | {"lm_head.weight": head}
    assert_rounded(merged(base, adapter), expected)
    found = open_checkpoint(base, SourceOptions(adapter=adapter))
    assert not found.config.tie_word_embeddings
    assert not account(found).warnings


def test_an_embedding_that_was_trained_as_a_whole_leaves_the_head_as_it_was(tmp_path: Path, base: Path) -> None:
    table = np.random.default_rng(2).standard_normal((61, 32)).astype(np.float32)
    tensors = pairs(MODULES) | {"base_model.model.transformer.wte.weight": table}
    adapter = write(tmp_path / "adapter", tensors, modules_to_save=["wte"])
    expected = expected_of(base, tensors, lambda m: 7 / 3)
    assert_rounded(merged(base, adapter), expected | {"lm_head.weight": expected["wte.weight"], "wte.weight": table})


def test_embeddings_that_were_saved_beside_the_adapter_are_still_one(tmp_path: Path, base: Path) -> None:
    table = np.random.default_rng(2).standard_normal((61, 32)).astype(np.float32)
    both = {f"base_model.model.{name}.weight": table for name in ("transformer.wte", "lm_head")}
    found = merged(base, write(tmp_path / "adapter", pairs(MODULES) | both))
    assert "lm_head.weight" not in found
    assert found["wte.weight"].tobytes() == table.tobytes()


def test_embeddings_and_an_untied_head_have_layouts_of_their_own(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=False)
    tensors = embedding_tensors(("wte", "wpe"))
    tensors["base_model.model.lm_head.lora_A.weight"] = np.random.default_rng(3).standard_normal((3, 32), np.float32)
    tensors["base_model.model.lm_head.lora_B.weight"] = np.random.default_rng(4).standard_normal((61, 3), np.float32)
    expected = weights_of(base)
    wide = {name.removeprefix("base_model.model."): array.astype(np.float64) for name, array in tensors.items()}
    for name in ("wte", "wpe"):
        product = wide[f"transformer.{name}.lora_embedding_B"] @ wide[f"transformer.{name}.lora_embedding_A"]
        expected[f"{name}.weight"] += 7 / 3 * product.T
    expected["lm_head.weight"] += 7 / 3 * (wide["lm_head.lora_B.weight"] @ wide["lm_head.lora_A.weight"])
    adapter = write(tmp_path / "adapter", tensors, target_modules=["wte", "wpe", "lm_head"])
    assert_rounded(merged(base, adapter), expected)
