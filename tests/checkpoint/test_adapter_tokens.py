"""Single tokens that an adapter trained get the rows that PEFT gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import converter
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.errors import CheckpointError
from tests.checkpoint.adapters import (
    assert_close,
    assert_logits,
    embedding_tensors,
    merged,
    randomize,
    save_base,
    state_of,
    weights_of,
)
from tests.checkpoint.writers.lora import MODULES, Tensors, pairs, write

peft = pytest.importorskip("peft")

NEW = 64  # tokens of a resized base, of which the base has 61


def trained(base: Path, adapter: Path, tokens: Any, *, keep: bool = False, **options: Any) -> Any:
    """Save an adapter that PEFT made of a base and changed; return PEFT's own merge of it."""
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    options = {"target_modules": ["c_attn"], "fan_in_fan_out": True, **options}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=7, trainable_token_indices=tokens, **options))
    randomize(wrapped)
    wrapped.save_pretrained(adapter, save_embedding_layers=keep)
    fresh = transformers.GPT2LMHeadModel.from_pretrained(base)
    return peft.PeftModel.from_pretrained(fresh, adapter).merge_and_unload().eval()


TIED = {
    "a list, in no order": [60, 3, 7],
    "by the embedding's name": {"wte": [3, 7]},
    "by its whole name": {"transformer.wte": [3, 7]},
    "the same ones of both": {"wte": [3, 7], "lm_head": [3, 7]},
    "positions": {"wpe": [0, 23]},
    "positions and tokens": {"wpe": [2], "wte": [9]},
}
UNTIED = TIED | {"the head's": {"lm_head": [2, 5]}, "others of both": {"wte": [3, 7], "lm_head": [1, 7, 60]}}
CASES = [(tie, name) for tie, cases in ((True, TIED), (False, UNTIED)) for name in cases]


@pytest.mark.parametrize(("tie", "case"), CASES, ids=lambda value: value if isinstance(value, str) else str(value))
def test_peft_gives_the_same_rows(tmp_path: Path, tie: bool, case: str) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=tie)
    whole = trained(base, tmp_path / "adapter", UNTIED[case])
    found = merged(base, tmp_path / "adapter")
    assert_close(found, state_of(whole))
    assert tie is ("lm_head.weight" not in found)
    assert_logits(base, tmp_path, whole)
    assert converter.check(base, tmp_path / "out", adapter=tmp_path / "adapter").passed


