"""An export of another program gets a verdict, and on a mismatch the first wrong operation and its cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import numpy_helper

from converter import check, convert, verify
from converter.cli import check_tables
from converter.errors import CheckError, ModelFolderError
from converter.parity.report import junit, page
from converter.parity.report.report import Report
from tests import disguises
from tests.disguises import disguise

Save = Callable[..., Path]

# Head dimensions of which 1/√head_dim is the inverse of no layer's number.
SHAPE = {"n_embd": 15, "n_layer": 2, "n_inner": 15}

RIGHT = {
    "with a cache": (),
    "int32": (disguises.int32,),
    "keys and values joined": (disguises.joined_cache,),
    "merged": (disguises.merged,),
    "last logits only": (disguises.last_only,),
    "no mask": (disguises.without_mask,),
    "no positions": (disguises.own_positions,),
    "names that say nothing": (disguises.split_projections, disguises.transposed_weights, disguises.renamed),
}


@pytest.fixture
def source(save: Save) -> Path:
    return save(**SHAPE)


@pytest.fixture
def export(source: Path, tmp_path: Path) -> Callable[..., Path]:
    """``export(*edits, source=…, opset=…)``: a source as somebody else exports it."""

    def make(*edits: disguises.Edit, of: Path = source, **options: int) -> Path:
        convert(of, tmp_path / "ours", force=True, **options)
        return disguise(tmp_path / "ours", tmp_path / "theirs" / "model.onnx", *edits)

    return make


@pytest.mark.parametrize("edits", RIGHT.values(), ids=RIGHT)
def test_a_right_export_matches_and_every_weight_is_found(
    source: Path, export: Callable[..., Path], edits: tuple[disguises.Edit, ...]
) -> None:
    report = check(source, export(*edits))
    assert report.passed, report.faults
    assert report.headline == "MATCH"
    assert "28 of 28 weights bit for bit, mathematics in float64, float32 within rounding" in report.verdict
    assert report.export is not None
    assert not report.export.localisation


def test_what_an_interface_cannot_express_is_said_and_not_run(source: Path, export: Callable[..., Path]) -> None:
    without = check(source, export(disguises.without_mask))
    assert any(
        note.startswith("it takes no attention_mask, so that it is held on unpadded rows only")
        for note in without.notes
    )
    assert "left-padded batch" not in leg(without, "ONNX Runtime float32").cases
    assert {"chunked prefill", "3 rows of 12 tokens"} <= set(leg(without, "ONNX Runtime float32").cases)
    itself = check(source, export(disguises.own_positions))
    assert any("counts padding too" in note for note in itself.notes)
    assert "left-padded batch" in leg(itself, "ONNX Runtime float32").cases


def leg(report: Report, name: str):
    return next(leg for leg in report.legs if leg.name == name)


def altered(save: Save, tmp_path: Path, change: Callable[[dict], None] | None = None, **config: object) -> Path:
    """The source with another config or with changed weights, as a careless exporter reads it."""
    path = save("altered", **{**SHAPE, **config})
    if change is not None:
        model = transformers.GPT2LMHeadModel.from_pretrained(path)
        with torch.no_grad():
            change(dict(model.named_parameters()))
        model.save_pretrained(path)
    return path


def transposed(weights: dict) -> None:
    weights["transformer.h.1.attn.c_proj.weight"].copy_(weights["transformer.h.1.attn.c_proj.weight"].T.clone())


def square_mlp(weights: dict) -> None:
    weights["transformer.h.0.mlp.c_fc.weight"].copy_(weights["transformer.h.0.mlp.c_fc.weight"].T.clone())


# What is wrong → how it came about, the operation that is named, the cause.
WRONG_SOURCES = {
    "gelu": ({"activation_function": "gelu"}, None, "h.0.mlp.act", "activation"),
    "silu": ({"activation_function": "silu"}, None, "h.0.mlp.act", "activation"),
    "epsilon": ({"layer_norm_epsilon": 1e-4}, None, "h.0.ln_1", "epsilon"),
    "no scale": ({"scale_attn_weights": False}, None, "h.0.attn.sdpa", "scale"),
    "scale by layer": ({"scale_attn_by_inverse_layer_idx": True}, None, "h.1.attn.sdpa", "inverse_layer"),
    "a square attention weight transposed": ({}, transposed, "h.1.attn.c_proj", "transposed"),
    "a square weight of the MLP transposed": ({}, square_mlp, "h.0.mlp.c_fc", "transposed"),
}
HIDDEN = (disguises.transposed_weights, disguises.renamed)


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize(("config", "change", "first", "cause"), WRONG_SOURCES.values(), ids=WRONG_SOURCES)
def test_a_wrong_export_is_named_without_any_name(
    source: Path, save: Save, export: Callable[..., Path], tmp_path: Path, opset: int,
    config: dict, change: Callable[[dict], None] | None, first: str, cause: str,
) -> None:  # fmt: skip
    report = check(source, export(*HIDDEN, of=altered(save, tmp_path, change, **config), opset=opset))
    assert_named(report, first, cause)
    assert report.export is not None
    assert report.export.weights is not None
    assert report.export.weights.missing == ()  # the numbers are the source's


WRONG_GRAPHS = {
    "positions ignored": (disguises.ignored_positions, "wpe", "position"),
    "mask dropped": (disguises.ignored_mask, "h.0.attn.sdpa", "mask"),
}


@pytest.mark.parametrize(("edit", "first", "cause"), WRONG_GRAPHS.values(), ids=WRONG_GRAPHS)
def test_padding_that_is_not_heeded_is_named(
    source: Path, export: Callable[..., Path], edit: disguises.Edit, first: str, cause: str
) -> None:
    report = check(source, export(edit, *HIDDEN))
    assert_named(report, first, cause)
    assert report.localisation is not None
    assert report.localisation.case == "left-padded batch"
    assert any(note.startswith("it is wrong in left-padded batch, batch of 2") for note in report.notes)


def assert_named(report: Report, first: str, cause: str) -> None:
    assert not report.passed
    assert report.headline == "MISMATCH"
    assert report.localisation is not None
    assert report.diagnosis is not None
    assert report.localisation.first == first
    assert report.diagnosis.findings[0].cause == cause
    assert report.diagnosis.findings[0].sentence in report.verdict


def test_a_changed_weight_is_a_fault_even_of_a_token_that_is_not_fed(source: Path, export: Callable[..., Path]) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        tensor = next(tensor for tensor in graph.initializer if tensor.name == "wpe.weight")
        array = numpy_helper.to_array(tensor).copy()
        array[-1, 3] += 1e-6
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    report = check(source, export(edit, *HIDDEN))
    assert not report.passed
    assert report.exactness_faults[0].startswith("wpe.weight has other numbers in onnx::W_")


def test_a_graph_that_cannot_be_run_is_a_mismatch_that_says_so(source: Path, export: Callable[..., Path]) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        next(node for node in graph.node if node.op_type == "MatMul").op_type = "Nonsense"

    report = check(source, export(edit))
    assert not report.passed
    assert "cannot be run by ONNX Runtime" in report.verdict
    assert "\n" not in report.verdict


# --- beside a folder of ours ------------------------------------------------------------------------------------------


def test_every_view_agrees_on_whether_an_export_beside_the_folder_is_right(
    source: Path, save: Save, export: Callable[..., Path], tmp_path: Path
) -> None:
    convert(source, tmp_path / "out")
    wrong = export(of=altered(save, tmp_path, activation_function="gelu"))
    report = check(source, tmp_path / "out", also=[wrong])
    assert report.matches
    assert not report.passed
    assert report.headline == "MISMATCH"
    assert f"is {source}, but {wrong} is NOT {source}: the activation in h.0.mlp.act is gelu" in report.verdict
    found = report.to_dict()
    assert found["passed"] is False
    assert found["also"][0]["passed"] is False
    json.dumps(found)
    certificate = json.loads((tmp_path / "out" / "gpt2onnx.json").read_text())["certificate"]
    assert certificate["passed"] is True  # the folder is right
    assert report.by_logits_alone().also == ()


def test_an_export_that_cannot_be_run_fails_alone(source: Path, export: Callable[..., Path], tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    right = export()
    broken = onnx.load(right)
    next(node for node in broken.graph.node if node.op_type == "MatMul").op_type = "Nonsense"
    onnx.save(broken, tmp_path / "broken.onnx")
    report = check(source, tmp_path / "out", also=[tmp_path / "broken.onnx", right])
    assert len(report.other_faults) == 1
    assert report.other_faults[0].startswith(f"{tmp_path / 'broken.onnx'} is NOT {source}: ")
    assert not leg(report, str(right)).fault


def test_what_cannot_be_read_is_refused_before_anything_is_computed(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    steps: list[str] = []
    for other in (source / "config.json", tmp_path / "no.onnx"):
        with pytest.raises(ModelFolderError):
            check(source, tmp_path / "out", also=[other], progress=lambda step, *_: steps.append(step))
    with pytest.raises((ModelFolderError, CheckError)):
        check(source, source / "config.json", progress=lambda step, *_: steps.append(step))
    assert steps == []


def test_roles_may_be_given_for_any_of_several_exports_but_not_for_none(
    source: Path, export: Callable[..., Path], tmp_path: Path
) -> None:
    convert(source, tmp_path / "out")
    usual = export().rename(tmp_path / "usual.onnx")
    renamed = export(disguises.called(input_ids="x", attention_mask="m", position_ids="p"))
    roles = {"x": "input_ids", "m": "attention_mask", "p": "position_ids"}
    assert check(source, renamed, also=[usual], inputs=roles).passed
    for target, also in ((renamed, []), (tmp_path / "out", [renamed])):
        with pytest.raises(ModelFolderError, match=r"--inputs z=logits: .*model\.onnx has no input or output z"):
            check(source, target, also=also, inputs={**roles, "z": "logits"})


def test_steps_are_counted_with_those_of_exports(source: Path, export: Callable[..., Path], tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    file = export()
    for target in (tmp_path / "out", file):
        seen: list[int] = []
        totals: set[int] = set()

        def note(_: str, done: float, total: int, seen: list[int] = seen, totals: set[int] = totals) -> None:
            seen.extend([int(done)] if done == int(done) else [])
            totals.add(total)

        check(source, target, also=[file], progress=note)
        assert [seen] == [list(range(total)) for total in totals]


# --- the verdict kept -------------------------------------------------------------------------------------------------


def test_nothing_is_written_beside_an_export_unless_asked_for(
    source: Path, export: Callable[..., Path], tmp_path: Path
) -> None:
    file = export()
    before = sorted(file.parent.iterdir())
    check(source, file)
    assert sorted(file.parent.iterdir()) == before
    check(source, file, certificate=tmp_path / "verdict.json")
    assert sorted(file.parent.iterdir()) == before
    kept = json.loads((tmp_path / "verdict.json").read_text())["certificate"]
    assert kept["passed"] is True
    assert list(kept["files"]) == ["model.onnx"]


def test_a_certificate_vouches_only_for_what_was_compared_of_an_export(
    source: Path, export: Callable[..., Path], tmp_path: Path
) -> None:
    folder, certificate = export().parent, tmp_path / "verdict.json"
    (folder / "model_fp16.onnx").write_bytes(b"of another precision")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    check(source, folder, certificate=certificate)
    kept = json.loads(certificate.read_text())["certificate"]
    assert list(kept["files"]) == ["model.onnx"]
    assert kept["not_compared"] == ["config.json", "model_fp16.onnx"]
    (folder / "model_fp16.onnx").unlink()
    (folder / "config.json").write_bytes(b"{}")
    found = verify(folder, certificate)
    assert found.passed
    assert found.verdict.endswith("1 of its files: a match; config.json and 1 more not compared")
    # A file by itself is vouched for only if it was compared.
    assert verify(folder / "model.onnx", certificate).passed
    (folder / "model_fp16.onnx").write_bytes(b"of another precision")
    assert verify(folder / "model_fp16.onnx", certificate).unknown == ("model_fp16.onnx",)
    (folder / "decoder_model_merged.onnx").write_bytes(b"would be taken before model.onnx")
    assert verify(folder, certificate).unknown == ("decoder_model_merged.onnx",)


def test_a_check_of_the_logits_alone_certifies_nothing(
    source: Path, export: Callable[..., Path], tmp_path: Path
) -> None:
    certificate = tmp_path / "verdict.json"
    for out in (export(), tmp_path / "ours"):
        with pytest.raises(CheckError, match="compares no files and certifies none"):
            check(source, out, files=False, certificate=certificate)
    assert not certificate.exists()


def test_a_certificate_of_an_export_covers_what_its_links_lead_to(
    source: Path, export: Callable[..., Path], tmp_path: Path
) -> None:
    folder, certificate = export().parent, tmp_path / "verdict.json"
    (folder / "model.onnx").rename(folder / "blob")
    (folder / "model.onnx").symlink_to("blob")
    check(source, folder, certificate=certificate)
    assert verify(folder, certificate).passed
    (folder / "blob").write_bytes(b"changed")
    assert verify(folder, certificate).changed == ("blob",)


def test_the_logits_alone_may_decide(source: Path, export: Callable[..., Path]) -> None:
    report = check(source, export(), files=False)
    assert report.passed
    assert "weights not compared" in report.verdict
    assert replace(report, seconds=0.0).export.weights is None


# --- what is said -----------------------------------------------------------------------------------------------------


def test_what_no_hypothesis_explains_is_said_with_the_leg_that_fails(source: Path, export: Callable[..., Path]) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        """Take the sine of what the second layer norm of the first block gives."""
        name = next(node.output[0] for node in graph.node if node.output[0] == "h.0.ln_2")
        disguises._use(graph, name, f"{name}/sine")
        at = next(at for at, node in enumerate(graph.node) if name in node.output)
        graph.node.insert(at + 1, onnx.helper.make_node("Sin", [name], [f"{name}/sine"]))

    report = check(source, export(edit))
    assert "ONNX graph in float64 is " in report.verdict
    assert "h.0.mlp.c_fc (projection) has another output than its inputs and weights give" in report.verdict


def test_it_is_said_which_files_of_a_folder_were_not_compared(source: Path, export: Callable[..., Path]) -> None:
    file = export()
    (file.parent / "onnx").mkdir()
    for name in ("model.onnx", "model_fp16.onnx", "model_q4.onnx"):
        (file.parent / "onnx" / name).write_bytes(file.read_bytes())
    file.unlink()
    report = check(source, file.parent)
    said = "compared is onnx/model.onnx; name another file to compare it: onnx/model_fp16.onnx, onnx/model_q4.onnx"
    assert said in report.notes
    assert not any(note.startswith("compared is ") for note in check(source, file.parent / "onnx/model_q4.onnx").notes)


def test_what_is_wrong_nearly_everywhere_is_said_by_where_it_is_right(
    source: Path, save: Save, export: Callable[..., Path], tmp_path: Path
) -> None:
    report = check(source, export(of=altered(save, tmp_path, scale_attn_by_inverse_layer_idx=True)))
    # a row of one token attends to itself, whatever the scale
    assert "it is right in length 1, and wrong in the other cases" in report.notes


def test_a_file_that_cannot_be_run_fails_a_test_case_for_ci(source: Path, export: Callable[..., Path]) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        next(node for node in graph.node if node.op_type == "MatMul").op_type = "Nonsense"

    [suite] = junit.tree(check(source, export(edit)))
    assert suite.get("failures") == "1"


def test_every_view_shows_an_export_that_runs_in_float32_only(
    source: Path, save: Save, export: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_float32(graph: onnx.GraphProto) -> None:
        """Change nothing, with an operator that has no float64."""
        disguises._use(graph, "wte", "wte/same")
        at = next(at for at, node in enumerate(graph.node) if "wte" in node.output)
        graph.node.insert(at + 1, onnx.helper.make_node("ThresholdedRelu", ["wte"], ["wte/same"], alpha=-1e30))

    report = check(source, export(in_float32, of=altered(save, tmp_path, activation_function="gelu")))
    assert "its mathematics is not compared in float64: ONNX Runtime has no ThresholdedRelu for it" in report.notes
    assert_named(report, "h.0.mlp.act", "activation")
    check_tables.print_report(report, layers=True)
    assert "error in float32, on 'prefill'" in capsys.readouterr().out
    assert "the shipped graph in ONNX Runtime, in float32" in page.operations(report).caption
    assert ("export", "model.onnx") in [(owner, name) for owner, name, _ in page.hashes(report)]
    json.dumps(report.to_dict())


def test_the_provider_that_is_asked_for_runs_the_export(source: Path, export: Callable[..., Path]) -> None:
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no second provider that works on any machine")
    report = check(source, export(), provider="azure")
    assert report.passed, report.faults
    assert report.settings["provider"] == "AzureExecutionProvider"


# --- every small size -------------------------------------------------------------------------------------------------


def sizes_are(axis: int, number: int) -> disguises.Edit:
    """Make the logits wrong for a number of rows or tokens, without a branch that could be watched. Compared is the
    square, so that the number itself is not written in the graph.
    """

    def edit(graph: onnx.GraphProto) -> None:
        disguises.larger_logits(graph)
        graph.initializer.append(numpy_helper.from_array(np.array([number**2]), "number"))
        graph.node[-1].output[:] = ["wrong"]
        size = onnx.helper.make_node("Shape", ["input_ids"], ["size"], start=axis, end=axis + 1)
        square = onnx.helper.make_node("Mul", ["size", "size"], ["square"])
        same = onnx.helper.make_node("Equal", ["square", "number"], ["same"])
        graph.node.extend([size, square, same, onnx.helper.make_node("Where", ["same", "wrong", "right"], ["logits"])])

    return edit


@pytest.mark.parametrize(("axis", "number"), [(0, 7), (0, 30), (1, 13), (1, 21)])
def test_every_small_size_is_fed_at_the_full_level(
    source: Path, export: Callable[..., Path], axis: int, number: int
) -> None:
    file = export(sizes_are(axis, number))
    assert check(source, file).headline == "MATCH"  # it is none of the sizes that are always fed
    report = check(source, file, level="full")
    assert report.headline == "MISMATCH"
    assert report.localisation is not None
    assert report.localisation.first == "logits"


def test_rows_that_cannot_be_padded_are_fed_side_by_side(source: Path, export: Callable[..., Path]) -> None:
    report = check(source, export(disguises.without_mask, sizes_are(0, 3)))
    assert report.headline == "MISMATCH"
    assert "it is wrong in 3 rows of 12 tokens, and right in the other cases" in report.notes


def test_a_value_of_a_type_that_numpy_lacks_is_passed_over(source: Path, export: Callable[..., Path]) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        """Round what the second layer norm of the first block gives to bfloat16."""
        disguises._use(graph, "h.0.ln_2", "h.0.ln_2/rounded")
        at = next(at for at, node in enumerate(graph.node) if "h.0.ln_2" in node.output) + 1
        there, back = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
        graph.node.insert(at, onnx.helper.make_node("Cast", ["h.0.ln_2"], ["short"], to=there))
        graph.node.insert(at + 1, onnx.helper.make_node("Cast", ["short"], ["h.0.ln_2/rounded"], to=back))

    report = check(source, export(edit))
    assert report.headline == "MISMATCH"
    assert report.localisation is not None
    assert report.localisation.first == "h.0.mlp.c_fc"


def test_a_right_value_that_nothing_uses_hides_no_wrong_one(source: Path, export: Callable[..., Path]) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        """Compute the second layer norm of the first block anew; of the right one only the size is used."""
        disguises._use(graph, "h.0.ln_2", "h.0.ln_2/wrong")
        at = next(at for at, node in enumerate(graph.node) if "h.0.ln_2" in node.output) + 1
        before = graph.node[at - 1]
        wrong = onnx.helper.make_node(before.op_type, list(before.input), ["h.0.ln_2/other"], epsilon=0.5)
        graph.node.insert(at, wrong)
        graph.node.insert(at + 1, onnx.helper.make_node("Shape", ["h.0.ln_2"], ["its size"]))
        graph.node.insert(at + 2, onnx.helper.make_node("Reshape", ["h.0.ln_2/other", "its size"], ["h.0.ln_2/wrong"]))

    assert_named(check(source, export(edit)), "h.0.ln_2", "epsilon")


def test_a_wrong_activation_that_adds_the_bias_itself_is_named(source: Path, export: Callable[..., Path]) -> None:
    file = export(opset=20)
    model = onnx.load(file)
    gelu = next(node for node in model.graph.node if node.op_type == "Gelu")
    add = next(node for node in model.graph.node if gelu.input[0] in node.output)
    fused = onnx.helper.make_node("BiasGelu", list(add.input), list(gelu.output), domain="com.microsoft")  # by erf
    gelu.CopyFrom(fused)
    model.graph.node.remove(add)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, file)
    assert_named(check(source, file), "h.0.mlp.act", "activation")


def negated_values(graph: onnx.GraphProto) -> None:
    """The values of the first layer's cache are read with the other sign."""
    graph.initializer.append(numpy_helper.from_array(np.array(-1, np.float32), "minus"))
    name = "past_key_values.0.value"
    disguises._use(graph, name, "negated")
    graph.node.insert(0, onnx.helper.make_node("Mul", [name, "minus"], ["negated"]))


