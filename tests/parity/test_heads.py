"""``check`` passes a head that is right, and of one that is not it says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
import transformers
from click.testing import CliRunner
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from converter import check, convert
from converter.cli import cli
from converter.errors import CheckError, ModelFolderError
from converter.folder import certificate
from converter.parity import explain
from converter.parity.legs.cases import Level, grid
from converter.parity.report.report import Report
from converter.parity.verdict.metrics import scale
from reference import heads as reference_heads
from reference.config import GPT2Config
from reference.head import ASKED
from tests import disguises
from tests.editors import change_weight, edit_graph, graphs

Save = Callable[..., Path]
Change = Callable[[np.ndarray], np.ndarray]

SINGLE = [head for head in ASKED if head not in ("lm", "double-heads")]
every_head = pytest.mark.parametrize("head", [*SINGLE, "double-heads"])


def causes(report: Report) -> list[str]:
    return [finding.cause for finding in report.diagnosis.findings] if report.diagnosis else []


# --- What is right passes ---------------------------------------------------------------------------------------------


@every_head
@pytest.mark.parametrize(
    "config",
    [
        {"n_layer": 1, "num_labels": 7, "pad_token_id": 5},
        {"n_positions": 1},
        {"num_labels": 1, "pad_token_id": 0, "activation_function": "prelu"},
        {"n_embd": 12, "n_inner": 12, "num_labels": 12, "vocab_size": 12, "tie_word_embeddings": False},
        {"summary_activation": "tanh", "n_positions": 60},
    ],
    ids=str,
)
def test_a_conversion_matches(save: Save, tmp_path: Path, head: str, config: dict[str, Any]) -> None:
    source = save(head=head, **config)
    convert(source, tmp_path / "out")
    report = check(source, tmp_path / "out")
    assert report.passed, report.faults
    parts = 2 if head == "double-heads" else 1
    assert len(report.legs) == 7 * parts
    assert {leg.flips for leg in report.legs} == {0}
    assert certificate.verify(tmp_path / "out").passed


@pytest.mark.parametrize("padding", [-1, 61, None])
def test_a_padding_token_that_is_no_token_is_no_reason_to_fail(save: Save, tmp_path: Path, padding: int | None) -> None:
    source = save(head="sequence-classification", pad_token_id=padding)
    convert(source, tmp_path / "out")
    report = check(source, tmp_path / "out", layers=True)
    assert report.passed, report.faults
    assert report.localisation is not None
    assert report.localisation.first == ""


@every_head
def test_half_precision_sources_match(save: Save, tmp_path: Path, head: str) -> None:
    source = save(head=head, dtype=torch.bfloat16, n_layer=1)
    convert(source, tmp_path / "out")
    report = check(source, tmp_path / "out")
    assert report.passed, report.faults


@every_head
def test_everything_can_be_asked_for_at_once(save: Save, tmp_path: Path, head: str) -> None:
    source, out = save(head=head), tmp_path / "out"
    convert(source, out)
    page, xml = tmp_path / "report.html", tmp_path / "junit.xml"
    options = ["--level", "full", "--layers", "--report", str(page), "--junit", str(xml), "--json"]
    result = CliRunner().invoke(cli, ["check", str(source), str(out), "--also", str(graphs(out)[0]), *options])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["passed"]
    assert facts["localisation"]["missing"] == []
    assert facts["localisation"]["first"] == ""
    names = [leg["name"] for leg in facts["legs"]]
    assert len(names) == len(set(names))
    assert (str(graphs(out)[0]) in names) is True
    assert any(name.endswith(", multiple-choice") for name in names) is (head == "double-heads")
    assert "<html" in page.read_text(encoding="utf-8")
    cases = [case.get("name") for case in ElementTree.parse(xml).getroot().iter("testcase")]
    assert len(cases) == len(set(cases))
    assert certificate.verify(out).passed
    assert CliRunner().invoke(cli, ["verify", str(out)]).exit_code == 0


def test_the_taps_of_every_head_end_with_what_it_answers(save: Save, tmp_path: Path) -> None:
    last = {
        "base": "last_hidden_state",
        "sequence-classification": "score",
        "token-classification": "logits",
        "question-answering": "qa_outputs",
    }
    for head, tap in last.items():
        convert(save(name=head, head=head, n_layer=1), tmp_path / f"{head}-out")
        report = check(tmp_path / head, tmp_path / f"{head}-out", layers=True, certify=False)
        assert report.localisation is not None
        assert report.localisation.taps[-1].name == tap
        assert not any(one.diverges for one in report.localisation.taps)
        assert all(one.huggingface < 1e-5 for one in report.localisation.taps)


# --- What is wrong is named -------------------------------------------------------------------------------------------


def swapped(weight: np.ndarray) -> np.ndarray:
    return weight[[1, 0, *range(2, len(weight))]]


def transposed(weight: np.ndarray) -> np.ndarray:
    return weight.T.reshape(weight.shape)


def nudged(weight: np.ndarray) -> np.ndarray:
    weight[0, 5] += np.float32(0.1)
    return weight


CHOICE = "multiple_choice_head.summary"
DEFECTS: list[tuple[str, str, Change, str, str]] = [
    ("token-classification", "classifier.bias", lambda bias: bias * 0, "bias", "classifier.bias is left out"),
    ("question-answering", "qa_outputs.bias", lambda bias: bias * 0, "bias", "qa_outputs.bias is left out"),
    ("double-heads", f"{CHOICE}.bias", lambda bias: bias * 0, "bias", f"{CHOICE}.bias is left out"),
    ("sequence-classification", "score.weight", swapped, "head", "score.weight are in another order: 1, 0, 2, 3"),
    (
        "token-classification",
        "classifier.weight",
        swapped,
        "head",
        "classifier.weight are in another order: 1, 0, 2, 3",
    ),
    ("question-answering", "qa_outputs.weight", swapped, "head", "qa_outputs.weight"),
    ("sequence-classification", "score.weight", transposed, "transposed", "score.weight is transposed"),
    ("token-classification", "classifier.weight", transposed, "transposed", "classifier.weight is transposed"),
    ("question-answering", "qa_outputs.weight", transposed, "transposed", "qa_outputs.weight is transposed"),
    ("sequence-classification", "score.weight", nudged, "element", "score.weight[0, 5] is "),
    ("token-classification", "classifier.weight", nudged, "element", "classifier.weight[0, 5] is "),
    ("question-answering", "qa_outputs.weight", nudged, "element", "qa_outputs.weight[0, 5] is "),
    ("double-heads", f"{CHOICE}.weight", nudged, "element", f"{CHOICE}.weight[0, 5] is "),
    ("base", "ln_f.weight", lambda weight: weight.astype(np.float16), "rounded", "ln_f.weight was rounded"),
    *(
        (head, name, lambda weight: weight * np.float32(1.01), "scaled", f"{name} is 1.0")
        for head in (*SINGLE, "double-heads")
        for name in ("wte.weight", "h.1.mlp.c_fc.weight")
    ),
]


@pytest.mark.parametrize(
    ("head", "name", "change", "cause", "sentence"),
    DEFECTS,
    ids=[f"{head} {name} {cause}" for head, name, _, cause, _ in DEFECTS],
)
def test_a_changed_weight_is_caught_and_named_by_what_it_does(
    save: Save, tmp_path: Path, head: str, name: str, change: Change, cause: str, sentence: str
) -> None:
    config = {"pad_token_id": 5} if head == "sequence-classification" else {}
    source = save(head=head, num_labels=4, **config) if head != "double-heads" else save(head=head)
    convert(source, tmp_path / "out")
    change_weight(tmp_path / "out", name, change)
    whole = check(source, tmp_path / "out")
    assert any(fault.startswith(f"{name} is ") for fault in whole.exactness_faults)
    report = check(source, tmp_path / "out", files=False)
    assert not report.passed
    assert causes(report)[0] == cause
    assert sentence in report.verdict
    assert not certificate.verify(tmp_path / "out").passed


def last_position(graph: onnx.GraphProto) -> None:
    """The last position answers, padding or not."""
    pool = next(node for node in graph.node if node.op_type == "ArgMax")
    cast = next(node for node in graph.node if node.output[0] == pool.input[0])
    graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    ones = onnx.helper.make_node("Equal", ["input_ids_", "input_ids_"], ["every"])
    source = "input_ids" if len(graph.input[0].type.tensor_type.shape.dim) == 2 else None
    feeding = source or next(node.output[0] for node in graph.node if node.op_type == "Reshape")
    ones.input[0] = ones.input[1] = feeding
    widen = onnx.helper.make_node("Cast", ["every"], ["every_one"], to=onnx.TensorProto.INT64)
    at = list(graph.node).index(cast)
    graph.node.insert(at, widen)
    graph.node.insert(at, ones)
    cast.input[0] = "every_one"


def first_position(graph: onnx.GraphProto) -> None:
    pool = next(node for node in graph.node if node.op_type == "ArgMax")
    pool.op_type = "ArgMin"
    graph.initializer.append(numpy_helper.from_array(np.array(0), "nothing"))
    at = list(graph.node).index(pool)
    graph.node.insert(at, onnx.helper.make_node("Mul", [pool.input[0], "nothing"], ["flat"]))
    pool.input[0] = "flat"


@pytest.mark.parametrize("head", ["sequence-classification", "double-heads"])
@pytest.mark.parametrize(
    ("edit", "said"),
    [(last_position, "the last position, padding or not, answers for a text"), (first_position, "the first position")],
)
def test_another_position_that_answers_is_named(
    save: Save, tmp_path: Path, head: str, edit: Callable[[onnx.GraphProto], None], said: str
) -> None:
    source = save(head=head, **({"pad_token_id": 5} if head == "sequence-classification" else {}))
    convert(source, tmp_path / "out")
    edit_graph(graphs(tmp_path / "out")[-1], edit)
    report = check(source, tmp_path / "out")
    assert not report.exactness_faults
    assert causes(report) == ["position"]
    assert said in report.verdict
    assert report.localisation is not None
    assert report.localisation.first == "pool"


@pytest.mark.parametrize(("ours", "theirs"), [("tanh", "sigmoid"), (None, "tanh"), ("gelu", None)])
def test_another_activation_of_a_choice_is_named(
    save: Save, tmp_path: Path, ours: str | None, theirs: str | None
) -> None:
    source = save(head="double-heads", summary_activation=theirs)
    convert(source, tmp_path / "out")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"summary_activation": ours}))
    report = check(source, tmp_path / "out")
    assert not report.passed
    assert any("config.json says summary_activation" in fault for fault in report.beside_faults)
    assert causes(report) == ["activation"]
    assert f"is {theirs or 'linear'}; the source has {ours or 'linear'}" in report.verdict


def test_padding_that_is_another_token_is_caught(save: Save, tmp_path: Path) -> None:
    source = save(head="sequence-classification", pad_token_id=5)
    convert(source, tmp_path / "out")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"pad_token_id": 17}))
    report = check(source, tmp_path / "out", text=None)
    assert "config.json says pad_token_id 5; the source has 17" in report.faults
    (source / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out" / "config.json"
    values = json.loads(out.read_text())
    out.write_text(json.dumps({key: value for key, value in values.items() if key != "pad_token_id"}))
    assert "config.json says pad_token_id None; the source has 5" in check(source, tmp_path / "out").faults


def test_a_config_that_names_its_head_by_the_tensors_alone_is_held_to_its_padding(save: Save, tmp_path: Path) -> None:
    source = save(head="sequence-classification", pad_token_id=5)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "architectures"}))
    convert(source, tmp_path / "out")
    assert check(source, tmp_path / "out").passed
    out = tmp_path / "out" / "config.json"
    out.write_text(json.dumps(json.loads(out.read_text()) | {"pad_token_id": None}))
    assert not check(source, tmp_path / "out").passed


@pytest.mark.parametrize("head", ["sequence-classification", "token-classification"])
@pytest.mark.parametrize(
    "changed",
    [{"id2label": {"0": "bad", "1": "good", "2": "so so"}}, {"problem_type": "multi_label_classification"}],
    ids=str,
)
def test_labels_of_other_names_are_caught(save: Save, tmp_path: Path, head: str, changed: dict[str, Any]) -> None:
    names = {0: "good", 1: "bad", 2: "so so"}
    source = save(head=head, id2label=names, label2id={name: i for i, name in names.items()})
    convert(source, tmp_path / "out")
    out = tmp_path / "out" / "config.json"
    out.write_text(json.dumps(json.loads(out.read_text()) | changed))
    report = check(source, tmp_path / "out")
    assert not report.passed
    assert next(iter(changed)) in report.verdict
    assert not report.exactness_faults


def test_another_number_of_labels_or_another_head_is_another_model(save: Save, tmp_path: Path) -> None:
    source = save(head="sequence-classification", num_labels=3)
    convert(source, tmp_path / "out")
    more = save("more", head="sequence-classification", num_labels=4)
    with pytest.raises(CheckError, match="its num_labels is 3, the source's 4"):
        check(more, tmp_path / "out")
    with pytest.raises(CheckError, match="its head is sequence-classification, the source's base; --head says"):
        check(save("base", head="base"), tmp_path / "out")


def test_each_graph_of_double_heads_is_held_against_the_source(save: Save, tmp_path: Path) -> None:
    source = save(head="double-heads")
    convert(source, tmp_path / "out")

    def wrong(graph: onnx.GraphProto) -> None:
        node = next(n for n in graph.node if n.output[0] == "h.1.ln_2")
        next(a for a in node.attribute if a.name == "epsilon").f = 1e-3

    for file, mark in zip(graphs(tmp_path / "out"), ("", ", multiple-choice"), strict=True):
        sound = file.read_bytes()
        edit_graph(file, wrong)
        report = check(source, tmp_path / "out")
        faulty = {leg.name for leg in report.legs if leg.fault}
        assert faulty == {f"ONNX graph in float64{mark}", f"ONNX Runtime float32{mark}"}
        assert causes(report) == ["epsilon"]
        file.write_bytes(sound)
    assert check(source, tmp_path / "out").passed
    assert check(source, tmp_path / "out", head="lm").passed


def test_padding_that_is_looked_at_is_named(save: Save, tmp_path: Path) -> None:
    source = save(head="token-classification")
    convert(source, tmp_path / "out", opset=17)

    def positions_over_padding(graph: onnx.GraphProto) -> None:
        node = next(n for n in graph.node if n.op_type == "CumSum")
        graph.node.insert(0, onnx.helper.make_node("Equal", ["input_ids", "input_ids"], ["all"]))
        graph.node.insert(1, onnx.helper.make_node("Cast", ["all"], ["ones"], to=onnx.TensorProto.INT64))
        node.input[0] = "ones"

    edit_graph(graphs(tmp_path / "out")[0], positions_over_padding)
    report = check(source, tmp_path / "out")
    assert causes(report) == ["position"]
    assert "positions are counted over the padding too" in report.verdict


# --- Who is to blame --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", SINGLE)
def test_a_fault_of_the_reference_is_not_blamed_on_the_graph(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    source = save(head=head, **({"pad_token_id": 5} if head == "sequence-classification" else {}))
    convert(source, tmp_path / "out")
    klass = reference_heads.CLASSES[head]
    monkeypatch.setattr(klass, "head", lambda self, x, _sound=klass.head: 1.5 * _sound(self, x))
    report = check(source, tmp_path / "out", certify=False)
    assert not report.passed
    assert {leg.name for leg in report.legs if leg.fault} >= {"Hugging Face float64 eager", "ONNX graph in float64"}


def test_a_reference_that_normalises_otherwise_is_at_fault(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(head="question-answering")
    convert(source, tmp_path / "out")
    monkeypatch.setattr(GPT2Config, "attn_scale", lambda self, layer: 0.3)
    report = check(source, tmp_path / "out", certify=False)
    assert report.diagnosis is not None
    assert report.diagnosis.subject == "reference"


def test_a_fault_of_transformers_is_not_blamed_on_the_graph(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(head="token-classification")
    convert(source, tmp_path / "out")
    sound = transformers.GPT2ForTokenClassification.forward

    def wrong(self: Any, *args: Any, **options: Any) -> Any:
        out = sound(self, *args, **options)
        out.logits = out.logits + 1
        return out

    monkeypatch.setattr(transformers.GPT2ForTokenClassification, "forward", wrong)
    report = check(source, tmp_path / "out", certify=False)
    assert not report.passed
    assert "is not proven to be" in report.verdict


# --- Another exporter's file ------------------------------------------------------------------------------------------


def rename(file: Path, old: str, new: str) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output):
            value.name = new if value.name == old else value.name
        for node in graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    names[i] = new if name == old else name

    edit_graph(file, edit)


@pytest.mark.parametrize("head", SINGLE)
def test_a_file_that_takes_positions_too_is_fed_them(save: Save, tmp_path: Path, head: str) -> None:
    source = save(head=head, n_layer=1)
    convert(source, tmp_path / "out")
    convert(source, tmp_path / "other")

    def positions_as_an_input(graph: onnx.GraphProto) -> None:
        wpe = next(node for node in graph.node if node.output[0] == "wpe")
        wpe.input[1] = "position_ids"
        shape = ["batch_size", "sequence_length"]
        graph.input.append(onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, shape))

    file = graphs(tmp_path / "other")[0]
    edit_graph(file, positions_as_an_input)
    report = check(source, tmp_path / "out", also=[file])
    assert report.passed
    assert report.other_faults == ()
    assert report.legs[-1].name == str(file)


# The logits of a language model are known by their shape, whatever they are called.
NAMED = [(head, "output") for head in SINGLE] + [(head, "attention_mask") for head in (*SINGLE, "double-heads")]


@pytest.mark.parametrize(("head", "old"), NAMED)
def test_another_file_of_other_names_is_refused_in_a_sentence(save: Save, tmp_path: Path, head: str, old: str) -> None:
    source = save(head=head, n_layer=1)
    convert(source, tmp_path / "out")
    convert(source, tmp_path / "other")
    file = graphs(tmp_path / "other")[0]
    first = onnx.load(file, load_external_data=False).graph.output[0].name
    rename(file, first if old == "output" else old, "something_else")
    with pytest.raises(ModelFolderError, match=r"other/onnx/model\.onnx "):
        check(source, tmp_path / "out", also=[file])


@pytest.mark.parametrize("head", SINGLE)
def test_another_file_that_is_not_the_source_is_told(save: Save, tmp_path: Path, head: str) -> None:
    source = save(head=head, n_layer=1)
    convert(source, tmp_path / "out")
    convert(save("another", head=head, n_layer=1, seed=1), tmp_path / "other")
    report = check(source, tmp_path / "out", also=[graphs(tmp_path / "other")[0], graphs(tmp_path / "out")[0]])
    assert report.matches
    assert not report.passed
    assert len(report.other_faults) == 1
    assert "other/onnx/model.onnx is NOT" in report.other_faults[0]


# --- Cases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, 5, -1, 61])
@pytest.mark.parametrize("size", [1, 2, 24, 60])
@pytest.mark.parametrize("head", ["sequence-classification", "multiple-choice", "base"])
def test_cases_pad_on_either_side_and_pool_where_transformers_pools(head: str, size: int, padding: int | None) -> None:
    given = padding if head == "sequence-classification" else None
    config = GPT2Config(vocab_size=61, n_positions=size, n_embd=12, n_layer=1, n_head=3, head=head, pad_token_id=given)
    tokens = np.random.default_rng(0).integers(61, size=max(size, 48))
    cases = grid(config, tokens, Level.QUICK)
    names = ["one text", "right-padded batch", "left-padded batch"] + (["full length"] if size > 48 else [])
    assert [case.name for case in cases] == names
    for case in cases:
        assert case.input_ids.shape == case.attention_mask.shape
        assert case.chunks == (case.input_ids.shape[1],)
        assert (case.following == -1).all()
        if head == "base":
            assert case.last is None
            assert (case.real == (case.attention_mask > 0)).all()
            continue
        assert case.last is not None
        assert case.real.shape == (len(case.input_ids), 1)
        assert case.real.all()
        for ids, mask, last in zip(case.input_ids, case.attention_mask, case.last, strict=True):
            tokens_at = [i for i in range(len(ids)) if mask[i] and ids[i] != given]
            assert last == max(tokens_at, default=0)
    if size > 2:
        right, left = cases[1], cases[2]
        assert right.attention_mask[0].tolist() == [1] + [0] * (right.input_ids.shape[1] - 1)
        assert left.attention_mask[0].tolist() == [0] * (left.input_ids.shape[1] - 1) + [1]
        assert (
            len({row[mask > 0].tobytes() for row, mask in zip(right.input_ids, right.attention_mask, strict=True)}) > 8
        )


def test_the_yardstick_of_a_head_is_the_size_of_its_answers() -> None:
    truth, real = {"a": np.full((2, 1, 1), 3.0)}, {"a": np.ones((2, 1), bool)}
    assert scale(truth, real, "sequence-classification") == pytest.approx(3)
    assert scale(truth, real, "lm") < 1e-6


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_wrapped_checkpoint_is_proven_with_a_note(save: Save, tmp_path: Path, prefix: str) -> None:
    for head in (*SINGLE, "double-heads"):
        source = save(head, head=head, n_layer=1, num_labels=3) if head != "double-heads" else save(head, head=head)
        state = load_file(source / "model.safetensors")
        save_file({prefix + name: tensor for name, tensor in state.items()}, source / "model.safetensors")
        convert(source, tmp_path / f"{head}-out")
        report = check(source, tmp_path / f"{head}-out", certify=False)
        assert report.passed, (head, report.faults)
        assert any("transformers does not find" in note for note in report.notes)


def test_outputs_of_two_models_agree_only_where_it_is_no_padding(save: Save) -> None:
    config = GPT2Config(vocab_size=61, n_positions=24, n_embd=12, n_layer=1, n_head=3, head="token-classification")
    case = grid(config, np.arange(60), Level.QUICK)[1]
    a = {"logits": np.zeros((16, 24, 2))}
    b = {"logits": np.where(case.attention_mask[..., None] > 0, 0.0, np.nan) * np.ones(2)}
    assert explain._agree(a, b, "logits", case, 1e-9)
    assert not explain._agree(a, {"logits": a["logits"] + 1}, "logits", case, 1e-9)
    assert not explain._agree(a, {}, "logits", case, 1e-9)


def test_a_second_graph_that_cannot_be_run_is_a_fault_beside_those_of_the_first(save: Save, tmp_path: Path) -> None:
    convert(save(head="double-heads"), tmp_path / "out")

    def broken(graph: onnx.GraphProto) -> None:
        next(node for node in graph.node if node.output[0] == "drop").input[1] = "h.0.attn.c_attn.bias"

    edit_graph(graphs(tmp_path / "out")[-1], broken)
    report = check(tmp_path / "source", tmp_path / "out")
    assert not report.passed
    assert any("cannot be " in fault for fault in report.run_faults)


@pytest.fixture
def theirs(save: Save, tmp_path: Path) -> Callable[..., Path]:
    """``theirs(edit)``: a classifier as another program exports it; its source is beside it."""

    def export(edit: disguises.Edit) -> Path:
        convert(save(head="sequence-classification", pad_token_id=5), tmp_path / "ours")
        return disguises.disguise(tmp_path / "ours", tmp_path / "theirs" / "model.onnx", edit)

    return export


def test_an_export_of_another_head_that_counts_padding_is_held_on_unpadded_rows(
    theirs: Callable[..., Path], tmp_path: Path
) -> None:
    report = check(tmp_path / "source", theirs(disguises.own_positions))
    assert report.headline == "MATCH", report.faults
    assert any(note.startswith("it takes no position_ids, so that it is held on unpadded") for note in report.notes)


def test_an_export_of_another_head_that_takes_no_case_has_no_verdict(
    theirs: Callable[..., Path], tmp_path: Path
) -> None:
    file = theirs(disguises.fixed("input_ids", 1, 16))
    with pytest.raises(CheckError, match=r"it takes \['\w+', 16\] token ids at a time; export it with dimensions"):
        check(tmp_path / "source", file)
