"""The graph against ONNX's own rules, onnx's evaluator, and transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from converter.checkpoint.open import open_checkpoint
from converter.folder.convert import convert
from converter.graph.build import MAX_OPSET, MIN_OPSET, build
from converter.parity.legs.widen import widened_session
from converter.weights.ledger import account
from converter.weights.table import parameters
from reference.config import GPT2Config
from reference.head import HEADS
from reference.model import GPT2

Save = Callable[..., Path]
OPSETS = range(MIN_OPSET, MAX_OPSET + 1)
# One for each way in which the graph is written: spelled out, without Split's num_outputs, with Gelu, with Attention.
TELLING_OPSETS = (17, 18, 20, 23)


def feeds(folder: Path, dtype: Any = np.float32, batch: int = 2, tokens: int = 7) -> dict[str, np.ndarray]:
    """Two rows, the second one padded on the left, and an empty cache."""
    config = open_checkpoint(folder).config
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(batch, tokens))
    mask = np.ones_like(ids)
    mask[1:, :3] = 0
    empty = np.empty((batch, config.n_head, 0, config.head_dim), dtype)
    cache = {f"past_key_values.{i}.{part}": empty for i in range(config.n_layer) for part in ("key", "value")}
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}


def truth(folder: Path, fed: dict[str, np.ndarray]) -> np.ndarray:
    """transformers' logits in float64."""
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    names = ("input_ids", "attention_mask", "position_ids")
    with torch.inference_mode():
        return model(**{name: torch.tensor(fed[name]) for name in names}).logits.numpy()


