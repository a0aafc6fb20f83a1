"""The graphs of heads: their interface, and that they compute what transformers computes, at every opset."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from converter import convert
from converter.graph.build import MAX_OPSET, MIN_OPSET
from reference.config import ACTIVATION_NAMES
from reference.head import ASKED

Make = Callable[..., Any]

SINGLE = [head for head in ASKED if head not in ("lm", "double-heads")]
SUMMARIES = [None, *(name for name in ACTIVATION_NAMES if name != "prelu")]
EPSILON = float(np.finfo(np.float32).eps)

every_head = pytest.mark.parametrize("head", [*SINGLE, "double-heads"])


def graph_file(out: Path, head: str) -> Path:
    return out / "onnx" / ("model_multiple_choice.onnx" if head == "double-heads" else "model.onnx")


def run(file: Path, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input_ids": ids, "attention_mask": mask}), strict=True))


def transformers_answer(theirs: Any, head: str, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Of transformers' class; for double heads the choice's, the rightmost attended token answering."""
    fed = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    fed["position_ids"] = (fed["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
    if head == "double-heads":
        fed["mc_token_ids"] = (torch.arange(ids.shape[-1]) * fed["attention_mask"]).argmax(dim=-1)
        fed["position_ids"] = fed["position_ids"].flatten(0, 1)
    with torch.no_grad():
        out = theirs(**fed)
    return {name: value.numpy() for name, value in out.items() if isinstance(value, torch.Tensor)}


def padded(rows: list[list[int]], filler: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, rows))
    ids, mask = np.full((len(rows), longest), filler), np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, where], mask[i, where] = row, 1
    return ids, mask


