"""Any legal GPT-2 converts, and Hugging Face, the reference and ONNX agree on it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter import check, convert
from converter.graph.build import MAX_OPSET, MIN_OPSET
from reference.config import ACTIVATION_NAMES

SEEDS = st.integers(0, 2**16)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A small GPT-2 of any shape, with any combination of flags."""
    n_head = draw(st.integers(1, 4))
    return {
        "n_head": n_head,
        "n_embd": n_head * draw(st.integers(1, 9)),
        "n_layer": draw(st.integers(1, 3)),
        "n_positions": draw(st.integers(1, 40)),
        "vocab_size": draw(st.integers(2, 70)),
        "n_inner": draw(st.none() | st.integers(1, 40)),
        "activation_function": draw(st.sampled_from(ACTIVATION_NAMES)),
        "layer_norm_epsilon": draw(st.sampled_from((1e-12, 1e-6, 1e-5, 1e-3))),
        "scale_attn_weights": draw(st.booleans()),
        "scale_attn_by_inverse_layer_idx": draw(st.booleans()),
        "reorder_and_upcast_attn": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": None,
        "eos_token_id": None,
    }


def trained(config: dict[str, Any], seed: int) -> transformers.GPT2LMHeadModel:
    """A model whose weights are as large as training makes them."""
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    configs(),
    SEEDS,
    st.sampled_from((torch.float32, torch.float16, torch.bfloat16)),
    st.integers(MIN_OPSET, MAX_OPSET),
    st.sampled_from(("", "attentions,hidden_states", "*")),
)
def test_any_legal_model_converts_and_matches(
    config: dict[str, Any], seed: int, dtype: torch.dtype, opset: int, outputs: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        trained(config, seed).to(dtype).save_pretrained(source)
        convert(source, out, opset=opset, outputs=outputs)
        report = check(source, out)
        assert report.passed, report.faults
