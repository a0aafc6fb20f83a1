"""A merged adapter is what PEFT merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.checkpoint.adapters import assert_close, assert_logits, merged, save_base

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
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    trained.save_pretrained(tmp_path / "adapter")
    fresh = transformers.GPT2LMHeadModel.from_pretrained(base)
    whole = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").merge_and_unload().eval()
    state = {name.removeprefix("transformer."): t.detach().numpy() for name, t in whole.state_dict().items()}
    found = merged(base, tmp_path / "adapter")
    if "lm_head.weight" not in found:
        assert np.array_equal(state.pop("lm_head.weight"), state["wte.weight"])
    assert_close(found, state)
    assert_logits(base, tmp_path, whole)