def test_a_graph_that_takes_one_token_at_a_time_is_fed_every_case_with_its_cache(
    source: Path, export: Callable[..., Path]
) -> None:
    one = disguises.fixed("input_ids", 1, 1)
    report = check(source, export(one))
    assert report.headline == "MATCH", report.faults
    cases = {case for leg in report.legs if leg.graph for case in leg.cases}
    assert {"prefill", "decode", "left-padded batch"} <= cases
    assert check(source, export(one, negated_values)).headline == "MISMATCH"


def test_a_graph_that_takes_none_of_the_cases_has_no_verdict(source: Path, export: Callable[..., Path]) -> None:
    file = export(disguises.fixed("input_ids", 1, 1), disguises.fixed(disguises.CACHE, 2, 11))
    with pytest.raises(CheckError, match="nothing that it computes can be compared: it takes a cache of 11 tokens"):
        check(source, file)
    convert(source, file.parents[1] / "ours", force=True)
    report = check(source, file.parents[1] / "ours", also=[file], certify=False)
    assert not report.passed
    assert "nothing that it computes can be compared" in report.verdict


@pytest.mark.parametrize(("axis", "size", "said"), [(0, 1, "1 rows at a time"), (1, 4, "4 tokens at a time after")])
def test_a_second_file_of_fixed_size_limits_the_cases(
    source: Path, export: Callable[..., Path], tmp_path: Path, axis: int, size: int, said: str
) -> None:
    folder = tmp_path / "pair"
    folder.mkdir()
    export().rename(folder / "prefill.onnx")
    export(disguises.fixed("input_ids", axis, size)).rename(folder / "decode.onnx")
    report = check(source, folder)
    assert report.headline == "MATCH", report.faults
    assert any(note.startswith(f"it takes {said}") for note in report.notes)


