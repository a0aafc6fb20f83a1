"""What a graph returns beside its head's answer: transformers' tuples, and the output of every operation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.checkpoint.open import open_checkpoint
from converter.folder.convert import convert
from converter.graph.build import MAX_OPSET, MIN_OPSET
from converter.graph.outputs import OPERATIONS, WORDS, names, parse, refuse_unknown, select
from converter.parity.legs.widen import widened_session
from converter.weights.precisions import PRECISIONS
from reference.config import GPT2Config
from reference.errors import GPT2Error
from reference.head import ASKED
from reference.model import GPT2

Make = Callable[..., Any]
Arrays = dict[str, np.ndarray]

OPSETS = range(MIN_OPSET, MAX_OPSET + 1)
TELLING_OPSETS = (17, 22, 23, 25)  # attention is spelled out; the operator, and its newest version
CONFIG = GPT2Config(vocab_size=61, n_positions=24, n_embd=12, n_layer=3, n_head=3, n_inner=20)
EPSILON = float(np.finfo(np.float32).eps)


def graph_file(out: Path, head: str) -> Path:
    return out / "onnx" / ("model_multiple_choice.onnx" if head == "double-heads" else "model.onnx")


def session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run(opened: onnxruntime.InferenceSession, feeds: Arrays) -> Arrays:
    names_there = [value.name for value in opened.get_outputs()]
    return dict(zip(names_there, opened.run(names_there, feeds), strict=True))


def batch(side: str, filler: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Three rows of unequal length."""
    rows = [[5, 60, 0, 17, 2, 33], [1], [42, 41, 40, 3]]
    ids, mask = np.full((3, 6), filler), np.zeros((3, 6), np.int64)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(6 - len(row), 6)
        ids[i, where], mask[i, where] = row, 1
    return ids, mask


