"""ONNX files of strangers: every name is looked at, wherever it stands."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from converter import onnx_file
from converter.errors import ModelFolderError


def outside(name: str, file: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=file)
    return tensor


def model() -> onnx.ModelProto:
    """A model with a weight and names in every place that has one; no two of them are alike."""
    value = helper.make_tensor_value_info("value_name", TensorProto.FLOAT, ["dimension_name"])
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["branch_output"], value=outside("constant_name", "constant_file"))],
        "branch_name",
        [],
        [helper.make_tensor_value_info("branch_output", TensorProto.FLOAT, [1])],
        [outside("branch_weight", "branch_file")],
    )
    nodes = [
        helper.make_node("If", ["condition"], ["chosen"], name="node_name", then_branch=branch, else_branch=branch),
        helper.make_node("function_name", ["value_name"], ["called"], domain="domain_name", attribute_name=1.0),
    ]
    graph = helper.make_graph(nodes, "graph_name", [value], [value], [outside("weight_name", "weight_file")])
    inner = helper.make_node("Constant", [], ["function_output"], value=outside("function_weight", "function_file"))
    function = helper.make_function(
        "domain_name", "function_name", ["function_input"], ["function_output"], [inner], [helper.make_opsetid("", 17)]
    )
    return helper.make_model(graph, functions=[function], producer_name="producer_name")


NAMES = sorted(name for name in map(str, onnx_file.names(model())) if "_" in name)


def test_no_place_is_left_out() -> None:
    assert {name for name in NAMES if name.endswith("_file")} == {
        "weight_file", "branch_file", "constant_file", "function_file"
    }  # fmt: skip
    assert set(NAMES) >= {
        "producer_name", "graph_name", "value_name", "dimension_name", "node_name", "attribute_name", "domain_name",
        "then_branch", "branch_name", "branch_output", "branch_weight", "constant_name", "weight_name",
        "function_name", "function_input", "function_output", "function_weight",
    }  # fmt: skip
    assert sorted(tensor.name for tensor in onnx_file.tensors_of(model())) == [
        "branch_weight", "branch_weight", "constant_name", "constant_name", "function_weight", "weight_name"
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path, name: str) -> None:
    whole = model().SerializeToString()
    (tmp_path / "sound.onnx").write_bytes(whole)
    assert onnx_file.read(tmp_path / "sound.onnx").producer_name == "producer_name"
    (tmp_path / "model.onnx").write_bytes(whole.replace(name.encode(), name.encode()[:-1] + b"\xff"))
    with pytest.raises(ModelFolderError, match=r"model\.onnx is damaged: b'.*\\xff' is a name in it, and not UTF-8"):
        onnx_file.read(tmp_path / "model.onnx")