def session(out: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(out / "onnx" / "model.onnx", options)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_graph_is_valid_onnx_of_the_lowest_ir_version(save: Save, tmp_path: Path, opset: int, tied: bool) -> None:
    convert(save(tie_word_embeddings=tied), tmp_path / "out", opset=opset)
    file = tmp_path / "out" / "onnx" / "model.onnx"
    onnx.checker.check_model(file, full_check=True)
    model = onnx.load(file, load_external_data=False)
    assert onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.value_info
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    assert model.ir_version == onnx.helper.find_min_ir_version_for(list(model.opset_import))


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_computes_the_same_model(save: Save, tmp_path: Path, opset: int) -> None:
    source = save(scale_attn_by_inverse_layer_idx=True)
    convert(source, tmp_path / "out", opset=opset)
    fed = feeds(source, np.float64)
    widened = widened_session(tmp_path / "out" / "onnx" / "model.onnx")
    logits = widened.session.run(["logits"], fed)[0]
    real = fed["attention_mask"] > 0
    np.testing.assert_allclose(logits[real], truth(source, fed)[real], rtol=0, atol=3e-6)
    assert np.isfinite(logits).all()  # padding rows too


@pytest.mark.parametrize("opset", TELLING_OPSETS)
def test_onnxs_own_evaluator_agrees_with_onnx_runtime_on_a_second_step(save: Save, tmp_path: Path, opset: int) -> None:
    source = save()
    convert(source, tmp_path / "out", opset=opset)
    runtime, evaluator = session(tmp_path / "out"), ReferenceEvaluator(str(tmp_path / "out" / "onnx" / "model.onnx"))
    fed = feeds(source)
    for _ in range(2):
        first, second = runtime.run(None, fed), evaluator.run(None, fed)
        for ours, theirs in zip(first, second, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        names = [name for name in fed if name.startswith("past")]
        mask = np.concatenate((fed["attention_mask"], np.ones((2, 2), np.int64)), axis=1)
        fed = {"input_ids": fed["input_ids"][:, :2], "attention_mask": mask, "position_ids": np.array([[7, 8], [4, 5]])}
        fed |= dict(zip(names, first[1:], strict=True))


def test_the_interface_is_what_clients_look_for(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx", load_external_data=False).graph

    def shape(value: onnx.ValueInfoProto) -> list[str | int]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    inputs = {value.name: shape(value) for value in graph.input}
    outputs = {value.name: shape(value) for value in graph.output}
    assert inputs.pop("num_logits_to_keep") == []
    assert inputs.pop("input_ids") == ["batch_size", "sequence_length"]
    assert inputs.pop("position_ids") == ["batch_size", "sequence_length"]
    assert inputs.pop("attention_mask") == ["batch_size", "total_sequence_length"]
    assert outputs.pop("logits") == ["batch_size", "sequence_length", 61]
    parts = [f"{i}.{part}" for i in range(3) for part in ("key", "value")]
    assert inputs == {f"past_key_values.{part}": ["batch_size", 3, "past_sequence_length", 4] for part in parts}
    assert outputs == {f"present.{part}": ["batch_size", 3, "total_sequence_length", 4] for part in parts}
    assert "num_logits_to_keep" not in {value.name for value in session(tmp_path / "out").get_inputs()}


@pytest.mark.parametrize("head", [spec.name for spec in HEADS.values() if not spec.part_of])
def test_every_dimension_of_an_output_is_one_of_an_input(save: Save, tmp_path: Path, head: str) -> None:
    """Whoever binds buffers before a run works out their shapes from those of the inputs, as Optimum does."""
    config = {"pad_token_id": 5} if head == "sequence-classification" else {}
    convert(save(head=head, **config), tmp_path / "out")
    for file in (tmp_path / "out" / "onnx").glob("*.onnx"):
        graph = onnx.load(file, load_external_data=False).graph
        given, wanted = (
            {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param}
            for values in (graph.input, graph.output)
        )
        assert wanted <= given, file


@pytest.mark.parametrize("opset", TELLING_OPSETS)
@pytest.mark.parametrize(("keep", "kept"), [(0, 7), (1, 1), (3, 3), (50, 7)])
def test_only_the_last_logits_are_computed_when_asked_for(
    save: Save, tmp_path: Path, opset: int, keep: int, kept: int
) -> None:
    source = save()
    convert(source, tmp_path / "out", opset=opset)
    fed = feeds(source)
    runtime = session(tmp_path / "out")
    every = runtime.run(["logits"], fed)[0]
    some = runtime.run(["logits"], fed | {"num_logits_to_keep": np.array(keep)})[0]
    assert some.shape == (2, kept, 61)
    np.testing.assert_allclose(some, every[:, -kept:], rtol=1e-5, atol=1e-5)


def test_initializers_are_the_canonical_weights_and_point_into_one_file(save: Save, tmp_path: Path) -> None:
    source = save(activation_function="prelu", tie_word_embeddings=False)
    convert(source, tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx", load_external_data=False).graph
    outside = {t.name: tuple(t.dims) for t in graph.initializer if t.external_data}
    config = account(open_checkpoint(source)).config
    assert outside == {name: shape for name, _, shape in parameters(config)}
    assert {e.value for t in graph.initializer for e in t.external_data if e.key == "location"} == {"model.onnx_data"}
    assert sum(t.ByteSize() for t in graph.initializer if not t.external_data) < 2000


def test_the_same_graph_is_built_again_for_weights_in_another_place() -> None:
    config = GPT2Config(vocab_size=61, n_positions=24, n_embd=12, n_layer=2, n_head=3)

    def built(file: str) -> onnx.ModelProto:
        return onnx.load_from_string(build(config, lambda name: (file, len(name), 7), MAX_OPSET))

    first, second = built("a"), built("b")
    for model, file in ((first, "a"), (second, "b"), (built("a"), "a")):
        for tensor in (tensor for tensor in model.graph.initializer if tensor.external_data):
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert where == {"location": file, "offset": str(len(tensor.name)), "length": "7"}
    assert first == built("a") != second


def test_a_tied_head_is_the_embedding_itself(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx", load_external_data=False).graph
    readers = {node.op_type for node in graph.node if "wte.weight" in node.input}
    assert readers == {"Gather", "Gemm"}


def test_every_tap_of_the_reference_is_a_value_of_the_same_name(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx", load_external_data=False).graph
    values = {name for node in graph.node for name in node.output}
    taps: dict[str, torch.Tensor] = {}
    model = GPT2.from_pretrained(source)

    def remember(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: taps.setdefault(name, output)

    for name, module in model.named_modules():
        module.register_forward_hook(remember(name))
    model(torch.tensor([[1, 2, 3]]))
    named = {n for n, v in taps.items() if isinstance(v, torch.Tensor) and "dropout" not in n}
    assert named - {"h.0.mlp", "h.1.mlp", "h.2.mlp", "lm_head"} <= values  # an MLP's output is its c_proj's
    assert {"wte", "drop", "h.2.attn.c_attn", "h.2.attn.sdpa", "h.2.mlp.act", "h.2.attn_residual", "ln_f"} <= named


def test_only_standard_operators_are_used(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx", load_external_data=False).graph
    assert {node.domain for node in graph.node} == {""}
    assert {"Attention", "LayerNormalization", "Gelu"} <= {node.op_type for node in graph.node}