def feeds_of(ids: np.ndarray, mask: np.ndarray, head: str, config: Any, dtype: Any = np.float32) -> Arrays:
    """What a graph of this head takes; with an empty cache if it has one."""
    feeds = {"input_ids": ids, "attention_mask": mask}
    if head == "double-heads":
        return {name: array[None] for name, array in feeds.items()}
    if head == "lm":
        feeds["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)
        empty = np.empty((len(ids), config.n_head, 0, config.n_embd // config.n_head), dtype)
        feeds |= {f"past_key_values.{i}.{part}": empty for i in range(config.n_layer) for part in ("key", "value")}
    return feeds


def transformers_own(model: Any, ids: np.ndarray, mask: np.ndarray, past: Any = None) -> tuple[Arrays, Any]:
    """``output_hidden_states`` and ``output_attentions`` of transformers' body, and its cache."""
    model.set_attn_implementation("eager")
    fed = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    fed["position_ids"] = (fed["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with torch.inference_mode():
        out = model.base_model(
            **fed, past_key_values=past, use_cache=True, output_hidden_states=True, output_attentions=True
        )
    found = {f"hidden_states.{i}": value.numpy() for i, value in enumerate(out.hidden_states)}
    found |= {f"attentions.{i}": value.numpy() for i, value in enumerate(out.attentions)}
    return found, out.past_key_values


def real(name: str, array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The rows of real tokens; of attention what they look at, padding too."""
    rows = np.moveaxis(array, 1, 2) if name.startswith("attentions") else array
    return rows[mask > 0]


@pytest.mark.parametrize("head", ASKED)
@pytest.mark.parametrize("opset", OPSETS)
def test_hidden_states_and_attention_are_those_of_transformers(
    save: Make, head_model: Make, tmp_path: Path, head: str, opset: int
) -> None:
    config = {"pad_token_id": 9, "n_layer": 2, "scale_attn_by_inverse_layer_idx": True}
    convert(save(head=head, **config), tmp_path / "out", opset=opset, outputs=WORDS)
    file, model = graph_file(tmp_path / "out", head), head_model(head, **config).double()
    onnx.checker.check_model(file, full_check=True)
    ids, mask = batch("left" if opset % 2 else "right")
    feeds = feeds_of(ids, mask, head, model.config, np.float64)
    expected, _ = transformers_own(model, ids, mask)
    found = run(widened_session(file).session, feeds)
    assert expected.keys() == {name for name in found if name.startswith(WORDS)}
    for name, array in expected.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(real(name, found[name], mask), real(name, array, mask), rtol=0, atol=3e-6)


@pytest.mark.parametrize("opset", TELLING_OPSETS)
def test_with_a_cache_a_query_is_shown_what_it_sees_in_the_past_too(
    save: Make, head_model: Make, tmp_path: Path, opset: int
) -> None:
    convert(save(), tmp_path / "out", opset=opset, outputs=WORDS)
    opened, model = session(graph_file(tmp_path / "out", "lm")), head_model("lm")
    ids, mask = batch("left")
    feeds, past = feeds_of(ids[:, :4], mask[:, :4], "lm", model.config), None
    for begin, end in ((0, 4), (4, 6)):
        feeds |= {"input_ids": ids[:, begin:end], "attention_mask": mask[:, :end]}
        feeds["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, begin:end]
        found = run(opened, feeds)
        expected, past = transformers_own(model, ids[:, begin:end], mask[:, :end], past)
        for name, array in expected.items():
            assert found[name].shape == array.shape
            rows = mask[:, begin:end]
            np.testing.assert_allclose(real(name, found[name], rows), real(name, array, rows), rtol=1e-4, atol=2e-5)
        assert found["attentions.0"].shape == (3, 3, end - begin, end)
        feeds |= {name.replace("present", "past_key_values"): found[name] for name in found if "present" in name}


@pytest.mark.parametrize("opset", TELLING_OPSETS)
def test_every_operation_is_that_of_the_reference(save: Make, tmp_path: Path, opset: int) -> None:
    source = save()
    convert(source, tmp_path / "out", opset=opset, outputs="*")
    model, seen = GPT2.from_pretrained(source, dtype=torch.float64), {}
    for path, module in model.named_modules():
        module.register_forward_hook(lambda _m, _a, out, path=path: seen.update({path: out}))
    ids = np.random.default_rng(0).integers(61, size=(2, 7))
    with torch.inference_mode():
        model(torch.tensor(ids))
    for i in range(CONFIG.n_layer):
        parts = zip("qkv", seen[f"h.{i}.attn.c_attn"].chunk(3, dim=-1), strict=True)
        seen |= {f"h.{i}.attn.{part}": third for part, third in parts}
    found = run(
        widened_session(graph_file(tmp_path / "out", "lm")).session,
        feeds_of(ids, np.ones_like(ids), "lm", model.config, np.float64),
    )
    compared = [name for name in found if not name.startswith((*WORDS, "present", "logits"))]
    assert len(compared) == 3 + CONFIG.n_layer * len(OPERATIONS) + 1
    for name in compared:
        np.testing.assert_allclose(found[name], seen[name].numpy(), rtol=0, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("asked", "exact"), [("hidden_states,h.*,w*,ln_f", True), ("attentions", False)])
def test_the_answer_is_what_it_is_without_outputs_and_all_are_float32(
    save: Make, tmp_path: Path, precision: str, asked: str, exact: bool
) -> None:
    source = save()
    ids, mask = batch("left")
    found = []
    for out, outputs in (("plain", ""), ("inside", asked)):
        convert(source, tmp_path / out, precision=precision, outputs=outputs)
        dtype = np.float16 if precision == "fp16" else np.float32
        found.append(
            run(session(tmp_path / out / PRECISIONS[precision].model), feeds_of(ids, mask, "lm", CONFIG, dtype))
        )
    plain, inside = (each["logits"][mask > 0] for each in found)
    if exact and precision != "fp16":
        np.testing.assert_array_equal(inside, plain)
    else:  # float16 is rounded where a value is returned; attention is spelled out, and so rounds otherwise
        step = np.finfo(np.float16 if precision == "fp16" else np.float32).eps
        np.testing.assert_allclose(inside, plain, rtol=0, atol=100 * step)
    assert all(array.dtype == np.float32 for name, array in found[1].items() if not name.startswith("present"))
    assert all(np.isfinite(array).all() for array in found[1].values())


@pytest.mark.parametrize("head", ASKED)
@pytest.mark.parametrize("opset", TELLING_OPSETS)
def test_every_output_has_the_dimensions_that_it_declares(save: Make, tmp_path: Path, head: str, opset: int) -> None:
    convert(save(head=head, n_layer=1), tmp_path / "out", opset=opset, outputs="*")
    opened = session(graph_file(tmp_path / "out", head))
    ids, mask = batch("left")
    sizes = {"batch_size": 1 if head == "double-heads" else 3, "num_choices": 3, "batch_size*num_choices": 3}
    sizes |= {"sequence_length": 6, "total_sequence_length": 6}
    found = run(opened, feeds_of(ids, mask, head, replace(CONFIG, n_layer=1)))
    inputs = {size for value in opened.get_inputs() for size in value.shape}
    for value in opened.get_outputs():
        assert [sizes.get(size, size) for size in value.shape] == list(found[value.name].shape), value.name
        if head == "lm":  # Optimum works out the shapes of its buffers from the names that inputs have
            assert {size for size in value.shape if isinstance(size, str)} <= inputs


def test_the_last_hidden_state_is_of_all_positions_where_one_logit_is_asked_for(save: Make, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out", outputs="hidden_states")
    ids, mask = batch("left")
    feeds = feeds_of(ids, mask, "lm", CONFIG) | {"num_logits_to_keep": np.array(1)}
    found = run(session(graph_file(tmp_path / "out", "lm")), feeds)
    assert found["logits"].shape == (3, 1, 61)
    assert found["hidden_states.3"].shape == (3, 6, 12)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["attentions"], ["attentions.0", "attentions.1", "attentions.2"]),
        (["attentions.[12]"], ["attentions.1", "attentions.2"]),
        (["hidden_states.3", "ln_f"], ["hidden_states.3", "ln_f"]),
        (["h.*.mlp.act"], ["h.0.mlp.act", "h.1.mlp.act", "h.2.mlp.act"]),
        (["w?e", "wte", "logits"], ["wte", "wpe"]),  # a graph returns its logits anyway
    ],
)
def test_a_pattern_means_every_name_that_it_fits_once_and_in_the_order_of_the_data(
    patterns: list[str], expected: list[str]
) -> None:
    assert select(patterns, CONFIG) == expected


def test_hidden_states_are_one_more_than_layers() -> None:
    assert len(select(["hidden_states"], CONFIG)) == CONFIG.n_layer + 1
    assert len(select(["*"], CONFIG)) == len(names(CONFIG)) - 1


def test_patterns_come_as_a_list_or_with_commas_between_them() -> None:
    assert parse("attentions, ln_f,attentions") == parse(["attentions", "ln_f"]) == ("attentions", "ln_f")
    assert parse("") == parse([]) == ()


def test_what_nothing_is_called_is_refused_with_what_there_is() -> None:
    with pytest.raises(GPT2Error) as refused:
        refuse_unknown(["ln_f", "h.3.mlp.act"], [CONFIG])
    said = str(refused.value)
    assert "nothing in this model is called 'h.3.mlp.act'; there are hidden_states, attentions, wte, wpe" in said
    assert "h.0 to h.2" in said
    refuse_unknown(["pool"], [CONFIG, replace(CONFIG, head="multiple-choice")])  # one of the two graphs has it


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    n_head = draw(st.integers(1, 3))
    return {
        "n_head": n_head,
        "n_embd": n_head * draw(st.integers(2, 5)),
        "n_layer": draw(st.integers(1, 2)),
        "n_positions": draw(st.integers(1, 12)),
        "vocab_size": draw(st.integers(3, 40)),
        "n_inner": draw(st.none() | st.integers(1, 20)),
        "scale_attn_weights": draw(st.booleans()),
        "scale_attn_by_inverse_layer_idx": draw(st.booleans()),
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(ASKED), configs(), st.sampled_from(OPSETS), st.sampled_from(("left", "right")), st.data())
def test_of_any_legal_model_each_output_is_transformers_own(
    head_model: Make, head: str, config: dict[str, Any], opset: int, side: str, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, config["n_positions"]), min_size=1, max_size=4))
    model = head_model(head, **config)
    ids = np.random.default_rng(0).integers(1, config["vocab_size"], size=(len(lengths), max(lengths)))
    places = np.arange(max(lengths))
    mask = np.array([(places if side == "right" else places[::-1]) < length for length in lengths]).astype(np.int64)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "source")
        convert(Path(folder) / "source", Path(folder) / "out", opset=opset, outputs=WORDS)
        assert open_checkpoint(Path(folder) / "source").config.n_layer == config["n_layer"]
        found = run(session(graph_file(Path(folder) / "out", head)), feeds_of(ids, mask, head, model.config))
    expected, _ = transformers_own(model, ids, mask)
    for name, array in expected.items():
        scale = 1 + float(np.abs(array).max())
        ours, theirs = real(name, found[name], mask), real(name, array, mask)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2000 * EPSILON * scale, err_msg=name)
