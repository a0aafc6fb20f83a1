"""A merged adapter is what PEFT merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import converter
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.data import CHECKPOINT
from converter.errors import CheckpointError
from converter.weights.ledger import account
from tests.checkpoint.adapters import assert_close, assert_logits, merged, randomize, save_base, state_of
from tests.checkpoint.writers.lora import MODULES, pairs, write

PEFT_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "every projection, rslora": ({"target_modules": ["c_attn", "c_proj", "c_fc"], "use_rslora": True}, {}),
    "all-linear": ({"target_modules": "all-linear"}, {}),
    "patterns": (
        {"target_modules": ["c_attn", "c_proj"], "rank_pattern": {"attn.c_proj": 5, r"h\.0\.attn\.c_proj": 2},
         "alpha_pattern": {r"h\.[01]\.mlp\.c_proj": 11}},
        {},
    ),
    "dora": ({"target_modules": ["c_attn", "c_fc"], "use_dora": True}, {}),
    "lora_bias": ({"target_modules": ["c_attn", "mlp.c_proj"], "lora_bias": True}, {}),
    "bias all": ({"target_modules": ["c_attn"], "bias": "all"}, {}),
    "bias lora_only": ({"target_modules": ["c_attn"], "bias": "lora_only"}, {}),
    "modules_to_save": ({"target_modules": ["c_attn"], "modules_to_save": ["ln_f", "mlp.c_fc"]}, {}),
    "head saved": ({"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]}, {}),
    "embedding saved": ({"target_modules": ["c_attn"], "modules_to_save": ["wte"]}, {}),
    "positions": ({"target_modules": ["wpe", "c_fc"]}, {}),
    "untied": ({"target_modules": ["wte", "lm_head", "c_attn"]}, {"tie_word_embeddings": False}),
    "untied dora head": ({"target_modules": ["lm_head"], "use_dora": True}, {"tie_word_embeddings": False}),
    "layers": ({"target_modules": ["c_attn"], "layers_to_transform": [0, 2]}, {}),
    "regular expression": ({"target_modules": r"transformer\.h\.[02]\..*c_attn"}, {}),
    "excluded": ({"target_modules": ["c_proj"], "exclude_modules": r".*\.attn\.c_proj"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", PEFT_CASES)
def test_peft_merges_to_the_same_weights(tmp_path: Path, case: str) -> None:
    peft = pytest.importorskip("peft")
    options, base_options = PEFT_CASES[case]
    base = save_base(tmp_path / "base", **base_options)
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    trained = peft.get_peft_model(model, peft.LoraConfig(**{"r": 3, "lora_alpha": 7} | options))
    randomize(trained)
    trained.save_pretrained(tmp_path / "adapter")
    fresh = transformers.GPT2LMHeadModel.from_pretrained(base)
    whole = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").merge_and_unload().eval()
    assert_close(merged(base, tmp_path / "adapter"), state_of(whole))
    assert_logits(base, tmp_path, whole)


# --- new tokens

NEW = 64  # tokens, of which the base has 61


def adapter_of_a_resized_model(
    tmp_path: Path, saved: list[str], tie: bool, keep: bool | str, **more: Any
) -> tuple[Path, Path, Any]:
    """The base, the base resized, and PEFT's own merge of a training with new tokens."""
    peft = pytest.importorskip("peft")
    base = save_base(tmp_path / "base", tie_word_embeddings=tie)
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    model.resize_token_embeddings(NEW)
    model.save_pretrained(tmp_path / "resized")
    options = {"target_modules": ["c_attn"], "modules_to_save": [*saved] or None, "fan_in_fan_out": True, **more}
    trained = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=7, **options))
    randomize(trained)
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=keep)
    fresh = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "resized")
    whole = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").merge_and_unload().eval()
    return base, tmp_path / "resized", whole


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("saved", "keep"),
    [
        (["wte", "lm_head"], True), (["wte", "lm_head"], False), (["wte"], True), (["lm_head"], True), ([], True),
    ],
    ids=str,
)  # fmt: skip
def test_new_tokens_come_with_the_adapter_whether_or_not_the_base_was_resized(
    tmp_path: Path, saved: list[str], keep: bool, tie: bool
) -> None:
    base, resized, whole = adapter_of_a_resized_model(tmp_path, saved, tie, keep)
    for source in (resized, base):
        found = open_checkpoint(source, SourceOptions(adapter=tmp_path / "adapter"))
        assert (found.config.vocab_size, found.config_values["vocab_size"]) == (NEW, NEW)
        assert_close(merged(source, tmp_path / "adapter"), state_of(whole))
    assert_logits(base, tmp_path, whole)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("saved", [["wte", "lm_head"], ["lm_head"], ["wte"]], ids=str)
