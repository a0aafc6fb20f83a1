"""Legs feed what a graph takes, leave the process as they found it, and round once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from converter import check, convert
from converter.checkpoint.open import open_checkpoint
from converter.parity.baseline import source_rows
from converter.parity.legs import leg as legs
from converter.parity.legs import widen
from converter.parity.legs.cases import Case, Level, grid
from converter.parity.legs.huggingface import HuggingFace
from converter.parity.legs.widen import OpenedGraph, graph_session
from converter.parity.verdict.limits import Limits
from converter.runtime.opening import load
from converter.runtime.ort import OPEN_ERRORS
from converter.weights.ledger import account
from reference.config import GPT2Config

Save = Callable[..., Path]

CONFIG = GPT2Config(vocab_size=7, n_positions=16, n_embd=6, n_layer=2, n_head=2)
INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT


# --- which tokens are fed when ----------------------------------------------------------------------------------------


def test_every_token_is_fed_once_with_all_before_it_in_the_mask_and_the_cache_handed_on() -> None:
    (case,) = (c for c in grid(CONFIG, np.arange(60) % 7) if c.name == "left-padded batch")
    seen: list[tuple[Any, ...]] = []

    def step(ids: Any, mask: Any, positions: Any, cache: Any, keep: int) -> tuple[np.ndarray, Any]:
        seen.append((ids, mask, positions, cache, keep))
        return ids[:, :, None].astype(float), len(seen)

    logits = legs.run(step, case)
    np.testing.assert_array_equal(logits[:, :, 0], case.input_ids)
    np.testing.assert_array_equal(np.concatenate([ids for ids, *_ in seen], axis=1), case.input_ids)
    np.testing.assert_array_equal(
        np.concatenate([positions for _, _, positions, *_ in seen], axis=1), case.position_ids
    )
    assert [cache for *_, cache, _ in seen] == [None, *range(1, len(seen))]
    for end, (_, mask, *_) in zip(np.cumsum(case.chunks), seen, strict=True):
        np.testing.assert_array_equal(mask, case.attention_mask[:, :end])


# --- foreign graphs ---------------------------------------------------------------------------------------------------


def written_graph(*names: str, cache: int = 0, keep: bool = False, past_dtype: int = FLOAT) -> OpenedGraph:
    """A graph that takes some inputs, and whose ``logits [batch, new, 1]`` are the sum of those that have that shape.

    Its cache grows by the ids, one float a token and head.
    """
    tokens, nodes, initializers = ["b", "s"], [], []
    inputs = [helper.make_tensor_value_info(n, INT64, ["b", "t"] if n == "attention_mask" else tokens) for n in names]
    outputs = [helper.make_tensor_value_info("logits", FLOAT, None)]
    summed = [name for name in names if name != "attention_mask"]
    nodes.append(helper.make_node("Sum", ["floats." + n for n in summed], ["sum"]))
    nodes[:0] = [helper.make_node("Cast", [n], ["floats." + n], to=FLOAT) for n in summed]
    initializers.append(numpy_helper.from_array(np.array([2]), "two"))
    nodes.append(helper.make_node("Unsqueeze", ["sum", "two"], ["all"]))
    if keep:
        initializers += [
            numpy_helper.from_array(np.array(0), "num_logits_to_keep"),
            numpy_helper.from_array(np.array([2**62]), "end"),
            numpy_helper.from_array(np.array([1]), "one"),
        ]
        inputs.append(helper.make_tensor_value_info("num_logits_to_keep", INT64, []))
        nodes += [
            helper.make_node("Reshape", ["num_logits_to_keep", "one"], ["count"]),
            helper.make_node("Neg", ["count"], ["begin"]),
            helper.make_node("Slice", ["all", "begin", "end", "one"], ["logits"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["all"], ["logits"]))
    for layer in range(cache):
        for part in ("key", "value"):
            inputs.append(
                helper.make_tensor_value_info(f"past_key_values.{layer}.{part}", past_dtype, ["b", 2, "p", 3])
            )
            outputs.append(helper.make_tensor_value_info(f"present.{layer}.{part}", past_dtype, ["b", 2, "n", 3]))
            new = f"new.{layer}.{part}"
            nodes += [
                helper.make_node("Unsqueeze", ["floats.input_ids", "where"], [new + "/1"]),
                helper.make_node("Expand", [new + "/1", "shape"], [new + "/2"]),
                helper.make_node("Concat", [f"past_key_values.{layer}.{part}", new + "/2"],
                                 [f"present.{layer}.{part}"], axis=2),
            ]  # fmt: skip
    if cache:
        initializers.append(numpy_helper.from_array(np.array([1, 3]), "where"))
        initializers.append(numpy_helper.from_array(np.array([1, 2, 1, 3]), "shape"))
    graph = helper.make_graph(nodes, "foreign", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return OpenedGraph(onnxruntime.InferenceSession(model.SerializeToString()), [])


def fed(keep: int = 0, chunks: tuple[int, ...] = (8,)) -> Case:
    ids = np.arange(8)[None] % 7
    return Case("fed", ids, np.ones_like(ids), chunks, keep)


@pytest.mark.parametrize("names", [["input_ids"], ["input_ids", "attention_mask"], ["input_ids", "position_ids"]])
def test_a_graph_is_fed_the_inputs_that_it_has_and_no_others(names: list[str]) -> None:
    logits = legs.graph(written_graph(*names), CONFIG)(fed())
    expected = fed().input_ids + (fed().position_ids if "position_ids" in names else 0)
    np.testing.assert_array_equal(logits[:, :, 0], expected)


@pytest.mark.parametrize("optional", [True, False])
def test_of_a_graph_that_gives_all_logits_only_those_asked_for_are_kept(optional: bool) -> None:
    leg = legs.graph(written_graph("input_ids", keep=optional), CONFIG)
    assert leg(fed(keep=3)).tolist() == [[[5.0], [6.0], [0.0]]]
    assert leg(fed()).shape == (1, 8, 1)


def test_a_graphs_cache_is_handed_from_chunk_to_chunk() -> None:
    opened, sizes = written_graph("input_ids", "attention_mask", cache=2), []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(opened.session, name)

        def run(self, outputs: Any, feeds: dict[str, np.ndarray]) -> Any:
            sizes.append([feeds[f"past_key_values.{i}.{part}"].shape for i in range(2) for part in ("key", "value")])
            return opened.session.run(outputs, feeds)

    legs.graph(OpenedGraph(Watched(), []), CONFIG)(fed(chunks=(5, 1, 2)))
    assert sizes == [[(1, 2, past, 3)] * 4 for past in (0, 5, 6)]


def test_the_cache_starts_in_the_type_that_the_graph_takes() -> None:
    opened = written_graph("input_ids", cache=0)
    assert legs.graph(opened, CONFIG, np.float64)(fed()).shape == (1, 8, 1)
    with pytest.raises(OPEN_ERRORS, match="float"):
        legs.graph(written_graph("input_ids", cache=1), CONFIG, np.float64)(fed())


def test_a_graph_of_ones_own_gives_the_same_by_name_as_by_the_runtime(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    model = load(tmp_path / "out")
    leg = legs.graph(graph_session(tmp_path / "out" / "onnx" / "model.onnx"), model.config)
    ids = np.arange(24)[None] % 61
    for case in (*grid(model.config, np.arange(90) % 61), Case("long", ids, np.ones_like(ids), (24,), keep=5)):
        np.testing.assert_allclose(leg(case), legs.shipped(model)(case), rtol=0, atol=2e-5, err_msg=case.name)
        assert leg(case).shape[1] == (case.keep or 24)


def test_a_graph_in_which_positions_were_dropped_is_run_as_it_is(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    config = load(tmp_path / "out").config

    def without_positions(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.arange(24)[None], "fixed"))
        next(node for node in graph.node if "wpe" in node.output).input[1] = "fixed"
        del graph.input[[value.name for value in graph.input].index("position_ids")]

    file = tmp_path / "out" / "onnx" / "model.onnx"
    ids = np.arange(24)[None] % 61
    case = Case("prefill", ids, np.ones_like(ids), (24,))
    found = legs.graph(graph_session(file, without_positions), config)(case)
    np.testing.assert_allclose(found, legs.graph(graph_session(file), config)(case), rtol=0, atol=1e-5)


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Set torch's threads, and set them back: every later test of this process would take several times as long."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3])
def test_a_leg_on_one_thread_gives_the_threads_back(set_threads: Callable[[int], None], threads: int) -> None:
    set_threads(threads)
    seen: list[int] = []

    def leg(case: Case) -> np.ndarray:
        seen.append(torch.get_num_threads())
        return np.zeros(1)

    assert legs.single_threaded(leg)(fed()) is not None
    assert seen == [1]
    assert torch.get_num_threads() == threads


def test_a_leg_on_one_thread_gives_the_threads_back_even_if_it_fails(set_threads: Callable[[int], None]) -> None:
    set_threads(2)

    def leg(case: Case) -> np.ndarray:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        legs.single_threaded(leg)(fed())
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("limit", "threads"), [(10**9, 1), (0, 2)], ids=["small", "large"])
def test_a_small_model_is_checked_on_one_thread(
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    set_threads: Callable[[int], None],
    limit: int,
    threads: int,
) -> None:
    monkeypatch.setattr("converter.runtime.ort.SessionOptions", onnxruntime.SessionOptions)  # outside of these tests
    monkeypatch.setattr(widen, "SMALL_MODEL", limit)
    set_threads(2)
    source = save()
    convert(source, tmp_path / "out")
    settings = check(source, tmp_path / "out").settings
    assert settings["torch_threads"] == threads
    assert settings["threads"] == (1 if limit else "one a core")
    assert torch.get_num_threads() == 2


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "level",
    list(Level),
)
def test_as_many_steps_are_told_of_as_are_taken(save: Save, level: Level) -> None:
    huggingface = opened(save())
    rows = source_rows(huggingface, huggingface.ledger, Limits(), level)
    assert len({row.name for row in rows}) == len(rows)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def opened(folder: Path) -> HuggingFace:
    checkpoint = open_checkpoint(folder)
    return HuggingFace(checkpoint, account(checkpoint))


def weights_of(model: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("before", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_are_rounded_from_the_file_whatever_was_opened_before(
    save: Save, before: torch.dtype, dtype: torch.dtype
) -> None:
    folder = save(reorder_and_upcast_attn=True)
    huggingface = opened(folder)
    for earlier in (torch.float32, before):
        huggingface.model(earlier, "sdpa")
    found = weights_of(huggingface.model(dtype, "eager"))
    expected = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).to(dtype).state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_after_half_precision_are_those_of_before(save: Save, dtype: torch.dtype) -> None:
    huggingface = opened(save())
    first = huggingface.open(dtype, "eager")(fed())
    for half in (torch.float16, torch.bfloat16):
        rounded = huggingface.open(half, "eager")(fed())
        assert rounded.dtype == np.float32
        assert not np.array_equal(rounded, first.astype(np.float32))
    np.testing.assert_array_equal(huggingface.open(dtype, "eager")(fed()), first)


def test_a_model_that_still_serves_is_not_loaded_again(save: Save) -> None:
    huggingface = opened(save())
    first = huggingface.model(torch.float32, "eager")
    assert huggingface.model(torch.float32, "sdpa") is first
    assert first.config._attn_implementation == "sdpa"
    assert huggingface.model(torch.float64, "eager") is first
    assert first.config._attn_implementation == "eager"
    assert huggingface.model(torch.float16, "eager") is first
    assert huggingface.model(torch.float32, "eager") is not first
    last = huggingface.model(torch.float32, "eager")
    huggingface.close()
    assert huggingface.model(torch.float32, "eager") is not last


def test_the_flag_that_asks_for_float32_is_heeded_but_in_float64(save: Save) -> None:
    huggingface = opened(save(reorder_and_upcast_attn=True))
    for dtype in (torch.float32, torch.float64, torch.float32, torch.float16):
        model = huggingface.model(dtype, "eager")
        upcast = dtype != torch.float64
        assert model.config.reorder_and_upcast_attn is upcast
        assert {block.attn.reorder_and_upcast_attn for block in model.transformer.h} == {upcast}
    assert not huggingface.model(torch.float16, "eager").training


def test_where_transformers_finds_no_weights_it_is_given_those_of_the_ledger(save: Save) -> None:
    folder = save(tie_word_embeddings=False, reorder_and_upcast_attn=True)
    expected = weights_of(GPT2LMHeadModel.from_pretrained(folder))
    file = folder / "model.safetensors"
    save_file({f"_orig_mod.{name}": weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    huggingface = opened(folder)
    for dtype in (torch.float32, torch.float16, torch.float64):
        found = weights_of(huggingface.model(dtype, "eager"))
        for name, weight in expected.items():
            assert torch.equal(found[name], weight.to(dtype)), name
    assert huggingface.note is not None
    assert "the mapping is not independently proven" in huggingface.note
    assert str(folder) in huggingface.note
