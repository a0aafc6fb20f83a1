"""Every precision computes exactly what the reference does with the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from converter import check, convert
from converter.checkpoint.options import SourceOptions
from converter.errors import ModelFolderError
from converter.parity.legs import leg as legs
from converter.parity.legs.cases import grid, shapes
from converter.parity.legs.shipped import Numbers, ShippedWeights, as_shipped
from converter.parity.legs.truth import truths
from converter.parity.legs.widen import widened_session
from converter.parity.report.report import Report
from converter.parity.verdict import metrics
from converter.weights.ledger import Ledger, read_source
from converter.weights.precisions import PRECISIONS
from converter.weights.quantize import quantize_rows
from tests.editors import edit_graph

Save = Callable[..., Path]

LIMIT = 1e-7  # of the logits' scale; constants of float32 leave 2e-8
LOSSY = [name for name in PRECISIONS if name != "fp32"]

# Activations whose constants float16 rounds, and one that has none.
ACTIVATIONS = ("gelu_new", "gelu", "quick_gelu", "laplace", "relu")


def error(file: Path, ledger: Ledger, precision: str) -> float:
    """The largest error of the widened graph, as a share of the scale."""
    tokens = np.random.default_rng(0).integers(0, ledger.config.vocab_size, 64)
    cases = [*grid(ledger.config, tokens), *shapes(ledger.config, tokens, [3, 5])]
    true = truths(ledger.config, as_shipped(ledger, file, PRECISIONS[precision]).weights, cases)
    leg = legs.graph(widened_session(file, config=ledger.config), ledger.config, np.float64)
    worst = max(float(np.abs(leg(case) - true[case.name])[case.real].max()) for case in cases)
    return worst / metrics.scale(true, {case.name: case.real for case in cases}, ledger.config.head)


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_precision_is_exact_but_for_its_numbers(save: Save, tmp_path: Path, activation: str, opset: int) -> None:
    source = save(activation_function=activation, scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-3)
    convert(source, tmp_path / "out", precision=LOSSY, opset=opset)
    _, ledger = read_source(source, SourceOptions())
    for precision in LOSSY:
        assert error(tmp_path / "out" / PRECISIONS[precision].model, ledger, precision) < LIMIT, precision


@pytest.mark.parametrize("precision", LOSSY)
def test_the_numbers_are_those_that_the_graph_computes_with(save: Save, tmp_path: Path, precision: str) -> None:
    source = save()
    convert(source, tmp_path / "out", precision=precision)
    _, ledger = read_source(source, SourceOptions())
    row = PRECISIONS[precision]
    shipped = ShippedWeights(tmp_path / "out" / row.model, ledger, row)
    assert list(shipped) == list(ledger.weights)
    name = "h.1.mlp.c_fc.weight"
    found, true = shipped[name].memmap(), ledger.weights[name].memmap()
    assert (found.dtype, found.shape) == (np.float64, true.shape)
    if row.scheme is None:
        np.testing.assert_array_equal(found, true.astype(np.float16).astype(np.float64))
    else:
        np.testing.assert_allclose(found, by_onnx_runtime(true, precision), rtol=1e-6, atol=1e-7)


def by_onnx_runtime(weight: np.ndarray, precision: str) -> np.ndarray:
    """The weight that MatMulNBits multiplies with in float32: its product with the identity."""
    scheme = PRECISIONS[precision].scheme
    assert scheme is not None
    blocks, (inputs, outputs) = scheme.linear, weight.shape
    rows = quantize_rows(np.ascontiguousarray(weight.T), blocks)
    arrays = {"b": rows.numbers.reshape(outputs, blocks.count(inputs), -1), "scales": rows.scales.ravel()}
    if rows.zero_points is not None:
        arrays["zeros"] = rows.zero_points.ravel()
    node = helper.make_node(
        "MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft",
        K=inputs, N=outputs, bits=blocks.bits, block_size=blocks.size_for(inputs),
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [inputs, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [inputs, outputs])],
        [onnx.numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)], ir_version=9
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.eye(inputs, dtype=np.float32)})[0]


def placed(kind: int, dims: list[int], offset: str) -> TensorProto:
    """An initializer with numbers in the file data."""
    tensor = TensorProto(name="w", data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "data"), ("offset", offset)):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize("offset", ["-8", "abc", "", "1.0"])
def test_an_offset_that_is_none_is_said(tmp_path: Path, offset: str) -> None:
    (tmp_path / "data").write_bytes(bytes(12))
    with pytest.raises(ModelFolderError, match=r"model\.onnx: initializer w has no place in a file: "):
        Numbers(tmp_path / "model.onnx").shaped(placed(TensorProto.FLOAT, [2], offset))


@pytest.mark.parametrize(
    ("kind", "dims", "offset"),
    [
        (99, [2], 0),
        (TensorProto.UNDEFINED, [2], 0),
        (TensorProto.STRING, [2], 0),
        (TensorProto.FLOAT, [-2, -1], 0),
        (TensorProto.FLOAT, [2], 1 << 70),
        (TensorProto.FLOAT, [3], 4),
    ],
)
def test_numbers_that_are_not_there_are_said(tmp_path: Path, kind: int, dims: list[int], offset: int) -> None:
    (tmp_path / "data").write_bytes(bytes(12))
    tensor = placed(kind, dims, str(offset))
    with pytest.raises(ModelFolderError, match=r"data does not hold initializer w of .*: it is missing or truncated"):
        Numbers(tmp_path / "model.onnx").shaped(tensor)


def test_an_unknown_type_of_a_weight_is_told_by_its_number(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")

    def spoil(graph: onnx.GraphProto) -> None:
        next(tensor for tensor in graph.initializer if tensor.name == "wpe.weight").data_type = 99

    edit_graph(tmp_path / "out" / "onnx" / "model.onnx", spoil)
    assert (
        "wpe.weight is [24, 12] of type number 99; the source has [24, 12]" in check(source, tmp_path / "out").verdict
    )


def test_a_weight_that_is_not_there_is_said(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out", precision="fp16")
    _, ledger = read_source(source, SourceOptions())
    row = PRECISIONS["fp16"]
    file = tmp_path / "out" / row.model
    edit_graph(
        file, lambda graph: graph.initializer.remove(next(t for t in graph.initializer if t.name == "ln_f.bias"))
    )
    with pytest.raises(ModelFolderError, match=r"has no weight ln_f\.bias"):
        ShippedWeights(file, ledger, row)["ln_f.bias"]


def epsilon(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if "h.1.ln_2" in node.output)
    next(attribute for attribute in node.attribute if attribute.name == "epsilon").f *= 10


def nothing_after_padding(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type == "And")
    causal = next(node.output[0] for node in graph.node if node.op_type == "LessOrEqual")
    node.input[:] = [causal, causal]


@pytest.mark.parametrize("precision", LOSSY)
@pytest.mark.parametrize(("edit", "cause"), [(epsilon, "epsilon"), (nothing_after_padding, "mask")])
def test_a_wrong_operation_of_a_lossy_graph_is_named_from_the_logits_alone(
    save: Save, tmp_path: Path, precision: str, edit: Callable[[onnx.GraphProto], None], cause: str
) -> None:
    source = save()
    convert(source, tmp_path / "out", precision=precision)
    edit_graph(tmp_path / "out" / PRECISIONS[precision].model, edit)
    report: Report = check(source, tmp_path / "out", files=False)
    assert not report.passed
    assert report.diagnosis is not None
    assert report.diagnosis.findings[0].cause == cause
    assert f"in the {precision} graph, " in report.verdict
