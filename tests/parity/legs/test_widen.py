"""The widened graph computes in float64, whatever the activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from onnx import TensorProto, helper

from converter.folder.convert import convert
from converter.parity.legs import widen
from converter.parity.legs.widen import OpenedGraph, graph_session, spell_out, widened_session
from reference.config import ACTIVATION_NAMES

Save = Callable[..., Path]
Open = Callable[[Path], OpenedGraph]


def test_erf_is_right_to_the_last_digits() -> None:
    x = np.concatenate((np.linspace(-8, 8, 4001), [1e-300, 1e-8, 5.99, 6.01, 1e300]))
    value = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Erf", ["x"], ["y"])], "erf", value[:1], value[1:])
    spell_out(graph)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ours = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(ours, [math.erf(v) for v in x], rtol=0, atol=1e-14)


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_every_activation_runs_in_float64(save: Save, tmp_path: Path, activation: str, opset: int) -> None:
    # Heads of width 4 and powers of two elsewhere: every constant is exact in float32, so nothing is left to round.
    source = save(activation_function=activation, layer_norm_epsilon=2**-16)
    convert(source, tmp_path / "out", opset=opset)
    ids = np.arange(20).reshape(2, 10)
    graph = widened_session(tmp_path / "out" / "onnx" / "model.onnx")
    cache = {value.name: np.empty((2, 3, 0, 4)) for value in graph.session.get_inputs() if "past" in value.name}
    positions = np.broadcast_to(np.arange(10), ids.shape).copy()
    fed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
    ours = graph.session.run(["logits"], fed | cache)[0]
    model = transformers.GPT2LMHeadModel.from_pretrained(source, dtype=torch.float64, attn_implementation="eager")
    theirs = model(torch.tensor(ids)).logits.detach().numpy()
    # Constants of activations that are no operators are shipped in float32, and keep its rounding.
    constants = opset < 20 or activation in ("laplace", "leaky_relu", "quick_gelu")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 if constants else 1e-10)


@pytest.mark.skipif(not widen.HAS_WIDE_ATTENTION, reason="nothing to compare with")
def test_attention_is_spelled_out_where_onnx_runtime_has_none_in_float64(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 1.23 has not, which is the oldest that is supported."""
    convert(save(scale_attn_by_inverse_layer_idx=True), tmp_path / "out")
    rng = np.random.default_rng(0)
    mask = np.ones((2, 9), np.int64)
    mask[1, :3] = 0
    fed = {
        "input_ids": rng.integers(61, size=(2, 4)),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)[:, 5:],
    }

    def run(has: bool) -> list[np.ndarray]:
        monkeypatch.setattr(widen, "HAS_WIDE_ATTENTION", has)
        session = widened_session(tmp_path / "out" / "onnx" / "model.onnx").session
        values = [value for value in session.get_inputs() if "past" in value.name]
        cache = {value.name: np.random.default_rng(i).normal(size=(2, 3, 5, 4)) for i, value in enumerate(values)}
        return session.run(None, fed | cache)

    spelled_out = run(False)
    monkeypatch.setattr(widen, "attention", None)  # and nothing is spelled out where it need not be
    for spelled, whole in zip(spelled_out, run(True), strict=True):
        np.testing.assert_allclose(spelled, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("opened", [graph_session, widened_session])
@pytest.mark.parametrize(("limit", "threads"), [(10**9, 1), (0, 0)], ids=["small", "large"])
def test_a_small_graph_runs_on_one_thread(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Open, limit: int, threads: int
) -> None:
    monkeypatch.setattr("converter.runtime.ort.SessionOptions", onnxruntime.SessionOptions)  # outside of these tests
    monkeypatch.setattr(widen, "SMALL_MODEL", limit)
    convert(save(), tmp_path / "out")
    options = opened(tmp_path / "out" / "onnx" / "model.onnx").session.get_session_options()
    assert options.intra_op_num_threads == threads  # 0 is one a core