def test_rows_of_tokens_are_those_of_the_file_and_all_others_the_base_s(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    trained(base, tmp_path / "adapter", [60, 3])
    new = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    [rows] = [array for name, array in new.items() if name.endswith("wte.token_adapter.trainable_tokens_delta")]
    expected = weights_of(base)["wte.weight"].astype(np.float32)
    expected[[60, 3]] = rows
    np.testing.assert_array_equal(merged(base, tmp_path / "adapter")["wte.weight"], expected)


def test_a_head_that_the_file_holds_beside_its_embedding_stays_tied(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    whole = trained(base, tmp_path / "adapter", [60, 3])
    weights = load_file(base / "model.safetensors")
    save_file(weights | {"lm_head.weight": weights["transformer.wte.weight"]}, base / "model.safetensors")
    assert_close(merged(base, tmp_path / "adapter"), state_of(whole))


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("tokens", [[3, 61, 63], {"wte": [61, 62], "lm_head": [61, 62]}], ids=str)
@pytest.mark.parametrize("keep", [True, False])
def test_new_tokens_come_with_the_adapter_as_far_as_it_holds_them(
    tmp_path: Path, tokens: Any, tie: bool, keep: bool
) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=tie)
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    model.resize_token_embeddings(NEW)
    model.save_pretrained(tmp_path / "resized")
    whole = trained(tmp_path / "resized", tmp_path / "adapter", tokens, keep=keep)
    assert_close(merged(tmp_path / "resized", tmp_path / "adapter"), state_of(whole))
    assert open_checkpoint(tmp_path / "resized", SourceOptions(adapter=tmp_path / "adapter")).config.vocab_size == NEW
    if keep:
        assert_close(merged(base, tmp_path / "adapter"), state_of(whole))
        assert_logits(base, tmp_path, whole)
    else:
        with pytest.raises(CheckpointError, match=r"names token 6[23], and \S+ of base has 61 rows: resize it as"):
            open_checkpoint(base, SourceOptions(adapter=tmp_path / "adapter"))


# --- what PEFT gives two meanings, or none


@pytest.mark.parametrize("tokens", [{"lm_head": [2, 5]}, {"wte": [3, 7], "lm_head": [1, 7]}], ids=str)
def test_tokens_of_a_tied_head_alone_are_refused_as_peft_changes_the_model_by_merging_them(
    tmp_path: Path, tokens: dict[str, list[int]]
) -> None:
    base = save_base(tmp_path / "base")
    whole = trained(base, tmp_path / "adapter", tokens)
    fresh = transformers.GPT2LMHeadModel.from_pretrained(base)
    ids = torch.tensor([[5, 3, 7, 2, 60]])
    before = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()(ids).logits
    assert not torch.allclose(before, whole(ids).logits, atol=0.1)
    with pytest.raises(CheckpointError, match=r"tokens of lm_head that are not those of wte, and base ties the two: w"):
        open_checkpoint(base, SourceOptions(adapter=tmp_path / "adapter"))


DELTA = "base_model.model.{}.token_adapter.trainable_tokens_delta"
WTE = DELTA.format("transformer.wte")
ROWS = np.ones((2, 32), np.float32)


@pytest.mark.parametrize(
    ("tensors", "tokens", "config", "message"),
    [
        ({}, [3, 7], {}, r"adapter_model\.safetensors has no rows of wte, whose tokens"),
        ({WTE: ROWS}, {"wte": [3, 7], "wpe": [1]}, {}, "has no rows of wpe, whose tokens"),
        ({WTE: ROWS}, None, {}, "trainable_tokens_delta is none of the tensors"),
        ({WTE: ROWS}, [3], {}, r"is \[2, 32\]; expected \[1, 32\], as .* names 1 tokens and .* of base is \[61, 32\]"),
        ({WTE: ROWS[:, :9]}, [3, 7], {}, r"is \[2, 9\]; expected \[2, 32\]"),
        ({WTE: ROWS, DELTA.format("lm_head"): ROWS}, {"transformer.wte": [3, 7], "wte": [3, 7]}, {}, "not asked"),
        ({WTE: ROWS}, [3, 61], {}, r"names token 61, and transformer\.wte\.weight of base has 61 rows"),
        ({WTE: ROWS}, [3, 7], {"modules_to_save": ["wte"]}, "names single tokens of wte and changes all of it, too"),
        ({WTE: ROWS}, [3, 7], {"modules_to_save": ["lm_head"]}, "names single tokens of .* and changes all of it, too"),
        ({WTE: ROWS, DELTA.format("transformer.ln_f"): ROWS}, {"wte": [3, 7], "ln_f": [0, 1]}, {},
         r"ln_f\.token_adapter\.trainable_tokens_delta is none of the tensors"),
        ({WTE: ROWS, "base_model.model.lm_head.token_adapter.base_layer.weight": np.ones((61, 32), np.float32)},
         [3, 7], {}, "is not where PEFT looks for the base of an update"),
    ],
)  # fmt: skip
def test_rows_that_config_and_base_do_not_account_for_are_refused(
    tmp_path: Path, base: Path, tensors: Tensors, tokens: Any, config: dict[str, Any], message: str
) -> None:
    adapter = write(tmp_path / "adapter", pairs(MODULES) | tensors, trainable_token_indices=tokens, **config)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(base, SourceOptions(adapter=adapter))


def test_tokens_of_an_updated_embedding_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=False)
    tensors = pairs(MODULES) | embedding_tensors(("wte",)) | {WTE: ROWS}
    modules = ["c_attn", "mlp.c_proj", "wte"]
    adapter = write(tmp_path / "adapter", tensors, trainable_token_indices=[3, 7], target_modules=modules)
    with pytest.raises(CheckpointError, match="names single tokens of wte and changes all of it, too"):
        open_checkpoint(base, SourceOptions(adapter=adapter))