def interface(values: Any) -> dict[str, tuple[int, list[int | str]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


TOKENS: list[int | str] = ["batch_size", "sequence_length"]
OUTPUTS: dict[str, dict[str, list[int | str]]] = {
    "base": {"last_hidden_state": [*TOKENS, 12]},
    "sequence-classification": {"logits": ["batch_size", 7]},
    "token-classification": {"logits": [*TOKENS, 7]},
    "question-answering": {"start_logits": TOKENS, "end_logits": TOKENS},
    "double-heads": {"mc_logits": ["batch_size", "num_choices"]},
}


@every_head
def test_a_graph_takes_ids_and_mask_and_gives_what_its_head_answers(save: Make, tmp_path: Path, head: str) -> None:
    labels = {} if head == "double-heads" else {"num_labels": 7}
    convert(save(head=head, **labels), tmp_path / "out")
    graph = onnx.load(graph_file(tmp_path / "out", head), load_external_data=False).graph
    shape = ["batch_size", "num_choices", "sequence_length"] if head == "double-heads" else TOKENS
    assert interface(graph.input) == dict.fromkeys(("input_ids", "attention_mask"), (onnx.TensorProto.INT64, shape))
    assert interface(graph.output) == {name: (onnx.TensorProto.FLOAT, shape) for name, shape in OUTPUTS[head].items()}


@every_head
@pytest.mark.parametrize("opset", range(MIN_OPSET, MAX_OPSET + 1))
def test_the_reference_evaluator_and_onnx_runtime_give_what_transformers_gives(
    save: Make, head_model: Make, tmp_path: Path, head: str, opset: int
) -> None:
    config = {"pad_token_id": 9, "n_layer": 2, "summary_activation": "tanh"}
    convert(save(head=head, **config), tmp_path / "out", opset=opset)
    file = graph_file(tmp_path / "out", head)
    onnx.checker.check_model(file, full_check=True)
    ids, mask = padded([[5, 60, 0, 17, 2], [1], [42, 41, 40]], 9, "left" if opset % 2 else "right")
    if head == "double-heads":
        ids, mask = ids[None], mask[None]
    expected = transformers_answer(head_model(head, **config), head, ids, mask)
    found = run(file, ids, mask)
    values = ReferenceEvaluator(str(file)).run(None, {"input_ids": ids, "attention_mask": mask})
    evaluated = dict(zip(found, values, strict=True))
    for results in (found, evaluated):
        for name, array in results.items():
            assert array.shape == expected[name].shape
            kept = mask > 0 if array.shape[: ids.ndim] == ids.shape else ...
            np.testing.assert_allclose(array[kept], expected[name][kept], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_choice_is_scored_with_every_summary_activation(
    save: Make, head_model: Make, tmp_path: Path, name: str | None
) -> None:
    config = {"summary_activation": name, "n_layer": 1}
    convert(save(head="double-heads", **config), tmp_path / "out")
    file = graph_file(tmp_path / "out", "double-heads")
    onnx.checker.check_model(file, full_check=True)
    ids = np.random.default_rng(0).integers(61, size=(2, 3, 5))
    expected = transformers_answer(head_model("double-heads", **config), "double-heads", ids, np.ones_like(ids))
    np.testing.assert_allclose(run(file, ids, np.ones_like(ids))["mc_logits"], expected["mc_logits"], 1e-4, 1e-5)


@every_head
def test_a_graph_has_a_value_for_each_module_of_its_head(save: Make, tmp_path: Path, head: str) -> None:
    convert(save(head=head, n_layer=1), tmp_path / "out")
    nodes = onnx.load(graph_file(tmp_path / "out", head), load_external_data=False).graph.node
    names = {name for node in nodes for name in node.output}
    wanted = {
        "base": {"last_hidden_state", "h.0.mlp_residual"},
        "sequence-classification": {"pool", "ln_f", "score"},
        "token-classification": {"ln_f", "logits"},
        "question-answering": {"ln_f", "qa_outputs"},
        "double-heads": {"pool", "ln_f", "multiple_choice_head.activation"},
    }[head]
    assert wanted <= names


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    n_head = draw(st.integers(1, 3))
    vocab_size = draw(st.integers(3, 40))
    return {
        "n_head": n_head,
        "n_embd": n_head * draw(st.integers(2, 5)),
        "n_layer": draw(st.integers(1, 2)),
        "n_positions": draw(st.integers(1, 12)),
        "vocab_size": vocab_size,
        "n_inner": draw(st.none() | st.integers(1, 20)),
        "activation_function": draw(st.sampled_from(ACTIVATION_NAMES)),
        "scale_attn_by_inverse_layer_idx": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "num_labels": draw(st.integers(1, 7)),
        "pad_token_id": draw(st.integers(0, vocab_size - 1)),
        "summary_activation": draw(st.sampled_from(SUMMARIES)),
        "bos_token_id": None,
        "eos_token_id": None,
    }


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([*SINGLE, "double-heads"]), configs(), st.integers(MIN_OPSET, MAX_OPSET), st.data())
def test_any_legal_head_gives_what_transformers_gives_however_it_is_padded(
    head_model: Make, head: str, config: dict[str, Any], opset: int, data: st.DataObject
) -> None:
    padding = config["pad_token_id"]
    token = st.integers(0, config["vocab_size"] - 1).filter(lambda i: i != padding)
    rows = data.draw(st.lists(st.lists(token, min_size=1, max_size=config["n_positions"]), min_size=1, max_size=4))
    model = head_model(head, **config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "source")
        convert(Path(folder) / "source", Path(folder) / "out", opset=opset)
        file = graph_file(Path(folder) / "out", head)
        found = {}
        for side in ("left", "right"):
            ids, mask = padded(rows, padding, side)
            if head == "double-heads":
                ids, mask = ids[None], mask[None]
            expected = transformers_answer(model, head, ids, mask)
            for name, array in run(file, ids, mask).items():
                per_token = array.shape[: ids.ndim] == ids.shape and head not in ("double-heads",)
                kept = mask > 0 if per_token and head != "sequence-classification" else ...
                scale = 1 + float(np.abs(expected[name]).max())
                np.testing.assert_allclose(array[kept], expected[name][kept], rtol=0, atol=2000 * EPSILON * scale)
                found[name, side] = array[kept]
        for name in {name for name, _ in found}:
            scale = 1 + float(np.abs(found[name, "left"]).max())
            np.testing.assert_allclose(found[name, "left"], found[name, "right"], rtol=0, atol=200 * EPSILON * scale)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_classification_takes_no_masked_token_for_the_last_whatever_fills_the_row(
    save: Make, tmp_path: Path, side: str
) -> None:
    convert(save(head="sequence-classification", pad_token_id=9, n_layer=1), tmp_path / "out")
    file = graph_file(tmp_path / "out", "sequence-classification")
    rows = [[5, 60, 0, 17, 2], [1], [42, 41, 9]]
    found = [run(file, *padded(rows, filler, side))["logits"] for filler in (9, 0, 33)]
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=0, atol=1e-5)
