"""Which graphs are run with a cache in place, and that nothing else of them changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from converter.folder.convert import convert
from converter.runtime import opening
from converter.runtime.cache import GrowingCache, InPlaceCache
from converter.runtime.in_place import rewritten
from converter.runtime.opening import load
from converter.runtime.ort import UNTILED, untiled

Save = Callable[..., Path]


@pytest.mark.parametrize(
    ("config", "options", "in_place"),
    [
        ({"n_embd": 24}, {}, True),
        ({"n_embd": 24}, {"precision": "int8"}, True),
        ({"n_embd": 24, "scale_attn_by_inverse_layer_idx": True}, {"opset": 25}, True),
        ({"n_embd": 24}, {"opset": 22}, False),  # attention is spelled out there
        ({"n_embd": 24}, {"precision": "fp16"}, False),  # its softmax is to be float32's
        ({"n_embd": 12}, {}, False),  # heads of 4, which the operator refuses
    ],
)
def test_the_cache_is_in_place_where_the_operator_means_the_same(
    save: Save, tmp_path: Path, config: dict[str, object], options: dict[str, object], in_place: bool
) -> None:
    convert(save(**config), tmp_path / "out", **options)
    model = load(tmp_path / "out")
    assert model.in_place is in_place
    assert isinstance(model.empty_cache(1), InPlaceCache if in_place else GrowingCache)
    ids, plain = np.random.default_rng(0).integers(61, size=(3, 20)), load(tmp_path / "out", in_place=False)
    assert not plain.in_place
    scale = plain.logits(ids).std()
    np.testing.assert_allclose(model.logits(ids), plain.logits(ids), atol=1e-2 * scale if options else 1e-5 * scale)


def test_the_folder_is_left_alone(save: Save, tmp_path: Path) -> None:
    convert(save(n_embd=24), tmp_path / "out")
    before = (tmp_path / "out/onnx/model.onnx").read_bytes()
    load(tmp_path / "out").generate([[1, 2]], max_new_tokens=2)
    assert (tmp_path / "out/onnx/model.onnx").read_bytes() == before


def test_weights_are_the_same_and_the_mask_is_gone(save: Save, tmp_path: Path) -> None:
    convert(save(n_embd=24), tmp_path / "out")
    file = tmp_path / "out/onnx/model.onnx"
    before, after = onnx.load(file, load_external_data=False).graph, rewritten(file)
    assert after is not None
    graph = onnx.load_from_string(after).graph
    assert list(graph.initializer) == list(before.initializer)
    assert {node.op_type for node in before.node} - {node.op_type for node in graph.node} >= {
        "Attention",
        "Split",
        "Range",
    }
    assert [node.op_type for node in graph.node].count("GroupQueryAttention") == 3
    assert "attention_mask" not in {value.name for value in graph.input}


def test_a_graph_with_queries_and_keys_swapped_stays_what_it_is(save: Save, tmp_path: Path) -> None:
    convert(save(n_embd=24), tmp_path / "out")
    file, ids = tmp_path / "out/onnx/model.onnx", np.random.default_rng(0).integers(61, size=(2, 9))
    sound = load(tmp_path / "out").logits(ids)
    model = onnx.load(file, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.input[0], node.input[1] = node.input[1], node.input[0]
    onnx.save(model, file)
    swapped = load(tmp_path / "out")
    assert swapped.in_place
    assert np.abs(swapped.logits(ids) - sound).max() > 1e-2
    np.testing.assert_allclose(swapped.logits(ids), load(tmp_path / "out", in_place=False).logits(ids), atol=1e-4)


def read_mask(model: onnx.ModelProto) -> None:
    """Count positions over the mask, as an exporter without position_ids would."""
    node = next(node for node in model.graph.node if "position_ids" in node.input)
    model.graph.node.insert(0, onnx.helper.make_node("Sub", ["attention_mask", "attention_mask"], ["nothing"]))
    model.graph.node.insert(1, onnx.helper.make_node("ReduceSum", ["nothing"], ["none_at_all"], keepdims=0))
    model.graph.node.insert(2, onnx.helper.make_node("Add", ["position_ids", "none_at_all"], ["positions"]))
    node.input[list(node.input).index("position_ids")] = "positions"


def read_mask_in_a_branch(model: onnx.ModelProto) -> None:
    """A branch may read any value of the graph around it."""
    node = next(node for node in model.graph.node if "position_ids" in node.input)
    value = onnx.helper.make_tensor_value_info("chosen", onnx.TensorProto.INT64, None)
    body = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["position_ids"], ["chosen"])], "b", [], [value])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "always"))
    branch = onnx.helper.make_node("If", ["always"], ["positions"], then_branch=body, else_branch=body)
    model.graph.node.insert(0, branch)
    node.input[list(node.input).index("position_ids")] = "positions"


@pytest.mark.parametrize("change", [read_mask, read_mask_in_a_branch])
def test_a_graph_that_reads_the_mask_elsewhere_is_run_as_it_is(
    save: Save, tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    convert(save(n_embd=24), tmp_path / "out")
    file, ids = tmp_path / "out/onnx/model.onnx", np.random.default_rng(0).integers(61, size=(2, 9))
    sound = load(tmp_path / "out").logits(ids)
    model = onnx.load(file, load_external_data=False)
    change(model)
    onnx.save(model, file)
    opened = load(tmp_path / "out")
    assert not opened.in_place
    np.testing.assert_allclose(opened.logits(ids), sound, atol=1e-5 * sound.std())
    assert len(opened.generate([[1, 2]], max_new_tokens=3).new_ids[0]) == 3


def test_a_graph_whose_other_form_onnx_runtime_refuses_is_run_as_it_is(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(save(n_embd=24), tmp_path / "out")
    plain = load(tmp_path / "out", in_place=False).logits([1, 2, 3])
    monkeypatch.setattr(opening, "rewritten", lambda file: b"no graph at all")
    opened = load(tmp_path / "out")
    assert not opened.in_place
    np.testing.assert_array_equal(opened.logits([1, 2, 3]), plain)


def test_two_threads_that_open_a_graph_leave_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(UNTILED, raising=False)
    seen: list[str | None] = []

    def open_one(_: int) -> None:
        with untiled():
            seen.append(os.environ.get(UNTILED))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_one, range(200)))
    assert seen == ["1"] * 200
    assert UNTILED not in os.environ


@pytest.mark.parametrize("before", [None, "0"])
def test_the_environment_is_as_it_was_and_has_the_last_word(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    if before is None:
        monkeypatch.delenv(UNTILED, raising=False)
    else:
        monkeypatch.setenv(UNTILED, before)
    convert(save(n_embd=24), tmp_path / "out")
    seen: list[str | None] = []
    opened = opening.open_session
    monkeypatch.setattr(opening, "open_session", lambda *given: seen.append(os.environ.get(UNTILED)) or opened(*given))
    load(tmp_path / "out")
    assert seen == [before or "1"]
    assert os.environ.get(UNTILED) == before


@pytest.mark.parametrize("change", ["producer", "attribute"])
def test_a_graph_that_may_mean_more_is_run_as_it_is(save: Save, tmp_path: Path, change: str) -> None:
    convert(save(n_embd=24), tmp_path / "out")
    file = tmp_path / "out/onnx/model.onnx"
    model = onnx.load(file, load_external_data=False)
    if change == "producer":
        model.producer_name = "somebody"
    else:
        next(node for node in model.graph.node if node.op_type == "Attention").attribute.append(
            onnx.helper.make_attribute("softcap", 30.0)
        )
    onnx.save(model, file)
    assert rewritten(file) is None
    assert not load(tmp_path / "out").in_place