def test_a_quantizing_operator_that_rounds_no_weight_lowers_no_bar(source: Path, export: Callable[..., Path]) -> None:
    def idle(graph: onnx.GraphProto) -> None:
        given = next(name for name in graph.node[-1].input if name not in {held.name for held in graph.initializer})
        outputs = ["bits", "step", "zero"]
        graph.node.append(onnx.helper.make_node("DynamicQuantizeLinear", [given], outputs))

    report = check(source, export(idle))
    assert report.headline == "MATCH", report.faults
    assert report.export is not None
    assert report.export.precision == "fp32"


def test_what_an_export_returns_besides_is_said_not_to_be_compared(source: Path, export: Callable[..., Path]) -> None:
    def more(graph: onnx.GraphProto) -> None:
        graph.output.append(onnx.helper.make_tensor_value_info("ln_f", onnx.TensorProto.FLOAT, None))

    report = check(source, export(more))
    assert report.headline == "MATCH", report.faults
    assert "model.onnx also returns ln_f, which was not compared" in report.notes


def test_options_that_an_export_has_no_use_for_are_refused(source: Path, export: Callable[..., Path]) -> None:
    file = export()
    for options in ({"allow": ["config.json"]}, {"layers": True}):
        with pytest.raises(CheckError, match="--allow and --layers are for model folders of gpt2onnx"):
            check(source, file, **options)


def test_a_part_of_a_verdict_over_a_budget_is_the_folders_own(
    source: Path, export: Callable[..., Path], tmp_path: Path
) -> None:
    from converter.parity.verdict.judge import LegReport

    convert(source, tmp_path / "all", precision="fp32,int8")
    report = check(source, tmp_path / "all", certify=False)
    dear = replace(next(leg for leg in report.legs if leg.budget == "int8"), fault="costs", within_budget=False)
    assert isinstance(dear, LegReport)
    beside = replace(dear, export="b.onnx")
    wrong = replace(report, legs=(*report.legs, beside), reproduction_faults=("config.json: differs",))
    assert wrong.headline == "MISMATCH"
    both = replace(report, legs=(*report.legs, beside, dear))
    assert both.headline == "OVER BUDGET"
