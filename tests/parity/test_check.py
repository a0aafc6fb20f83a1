"""``check`` passes what is right and fails what is wrong, for the reason that it is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from converter import check, convert
from converter.data import CHECKPOINT
from converter.errors import GPT2Error
from converter.parity.report.report import Report
from converter.runtime import in_place
from tests.editors import change_weight, edit_graph

Save = Callable[..., Path]


def leg(report: Report, name: str) -> Any:
    return next(leg for leg in report.legs if leg.name == name)


def test_the_bundled_checkpoint_matches_and_its_error_is_that_of_float32(bundled: Path) -> None:
    report = check(CHECKPOINT, bundled)
    assert report.passed, report.faults
    assert report.text == "held-out English text"
    assert leg(report, "ONNX Runtime float32").rms_floors <= 2
    assert leg(report, "Hugging Face float64 eager").maximum < 1e-12
    assert {case.flips for case in report.legs} == {0}
    json.dumps(report.to_dict())


def test_the_graph_is_judged_as_it_is_and_with_its_cache_in_place(
    bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = in_place._in_place

    def wrong(*given: Any) -> onnx.NodeProto:
        node = right(*given)
        next(attribute for attribute in node.attribute if attribute.name == "scale").f *= 1.01
        return node

    monkeypatch.setattr(in_place, "_in_place", wrong)
    report = check(CHECKPOINT, bundled)
    assert [leg.name for leg in report.legs if leg.fault] == ["ONNX Runtime float32, cache in place"]


def assert_counted(steps: list[tuple[str, float, int]]) -> None:
    """Every step is counted, and what is told within a step lies between it and the next."""
    begun = [done for _, done, _ in steps if done == int(done)]
    assert begun == list(range(len(begun)))
    assert {total for *_, total in steps} == {len(begun)}
    assert [done for _, done, _ in steps] == sorted({done for _, done, _ in steps})


def test_a_long_step_tells_of_its_parts(save: Save, tmp_path: Path) -> None:
    source, steps = save(n_layer=3), list[tuple[str, float, int]]()
    convert(source, tmp_path / "out")
    check(source, tmp_path / "out", progress=lambda *step: steps.append(step))
    parts = [done for name, done, _ in steps if name == "the truth: reference in float64"]
    assert parts == [0, 0.25, 0.5, 0.75]  # each layer, and the head
    assert sum(name == "ONNX Runtime float32" for name, *_ in steps) > 5  # its cases


@pytest.mark.parametrize(
    ("config", "precision", "options"),
    [
        ({}, "fp32", {}),
        ({"n_embd": 24}, "fp32,fp16,int8", {"level": "full"}),
        ({"n_embd": 24}, "int4", {"layers": True}),
        ({"head": "double-heads"}, "fp32", {"layers": True}),
        ({"head": "token-classification"}, "fp32", {"level": "full"}),
    ],
    ids=str,
)
def test_as_many_steps_are_told_of_as_are_taken(
    save: Save, tmp_path: Path, config: dict[str, Any], precision: str, options: dict[str, Any]
) -> None:
    source, out, steps = save(**config), tmp_path / "out", list[tuple[str, float, int]]()
    convert(source, out, precision=precision)
    limits = {f"{name}.kl_mean": 100.0 for name in ("float16", "int8", "int4")}  # a model so small is no model of text
    limits |= {f"{name}.perplexity_ratio": 100.0 for name in ("float16", "int8", "int4")}
    also = [out / "onnx" / "model.onnx"] if precision == "fp32" and "head" not in config else []
    report = check(source, out, limits=limits, also=also, progress=lambda *step: steps.append(step), **options)
    assert report.passed
    assert_counted(steps)


@pytest.mark.parametrize("layers", [False, True])
def test_a_mismatch_tells_of_as_many_steps_as_it_takes(save: Save, tmp_path: Path, layers: bool) -> None:
    source, out, steps = save(), tmp_path / "out", list[tuple[str, float, int]]()
    convert(source, out)
    edit_graph(out / "onnx" / "model.onnx", wrong_epsilon)
    assert not check(source, out, layers=layers, progress=lambda *step: steps.append(step)).passed
    assert_counted(steps)
    assert steps[-1][0] == "where the error comes from"


def test_one_weight_changed_by_hand_is_found_and_named(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")

    def nudge(weight: np.ndarray) -> np.ndarray:
        weight[7, 2] = np.nextafter(weight[7, 2], np.float32(9))
        return weight

    change_weight(tmp_path / "out", "h.1.mlp.c_fc.weight", nudge)
    report = check(source, tmp_path / "out")
    assert not report.passed
    assert len(report.exactness_faults) == 1
    assert report.exactness_faults[0].startswith("h.1.mlp.c_fc.weight is ")
    assert "at [7, 2]; the source has" in report.exactness_faults[0]
    assert "h.1.mlp.c_fc.weight" in report.verdict


@pytest.mark.parametrize("name", ["h.0.attn.c_proj.weight", "h.2.ln_1.weight", "wpe.weight", "h.1.attn.c_attn.bias"])
def test_a_wrong_weight_shows_in_the_logits_too(save: Save, tmp_path: Path, name: str) -> None:
    source = save()
    convert(source, tmp_path / "out")
    change_weight(tmp_path / "out", name, lambda weight: weight * np.float32(1.01))
    report = check(source, tmp_path / "out")
    assert leg(report, "ONNX graph in float64").fault
    assert leg(report, "ONNX Runtime float32").fault
    assert not leg(report, "Hugging Face float64 eager").fault


def wrong_epsilon(graph: onnx.GraphProto) -> None:
    node = next(n for n in graph.node if n.output[0] == "h.1.ln_2")
    next(a for a in node.attribute if a.name == "epsilon").f = 1e-6


def wrong_gelu(graph: onnx.GraphProto) -> None:
    node = next(n for n in graph.node if n.op_type == "Gelu")
    del node.attribute[:]


def missing_scale(graph: onnx.GraphProto) -> None:
    node = next(n for n in graph.node if n.op_type == "Attention")
    next(a for a in node.attribute if a.name == "scale").f = 1.0


def swapped_q_and_k(graph: onnx.GraphProto) -> None:
    node = next(n for n in graph.node if n.op_type == "Attention")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def dropped_bias(graph: onnx.GraphProto) -> None:
    node = next(n for n in graph.node if n.output[0] == "h.0.mlp.c_proj")
    node.op_type = "Identity"
    del node.input[1:]


def ignored_padding(graph: onnx.GraphProto) -> None:
    node = next(n for n in graph.node if n.output[0] == "mask")
    node.input[0] = next(n.output[0] for n in graph.node if n.op_type == "LessOrEqual")
    node.input[1] = node.input[0]


def ignored_positions(graph: onnx.GraphProto) -> None:
    node = next(n for n in graph.node if n.output[0] == "wpe")
    graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    graph.node.insert(0, onnx.helper.make_node("Mul", ["position_ids", "zero"], ["no_positions"]))
    node.input[1] = "no_positions"


def swapped_layers(graph: onnx.GraphProto) -> None:
    def swap(name: str) -> str:
        return name.replace("h.0.", "h.X.").replace("h.1.", "h.0.").replace("h.X.", "h.1.")

    for node in graph.node:
        for i, name in enumerate(node.input):
            if name.endswith((".weight", ".bias")):
                node.input[i] = swap(name)


@pytest.mark.parametrize(
    "edit",
    [
        wrong_epsilon,
        wrong_gelu,
        missing_scale,
        swapped_q_and_k,
        dropped_bias,
        ignored_padding,
        ignored_positions,
        swapped_layers,
    ],
)
def test_a_graph_that_means_something_else_fails_though_its_weights_are_right(
    save: Save, tmp_path: Path, edit: Callable[[onnx.GraphProto], None]
) -> None:
    source = save()
    convert(source, tmp_path / "out")
    edit_graph(tmp_path / "out" / "onnx" / "model.onnx", edit)
    report = check(source, tmp_path / "out")
    assert not report.exactness_faults
    assert leg(report, "ONNX graph in float64").fault
    assert not report.passed
    assert str(tmp_path / "out") in report.verdict


def test_a_config_that_the_reference_and_transformers_read_alike_is_not_enough_to_pass(
    save: Save, tmp_path: Path
) -> None:
    source = save(layer_norm_epsilon=1e-5)
    convert(source, tmp_path / "out")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-4}))
    report = check(source, tmp_path / "out")
    assert not report.passed
    assert leg(report, "ONNX graph in float64").fault


@pytest.mark.parametrize(
    "config",
    [
        {"reorder_and_upcast_attn": True},
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
        {"n_positions": 1},
        {"n_positions": 2},
        {"n_layer": 1, "n_head": 1, "n_embd": 1, "vocab_size": 2},
        {"n_inner": 12},
        {"n_inner": 5},
        {"n_inner": 37, "tie_word_embeddings": False},
        {"activation_function": "prelu"},
    ],
    ids=str,
)
def test_unusual_models_match(save: Save, tmp_path: Path, config: dict[str, Any]) -> None:
    source = save(**config)
    convert(source, tmp_path / "out")
    report = check(source, tmp_path / "out")
    assert report.passed, report.faults


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sources_match(save: Save, tmp_path: Path, dtype: torch.dtype) -> None:
    source = save(dtype=dtype)
    convert(source, tmp_path / "out", opset=17)
    report = check(source, tmp_path / "out")
    assert report.passed, report.faults


def test_a_head_of_its_own_is_used_whatever_the_config_says(save: Save, tmp_path: Path) -> None:
    source = save(tie_word_embeddings=False)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    done = convert(source, tmp_path / "out")
    assert "lm_head.weight" in done.warnings[0]
    report = check(source, tmp_path / "out")
    assert report.passed, report.faults
    assert report.notes == done.ledger.warnings


def test_square_weights_are_never_transposed_by_accident(save: Save, tmp_path: Path) -> None:
    source = save(n_inner=12)
    weights = load_file(source / "model.safetensors")
    name = "transformer.h.1.attn.c_proj.weight"
    weights[name] = weights[name].T.contiguous()
    other = tmp_path / "transposed"
    other.mkdir()
    (other / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    convert(other, tmp_path / "out")
    assert check(other, tmp_path / "out").passed
    report = check(source, tmp_path / "out")
    assert report.exactness_faults[0].startswith("h.1.attn.c_proj.weight")
    assert leg(report, "ONNX graph in float64").fault


def test_a_folder_of_another_model_is_bad_input(save: Save, tmp_path: Path, bundled: Path) -> None:
    with pytest.raises(GPT2Error, match=r"is another model than .*: its vocab_size is 2048, the source's 61"):
        check(save(), bundled)


def test_a_damaged_graph_is_bad_input(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")
    (tmp_path / "out" / "onnx" / "model.onnx").write_bytes(b"\xff\xff rubbish")
    with pytest.raises(GPT2Error, match=r"model\.onnx is not an ONNX file"):
        check(source, tmp_path / "out")


def test_a_graph_that_cannot_run_is_bad_input(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")

    def break_graph(graph: onnx.GraphProto) -> None:
        next(n for n in graph.node if n.output[0] == "drop").input[1] = "h.0.attn.c_attn.bias"

    edit_graph(tmp_path / "out" / "onnx" / "model.onnx", break_graph)
    with pytest.raises(GPT2Error, match="cannot be run in float64 by ONNX Runtime"):
        check(source, tmp_path / "out", files=False)
    report = check(source, tmp_path / "out")  # the files say what was edited, and the verdict is theirs
    assert not report.passed
    assert "drop: Add inputs ['wte', 'h.0.attn.c_attn.bias']" in report.verdict
    assert any("cannot be opened by ONNX Runtime" in fault for fault in report.run_faults)


def test_check_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch, bundled: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GPT2Error, match=r"pip install 'gpt2onnx\[check\]'"):
        check(CHECKPOINT, bundled)


def rename(source: Path, change: Callable[[str], str]) -> None:
    weights = load_file(source / "model.safetensors")
    save_file({change(name): weight for name, weight in weights.items()}, source / "model.safetensors")


def test_what_transformers_cannot_read_is_checked_and_said_not_to_be_proven_by_it(save: Save, tmp_path: Path) -> None:
    source = save()
    rename(source, lambda name: f"_orig_mod.module.{name}")
    convert(source, tmp_path / "out")
    report = check(source, tmp_path / "out")
    assert report.passed, report.faults
    assert "mapping is not independently proven" in report.notes[0]
    change_weight(tmp_path / "out", "h.0.mlp.c_proj.weight", lambda weight: weight * np.float32(1.01))
    assert not check(source, tmp_path / "out").passed


@pytest.mark.parametrize("legacy", [True, False])
def test_pickled_sources_match(save: Save, tmp_path: Path, legacy: bool) -> None:
    source = save()
    weights = load_file(source / "model.safetensors")
    torch.save(weights, source / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    (source / "model.safetensors").unlink()
    convert(source, tmp_path / "out")
    report = check(source, tmp_path / "out")
    assert report.passed, report.faults
    assert report.notes == ()


def test_a_model_that_overflows_float32_fails_and_one_that_is_nan_is_bad_input(save: Save, tmp_path: Path) -> None:
    source = save()
    weights = load_file(source / "model.safetensors")
    name, head, gain = "transformer.ln_f.weight", "transformer.wte.weight", "transformer.ln_f.bias"
    for factors, reason in (
        ({name: 1e20, gain: 1e38, head: 1e3}, "overflows float32"),
        ({name: 1e20, head: 1e20}, "float32 does not hold this model"),  # its variances overflow, its logits do not
    ):
        large = {key: weights[key] * factor for key, factor in factors.items()}
        save_file(weights | large, source / "model.safetensors", metadata={"format": "pt"})
        convert(source, tmp_path / "out", force=True)
        report = check(source, tmp_path / "out")
        assert reason in report.faults[0]
    save_file(weights | {name: weights[name] * torch.nan}, source / "model.safetensors", metadata={"format": "pt"})
    convert(source, tmp_path / "nan", scan=False)
    with pytest.raises(GPT2Error, match="NaN or infinite, even in float64"):
        check(source, tmp_path / "nan")


def test_a_graph_whose_rows_see_each_other_fails(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")

    def mix_rows(graph: onnx.GraphProto) -> None:
        """Push each row away from the mean of the batch; a row alone is its own mean, and stays."""
        at = next(i for i, node in enumerate(graph.node) if node.output[0] == "drop") + 1
        for later in list(graph.node)[at:]:
            later.input[:] = ["mixed" if name == "drop" else name for name in later.input]
        graph.initializer.append(numpy_helper.from_array(np.array([0]), "first_axis"))
        for number, (op_type, inputs, output) in enumerate(
            (
                ("ReduceMean", ["drop", "first_axis"], "mean"),
                ("Sub", ["drop", "mean"], "apart"),
                ("Add", ["drop", "apart"], "mixed"),
            )
        ):
            graph.node.insert(at + number, onnx.helper.make_node(op_type, inputs, [output]))

    edit_graph(tmp_path / "out" / "onnx" / "model.onnx", mix_rows)
    faulty = leg(check(source, tmp_path / "out"), "ONNX graph in float64")
    assert "left-padded batch" in faulty.fault


def test_a_text_of_ones_own_is_what_is_fed(bundled: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("def f(x):\n    return x\n" * 60)
    report = check(CHECKPOINT, bundled, text=tmp_path / "mine.txt", certify=False)
    assert report.passed
    assert report.text.startswith(str(tmp_path / "mine.txt"))


def test_a_config_that_says_something_else_than_the_source_fails(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    whole = json.loads(file.read_text())
    for key, value in {"activation_function": "relu", "layer_norm_epsilon": 0.1, "tie_word_embeddings": False}.items():
        file.write_text(json.dumps(whole | {key: value}))
        report = check(source, tmp_path / "out")
        assert report.beside_faults == (f"config.json says {key} {value!r}; the source has {whole.get(key, True)!r}",)
        assert not report.passed


def test_a_tokenizer_that_is_not_the_sources_fails(tmp_path: Path) -> None:
    convert(CHECKPOINT, tmp_path / "out")
    file = tmp_path / "out" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
    file.write_text(json.dumps(tokenizer))
    assert check(CHECKPOINT, tmp_path / "out").beside_faults == ("the tokenizer's vocabulary is not the source's",)
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:100]
    file.write_text(json.dumps(tokenizer))
    assert check(CHECKPOINT, tmp_path / "out").beside_faults == ("the tokenizer splits text otherwise",)


def test_a_data_file_whose_header_contradicts_the_graph_fails(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")
    data = tmp_path / "out" / "onnx" / "model.onnx_data"
    swapped = data.read_bytes().replace(b"h.0.ln_1.bias", b"h.X.ln_1.bias").replace(b"h.1.ln_1.bias", b"h.0.ln_1.bias")
    data.write_bytes(swapped.replace(b"h.X.ln_1.bias", b"h.1.ln_1.bias"))
    faults = check(source, tmp_path / "out").exactness_faults
    assert sorted(fault.split()[0] for fault in faults) == ["h.0.ln_1.bias", "h.1.ln_1.bias"]
    assert "has another place in the header of model.onnx_data than in the graph" in faults[0]


def test_the_default_that_other_clients_get_is_what_is_measured(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")

    def keep_one(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.name == "num_logits_to_keep")
        tensor.CopyFrom(numpy_helper.from_array(np.array(1), "num_logits_to_keep"))

    edit_graph(tmp_path / "out" / "onnx" / "model.onnx", keep_one)
    report = check(source, tmp_path / "out")
    assert "gives logits of another shape" in leg(report, "ONNX graph in float64").fault