def test_embeddings_that_peft_was_told_to_keep_tied_are_what_it_makes_of_them(
    tmp_path: Path, saved: list[str], keep: bool
) -> None:
    base, resized, whole = adapter_of_a_resized_model(tmp_path, saved, True, keep, ensure_weight_tying=True)
    one = torch.equal(whole.lm_head.weight, whole.transformer.wte.weight)
    assert one or saved == ["wte"]
    for source in (resized, base) if keep or one else (resized,):
        found = merged(source, tmp_path / "adapter")
        assert one is ("lm_head.weight" not in found)
        assert_close(found, state_of(whole))


def test_a_tied_update_is_merged_by_peft_as_advised(tmp_path: Path) -> None:
    base, resized, whole = adapter_of_a_resized_model(
        tmp_path, [], True, True, target_modules=["c_attn", "wte"], ensure_weight_tying=True
    )
    for source in (base, resized):
        with pytest.raises(CheckpointError, match=r"ensure_weight_tying for an update of wte, .*; merge with peft"):
            open_checkpoint(source, SourceOptions(adapter=tmp_path / "adapter"))
    whole.save_pretrained(tmp_path / "whole")
    found = account(open_checkpoint(tmp_path / "whole")).weights
    assert_close({name: weight.memmap() for name, weight in found.items()}, state_of(whole))


@pytest.mark.parametrize("saved", [["wte"], ["lm_head"]], ids=str)
def test_a_base_that_must_be_resized_first_is_resized_as_advised(tmp_path: Path, saved: list[str]) -> None:
    base, _, whole = adapter_of_a_resized_model(tmp_path, saved, False, False)
    message = (
        r"holds 64 rows of \S+, and \S+ of base has 61: resize it with model\.resize_token_embeddings\(64\), save it"
    )
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(base, SourceOptions(adapter=tmp_path / "adapter"))
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    torch.manual_seed(0)
    model.resize_token_embeddings(NEW)
    model.save_pretrained(tmp_path / "again")
    found, expected = merged(tmp_path / "again", tmp_path / "adapter"), state_of(whole)
    other = "lm_head.weight" if saved == ["wte"] else "wte.weight"
    assert_close({n: x[:61] if n == other else x for n, x in found.items()},
                 {n: x[:61] if n == other else x for n, x in expected.items()})  # fmt: skip


def test_an_update_of_a_resized_embedding_says_that_the_base_must_be_resized(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = save_base(tmp_path / "base", tie_word_embeddings=False)
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    model.resize_token_embeddings(NEW)
    model.save_pretrained(tmp_path / "resized")
    trained = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["wte"]))
    randomize(trained)
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(
        CheckpointError, match=r"embedding_A is \[3, 64\]; expected \[3, 61\].*resize_token_embeddings\(64\)"
    ):
        open_checkpoint(base, SourceOptions(adapter=tmp_path / "adapter"))
    assert_close(merged(tmp_path / "resized", tmp_path / "adapter"), state_of(trained.merge_and_unload()))


def test_the_tokenizer_beside_an_adapter_with_new_tokens_goes_with_the_model(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    old = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<bot>"]})
    model = transformers.GPT2LMHeadModel.from_pretrained(CHECKPOINT, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    options = {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"], "fan_in_fan_out": True}
    trained = peft.get_peft_model(model, peft.LoraConfig(r=2, **options))
    trained.save_pretrained(tmp_path / "adapter")
    for beside, expected in ((False, old), (True, len(tokenizer))):
        if beside:
            tokenizer.save_pretrained(tmp_path / "adapter")
        converter.convert(CHECKPOINT, tmp_path / "out", adapter=tmp_path / "adapter", force=True)
        assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) == expected
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("<bot>")["input_ids"] == [old + 1]
    assert converter.check(CHECKPOINT, tmp_path / "out", adapter=tmp_path / "adapter").passed


# --- an adapter in the wrong place


def test_an_adapter_given_as_the_source_names_its_base_and_the_option(tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", save_base(tmp_path / "base")
    write(adapter, pairs(MODULES), base_model_name_or_path=str(base))
    message = rf"adapter is an adapter and no model: give {base}, which it changes, as SOURCE, and --adapter {adapter}$"
    for source in (adapter, adapter / "adapter_model.safetensors"):
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(source)
    (adapter / "config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(adapter)
    assert open_checkpoint(base, SourceOptions(adapter=adapter)).adapter_name == "adapter"
    write(adapter, pairs(MODULES), base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="give the model that it was trained on as SOURCE, and --adapter"):
        open_checkpoint(adapter)


def test_a_whole_model_beside_an_adapter_config_is_a_model(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    write(base, pairs(MODULES), base_model_name_or_path="somewhere/else")
    converter.convert(base, tmp_path / "out")
    assert converter.check(base, tmp_path / "out").passed
