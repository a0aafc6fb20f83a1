"""The check of what graphs return beside their answers: right ones match, and a wrong one is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, helper, numpy_helper

from converter import check, convert
from converter.cli.check_tables import leg_table
from converter.errors import ModelFolderError
from converter.parity.outputs import OutputReport, fault, summaries
from converter.parity.report import junit
from converter.parity.report.notebook import html
from converter.parity.verdict.limits import Limits
from reference.head import ASKED
from tests.conftest import Save
from tests.editors import edit_graph

Edit = Callable[[GraphProto], None]

# A model so small is no model of text; only its mathematics counts.
NO_BUDGETS = {
    f"{name}.{key}": 1e3 for name in ("float16", "int8", "int4") for key in ("kl_mean", "perplexity_ratio", "rms")
}


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("head", ASKED)
def test_everything_that_a_graph_returns_is_proven(save: Save, tmp_path: Path, head: str, opset: int) -> None:
    source = save(head=head, scale_attn_by_inverse_layer_idx=True, pad_token_id=9)
    convert(source, tmp_path / "out", opset=opset, outputs="*")
    report = check(source, tmp_path / "out")
    assert report.passed, report.faults
    assert {"hidden_states.3", "attentions.2", "h.1.mlp.act"} <= {output.name for output in report.outputs}
    for output in report.outputs:
        assert output.huggingface_float64 < 1e-12, output
        assert output.onnx_float64 < 1e-6, output
        assert output.floors < 16, output
    assert f"{len(report.outputs)} outputs beside the answer" in report.verdict


def test_each_precision_is_held_against_its_own_numbers(save: Save, tmp_path: Path) -> None:
    source = save(n_embd=24)
    convert(source, tmp_path / "out", precision="fp32,fp16,int8,int4", outputs="hidden_states,attentions.1")
    report = check(source, tmp_path / "out", limits=NO_BUDGETS)
    assert report.passed, report.faults
    by_precision = {output.precision: output for output in report.outputs if output.name == "attentions.1"}
    assert list(by_precision) == ["fp32", "fp16", "int8", "int4"]
    assert all(output.onnx_float64 < 1e-6 for output in by_precision.values())
    assert 1e-5 < by_precision["fp16"].onnx < 1e-2
    assert math.isnan(by_precision["int4"].huggingface)


def test_a_folder_without_outputs_has_none_to_compare(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")
    report = check(source, tmp_path / "out")
    assert report.outputs == ()
    assert "beside the answer" not in report.verdict


def swap(one: str, other: str) -> Edit:
    def edit(graph: GraphProto) -> None:
        renamed = {one: other, other: one}
        for node in graph.node:
            for field in (node.input, node.output):
                field[:] = [renamed.get(name, name) for name in field]

    return edit


def in_place_of(output: str, *nodes: Any, constants: dict[str, float] | None = None) -> Edit:
    """Let nodes compute an output, which they take as ``true``."""

    def edit(graph: GraphProto) -> None:
        for node in graph.node:
            for field in (node.input, node.output):
                field[:] = ["true" if name == output else name for name in field]
        for name, value in (constants or {}).items():
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        graph.node.extend(nodes)

    return edit


def only_with_a_cache() -> Edit:
    """Make attention a tenth too small where there are cached tokens."""
    return in_place_of(
        "attentions.1",
        helper.make_node("Size", ["past_key_values.0.key"], ["cached"]),
        helper.make_node("Cast", ["cached"], ["any"], to=onnx.TensorProto.BOOL),
        helper.make_node("Where", ["any", "less", "one"], ["factor"]),
        helper.make_node("Mul", ["true", "factor"], ["attentions.1"]),
        constants={"less": 0.9, "one": 1.0},
    )


def without(output: str) -> Edit:
    def edit(graph: GraphProto) -> None:
        kept = [value for value in graph.output if value.name != output]
        del graph.output[:]
        graph.output.extend(kept)

    return edit


WRONG: dict[str, tuple[Edit, str]] = {
    "two layers' attention": (swap("attentions.0", "attentions.2"), "the output attentions.0 of FILE is attentions.2"),
    "two layers' hidden states": (swap("hidden_states.1", "hidden_states.2"), "the output hidden_states.1 of FILE is"),
    "no positions": (
        in_place_of("hidden_states.0", helper.make_node("Identity", ["wte"], ["hidden_states.0"])),
        "the output hidden_states.0 of FILE is",
    ),
    "not normalised": (
        in_place_of("hidden_states.3", helper.make_node("Identity", ["h.2.mlp_residual"], ["hidden_states.3"])),
        "the output hidden_states.3 of FILE is",
    ),
    "a hundred thousandth too large": (
        in_place_of(
            "hidden_states.2",
            helper.make_node("Mul", ["true", "more"], ["hidden_states.2"]),
            constants={"more": 1.00001},
        ),
        "the output hidden_states.2 of FILE is 1.0e-05 of its size from the truth in float64; at most 1e-06 is",
    ),
    "wrong with a cache alone": (only_with_a_cache(), "the output attentions.1 of FILE is"),
    "another shape": (
        in_place_of("attentions.1", helper.make_node("Transpose", ["true"], ["attentions.1"], perm=[1, 0, 2, 3])),
        "the output attentions.1 of FILE has another shape than it should have",
    ),
    "other shapes in other steps": (
        in_place_of("attentions.1", helper.make_node("Transpose", ["true"], ["attentions.1"], perm=[2, 1, 0, 3])),
        "the output attentions.1 of FILE has another shape than it should have",
    ),
    "a single number": (
        in_place_of("hidden_states.1", helper.make_node("ReduceSum", ["true"], ["hidden_states.1"], keepdims=0)),
        "the output hidden_states.1 of FILE has another shape than it should have",
    ),
    "one is not there": (without("hidden_states.1"), "the output hidden_states.1 of FILE is missing"),
}


@pytest.mark.parametrize("defect", WRONG)
def test_a_wrong_output_is_a_mismatch_that_names_it_though_the_logits_are_right(
    save: Save, tmp_path: Path, defect: str
) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out, outputs="hidden_states,attentions")
    edit, sentence = WRONG[defect]
    edit_graph(out / "onnx" / "model.onnx", edit)
    report = check(source, out, files=False)
    assert all(not leg.fault for leg in report.legs)
    assert report.headline == "MISMATCH"
    expected = sentence.replace("FILE", str(out / "onnx" / "model.onnx"))
    assert report.verdict.startswith(f"{out} is NOT {source}: {expected}"), report.verdict
    assert check(source, out).faults[-1].startswith("the output ")  # beside what the files say


def test_those_that_are_right_are_left_alone_whatever_has_the_same_numbers(save: Save, tmp_path: Path) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out, outputs="*")  # hidden states and the operations that they are
    edit_graph(out / "onnx" / "model.onnx", swap("attentions.0", "attentions.2"))
    report = check(source, out, files=False)
    assert [output.name for output in report.outputs if output.fault] == ["attentions.0", "attentions.2"]
    assert len(report.faults) == 2


@pytest.mark.parametrize("outputs", ["attentions", {"attentions": 1}, [1], None], ids=str)
def test_a_manifest_with_something_else_for_outputs_is_refused(save: Save, tmp_path: Path, outputs: Any) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out)
    values = json.loads((out / "gpt2onnx.json").read_text())
    values["precisions"]["fp32"]["outputs"] = outputs
    (out / "gpt2onnx.json").write_text(json.dumps(values))
    with pytest.raises(
        ModelFolderError, match=r"gpt2onnx\.json: precisions: fp32: outputs.* is not what gpt2onnx writes"
    ):
        check(source, out)


def test_what_nobody_knows_is_told_and_no_fault(save: Save, tmp_path: Path) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out)

    def edit(graph: GraphProto) -> None:
        graph.node.append(helper.make_node("Identity", ["wte"], ["mine"]))
        graph.output.append(onnx.ValueInfoProto(name="mine"))

    edit_graph(out / "onnx" / "model.onnx", edit)
    report = check(source, out, files=False)
    assert report.passed
    assert any(note.endswith("also returns mine, which was not compared") for note in report.notes)


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ({"onnx": 1e-7, "onnx_float64": 1e-9, "huggingface_float64": 1e-15, "floors": 15.9}, ""),
        ({"onnx": 0.4, "onnx_float64": 1e-9}, ""),
        ({"onnx": 1e-5, "onnx_float64": 1e-9, "huggingface_float64": 1e-15, "floors": 16.1}, "16.1 × as far"),
        ({"onnx": 0.6, "onnx_float64": 1e-9}, "6.0e-01 of its size from the truth; at most 0.5"),
        ({"onnx": math.inf, "onnx_float64": 1e-9}, "not finite"),
        ({"onnx": 1e-7, "onnx_float64": 1e-9, "huggingface_float64": 1e-8, "floors": 1}, "cannot be proven"),
    ],
)
def test_an_output_is_judged_by_the_noise_of_float32_or_of_its_bits(errors: dict[str, float], said: str) -> None:
    found = fault(OutputReport("attentions.1", "fp32", "model.onnx", **errors), [], Limits())
    assert said in found
    assert bool(found) is bool(said)


def texts(table: Any) -> Iterator[str]:
    return (str(cell) for column in table.columns for cell in column.cells)


def test_every_view_has_a_row_for_the_outputs_of_a_graph(save: Save, tmp_path: Path) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out, outputs="attentions")
    report = check(source, out)
    [row] = summaries(report.outputs)
    assert (row.name, row.faults) == ("3 outputs of model.onnx", ())
    assert row.name in texts(leg_table(report))
    assert row.name in html(report)
    assert row.name in [case.get("name") for case in junit.tree(report).iter("testcase")]
    told = json.loads(json.dumps(report.to_dict(), default=str))["outputs"]
    assert [output["name"] for output in told] == ["attentions.0", "attentions.1", "attentions.2"]
    assert set(told[0]) == {
        "name", "precision", "graph", "onnx", "onnx_float64", "huggingface", "huggingface_float64", "floors", "fault",
    }  # fmt: skip
