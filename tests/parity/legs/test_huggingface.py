"""transformers opens any source that converts: what its config says beside the architecture ends nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

import converter
from converter.checkpoint.config import OTHER_KEYS
from converter.checkpoint.open import open_checkpoint
from converter.errors import ConfigError
from converter.parity.legs.huggingface import HuggingFace
from converter.weights.ledger import account

Save = Callable[..., Path]

# Keys of a config that no number of a language model hangs on.
KEYS = [
    *sorted(OTHER_KEYS - {"model_type", "architectures"}),
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
    "quantization_config", "auto_map", "pruned_heads", "is_decoder", "tie_encoder_decoder", "output_scores",
     "temperature", "top_p", "fusion_config", "per_layer_config", "rope_parameters", "name_or_path",
]  # fmt: skip


def described(folder: Path, **values: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


IDS = torch.tensor([[5, 60, 0, 17]])


@torch.inference_mode()
def transformers_logits(folder: Path) -> np.ndarray:
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    found: np.ndarray = model(IDS).logits.numpy()
    return found


def logits_of(folder: Path) -> tuple[np.ndarray, str | None]:
    checkpoint = open_checkpoint(folder)
    huggingface = HuggingFace(checkpoint, account(checkpoint))
    model = huggingface.model(torch.float32, "eager")
    with torch.inference_mode():
        return model(IDS).logits.numpy(), huggingface.note


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "flash_attention_2"), ("_attn_implementation", "flash_attention_2"),
        ("attn_implementation", "no_such_kernel"), ("use_cache", None), ("use_cache", "false"), ("num_labels", None),
        ("num_labels", "two"), ("summary_type", None), ("summary_first_dropout", "0.1"), ("pad_token_id", "<pad>"),
        ("eos_token_id", "</s>"), ("bos_token_id", [1, "2"]), ("dtype", "auto"), ("torch_dtype", "float8"),
        ("return_dict", False), ("use_return_dict", False), ("id2label", []), ("label2id", None),
        ("task_specific_params", "none"), ("problem_type", "generation"), ("output_attentions", True),
        ("output_hidden_states", "yes"), ("transformers_version", None), ("chunk_size_feed_forward", None),
        ("gradient_checkpointing", True), ("max_length", "20"), ("n_ctx", None), ("tokenizer_class", 5),
    ],
)  # fmt: skip
def test_a_field_beside_the_architecture_is_not_read(save: Save, key: str, value: Any) -> None:
    folder = save()
    expected = transformers_logits(folder)
    found, note = logits_of(described(folder, **{key: value}))
    np.testing.assert_array_equal(found, expected)
    assert note is None


@pytest.mark.parametrize("value", [None, False, [], {}, 0], ids=str)
def test_no_field_whatever_it_says_ends_a_check(save: Save, tmp_path: Path, value: Any) -> None:
    folder = described(save(), **dict.fromkeys(KEYS, value))
    converter.convert(folder, tmp_path / "out")
    assert converter.check(folder, tmp_path / "out").passed


@pytest.mark.parametrize("value", ["<pad>", 7, -1, 0.5, True, ["<pad>"]], ids=str)
def test_a_field_of_another_type_ends_no_check(save: Save, tmp_path: Path, value: Any) -> None:
    refused = {"quantization_config", "auto_map", "pruned_heads"}  # said to be so, whatever they hold
    folder = described(save(), **dict.fromkeys([key for key in KEYS if key not in refused], value))
    converter.convert(folder, tmp_path / "out")
    assert converter.check(folder, tmp_path / "out").passed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pad_token_id", "<pad>"), ("num_labels", None), ("num_labels", "3"), ("layer_norm_epsilon", "1e-5"),
        ("scale_attn_weights", None), ("n_head", None), ("activation_function", None), ("resid_pdrop", None),
        ("tie_word_embeddings", None), ("vocab_size", "61"),
    ],
)  # fmt: skip
def test_a_field_that_shapes_the_model_is_refused_by_name(save: Save, key: str, value: Any) -> None:
    folder = described(save(head="sequence-classification"), id2label=None, **{key: value})
    with pytest.raises(ConfigError, match=rf"config\.json: {key} (is )?{value!r}"):
        open_checkpoint(folder)


@pytest.mark.parametrize("values", [{"layer_norm_epsilon": 1}, {"initializer_range": 0}, {"attn_pdrop": 1}], ids=str)
def test_a_whole_number_is_a_number(save: Save, values: dict[str, Any]) -> None:
    folder = described(save(), **values)
    found, note = logits_of(folder)
    described(folder, **{key: float(value) for key, value in values.items()})
    np.testing.assert_array_equal(found, transformers_logits(folder))
    assert note is None


def test_transformers_reads_the_architecture_by_itself(save: Save) -> None:
    """Also by the names that it takes for others."""
    folder = save()
    expected, _ = logits_of(folder)
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for alias, name in {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }.items():
        values[alias] = values.pop(name)
    file.write_text(json.dumps(values))
    np.testing.assert_array_equal(logits_of(folder)[0], expected)


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": "hot", "max_length": null}'])
def test_generation_settings_of_any_sort_are_not_read(save: Save, text: str) -> None:
    folder = save()
    expected, _ = logits_of(folder)
    (folder / "generation_config.json").write_text(text)
    found, note = logits_of(folder)
    np.testing.assert_array_equal(found, expected)
    assert note is None
