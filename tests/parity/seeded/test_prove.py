"""``check --prove``: defects are caught and named, and a check that misses them is found out.

The bundled checkpoint, whose heads are wide enough for a cache in place, is proven by README's own command line
(tests/docs/test_blocks.py).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from converter.errors import CheckError, GPT2Error
from converter.parity import examine as folder
from converter.parity import explain
from converter.parity.diagnosis.diagnose import Diagnosis
from converter.parity.legs.steps import Steps
from converter.parity.report.report import Report
from converter.parity.seeded import prove
from converter.parity.seeded.mutation import Copy, Mutation
from converter.parity.seeded.mutations import MUTATIONS, elements
from converter.parity.seeded.prove import Laboratory, Proof
from converter.parity.seeded.weights import scaled_matrix
from converter.parity.verdict.judge import Judge
from reference.config import GPT2Config

Save = Callable[..., Path]

SHAPE = {"vocab_size": 61, "n_positions": 24, "n_embd": 15, "n_layer": 3, "n_head": 3, "n_inner": 20}


def contents(place: Path) -> dict[str, Any]:
    """Every file below a folder, with its bytes, or for a link where it points."""
    return {
        str(path.relative_to(place)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with no parameter trivially 0 or 1."""
    torch.manual_seed(3)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SHAPE, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    place = tmp_path_factory.mktemp("prove") / "source"
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def laboratory(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(source, tmp_path_factory.mktemp("laboratory"), Steps())


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Seed these defects and no others, and look for no smallest change."""
    assert set(names) <= {mutation.name for mutation in MUTATIONS}
    monkeypatch.setattr(prove, "defects", lambda config: [mutation for mutation in MUTATIONS if mutation.name in names])
    monkeypatch.setattr(prove, "CHANGE_LEAST", prove.CHANGE_MOST)


# One of a weight's numbers, one of the graph, one of both configs: what each half of a check has to catch.
A_FEW = ("square weight transposed", "epsilon × 10 in one place", "activation of the config unheeded")


# --- the proof --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proof(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Proof, list[tuple[str, int, int]]]:
    """The whole proof, and the steps that were told; source and temporary folder are looked at too."""
    steps: list[tuple[str, int, int]] = []
    before, place = contents(source), tmp_path_factory.mktemp("temporary")
    usual, tempfile.tempdir = tempfile.tempdir, str(place)
    try:
        found = prove.prove(source, lambda *step: steps.append(step))
    finally:
        tempfile.tempdir = usual
    assert contents(source) == before
    assert list(place.iterdir()) == []
    return found, steps


def test_every_defect_in_a_small_model_is_caught_and_named(proof: tuple[Proof, Any]) -> None:
    found, _ = proof
    assert [trial for trial in found.trials if not trial.passed] == []
    assert found.sound
    assert found.passed


def test_no_defect_is_left_out(proof: tuple[Proof, Any]) -> None:
    found, _ = proof
    config = GPT2Config(**SHAPE)  # type: ignore[arg-type]
    wanted = [mutation.name for mutation in prove.defects(config)]
    assert [trial.defect for trial in found.trials] == [name for name in wanted if name not in found.skipped]
    assert len(set(wanted)) == len(wanted)
    # A random model has no tokenizer; what is seeded into one is tried on the bundled checkpoint.
    assert all(name.startswith("tokenizer") for name in found.skipped), found.skipped


def test_what_was_said_is_told_from_the_logits_alone(proof: tuple[Proof, Any]) -> None:
    trial = next(trial for trial in proof[0].trials if trial.defect == "square weight transposed")
    assert trial.said.startswith("h.1.attn.c_proj.weight is transposed")
    assert "is NOT" in trial.verdict


def test_steps_are_told_up_to_the_last(proof: tuple[Proof, list[tuple[str, int, int]]]) -> None:
    found, steps = proof
    assert [done for _, done, _ in steps] == list(range(len(steps)))
    assert {total for *_, total in steps} == {len(steps)}
    told = [name for name, *_ in steps[1:-1]]
    assert [name for name in told if name not in found.skipped] == [trial.defect for trial in found.trials]


def test_the_smallest_change_is_caught_and_half_of_it_is_not(proof: tuple[Proof, Any], laboratory: Laboratory) -> None:
    found, _ = proof
    assert found.matrix == "h.1.mlp.c_fc.weight"
    for share, passes in ((1, False), (1 / prove.CHANGE_STEP, True)):
        mutation = Mutation("scaled", ("scaled",), scaled_matrix(found.matrix, found.smallest * share))
        assert laboratory.examine(laboratory.spoilt(mutation), files=False).passed is passes
    assert found.smallest < 1e-5


def test_a_proof_is_json(proof: tuple[Proof, Any]) -> None:
    plain = json.loads(json.dumps(proof[0].to_dict(), allow_nan=False))
    assert plain["passed"] is True
    assert plain["trials"][0]["defect"] == "square weight transposed"
    assert plain["schema"].startswith("gpt2onnx/proof/")


@pytest.mark.parametrize("name", A_FEW)
def test_a_verdict_by_logits_alone_is_that_of_a_check_without_files(laboratory: Laboratory, name: str) -> None:
    mutation = next(mutation for mutation in MUTATIONS if mutation.name == name)
    copy = laboratory.spoilt(mutation)
    whole, alone = laboratory.examine(copy, files=True), laboratory.examine(copy, files=False)

    def said(report: Report) -> dict[str, Any]:
        values = report.to_dict() | {"seconds": 0}
        return values | {"legs": [leg | {"seconds": 0} for leg in values["legs"]]}

    assert said(whole.by_logits_alone()) == said(alone)
    assert said(whole) != said(alone)


# --- a check that is blind --------------------------------------------------------------------------------------------


def test_a_check_that_never_finds_fault_is_found_out(
    source: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, *A_FEW)
    monkeypatch.setattr(Judge, "fault", lambda judge, leg: "")
    found = prove.prove(source)
    assert found.sound
    assert not found.passed
    caught = {trial.defect: (trial.caught, trial.caught_by_logits) for trial in found.trials}
    assert caught["square weight transposed"] == (True, False)  # by its bits
    assert caught["epsilon × 10 in one place"] == (True, False)  # by its graph


def test_a_check_that_does_not_run_the_graph_is_found_out(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, *A_FEW)
    monkeypatch.setattr(folder, "folder_rows", lambda *args: folder.FolderRows([]))
    found = prove.prove(source)
    assert not found.passed
    assert {trial.caught_by_logits for trial in found.trials} == {False}


def test_a_check_that_feeds_no_padding_is_found_out(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "padding not masked", "epsilon × 10 in one place")
    usual = prove.measure_source

    def without_padding(*args: Any) -> Any:
        baseline = usual(*args)
        baseline.cases = [case for case in baseline.cases if case.attention_mask.all()]
        return baseline

    monkeypatch.setattr(prove, "measure_source", without_padding)
    found = prove.prove(source)
    assert not found.passed
    assert [trial.passed for trial in found.trials if trial.defect == "padding not masked"] == [False]
    assert [trial.passed for trial in found.trials if trial.defect != "padding not masked"] == [True]


def test_a_trial_that_ends_in_an_error_is_missed_and_the_others_go_on(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, *A_FEW)
    usual = Laboratory.examine

    def examine(laboratory: Laboratory, copy: Copy, files: bool, precision: str = "fp32") -> Any:
        if "epsilon" in seeded[-1]:
            raise CheckError("model.onnx cannot be run")
        return usual(laboratory, copy, files, precision)

    seeded = [""]
    monkeypatch.setattr(Laboratory, "examine", examine)
    found = prove.prove(source, lambda name, done, total: seeded.append(name))
    assert {trial.defect: trial.passed for trial in found.trials} == {name: "epsilon" not in name for name in A_FEW}
    (missed,) = (trial for trial in found.trials if not trial.passed)
    assert missed.ended_in_error
    assert missed.said == "model.onnx cannot be run"
    assert not found.passed


@pytest.mark.parametrize("silent", [True, False])
def test_a_diagnosis_that_says_nothing_or_something_else_is_found_out(
    source: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    only(monkeypatch, *A_FEW[:2])
    usual = explain.diagnose

    def other(*args: Any) -> Diagnosis:
        found = usual(*args)
        kept = () if silent else found.findings[:1]
        for finding in kept:
            object.__setattr__(finding, "cause", "order")
        object.__setattr__(found, "findings", kept)
        return found

    monkeypatch.setattr(explain, "diagnose", other)
    found = prove.prove(source)
    assert all(trial.caught and trial.caught_by_logits for trial in found.trials)
    assert not any(trial.named or trial.named_by_logits for trial in found.trials)
    assert not found.passed


def test_a_cause_that_is_named_second_is_not_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "square weight transposed")
    usual = explain.diagnose

    def with_another_first(*args: Any) -> Diagnosis:
        found = usual(*args)
        (finding,) = found.findings
        first = type(finding)(**vars(finding) | {"cause": "epsilon"})
        object.__setattr__(found, "findings", (first, finding))
        return found

    monkeypatch.setattr(explain, "diagnose", with_another_first)
    assert not prove.prove(source).passed


def test_a_check_that_fails_what_is_sound_is_found_out(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "square weight transposed")
    usual = Judge.fault
    monkeypatch.setattr(Judge, "fault", lambda judge, leg: usual(judge, leg) or "is not to my taste")
    found = prove.prove(source)
    assert found.trials[0].caught
    assert not found.sound
    assert not found.passed


def test_a_check_that_compares_no_bits_is_found_out(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "square weight transposed", "weight rounded to bfloat16")
    monkeypatch.setattr(folder, "compare_initializers", lambda *args: folder.Exactness(0, ()))
    assert not prove.prove(source).passed


# --- mutations --------------------------------------------------------------------------------------------------------


def test_every_mutation_changes_its_copy_and_nothing_beside_it(source: Path, laboratory: Laboratory) -> None:
    place = laboratory.place
    untouched = contents(source), contents(place / "fp32")
    beside = {path.name for path in place.parent.iterdir()}
    for mutation in (*MUTATIONS, *elements(laboratory.config)):
        copy = laboratory.spoilt(mutation)
        assert copy.source.is_relative_to(place / "copy")
        assert copy.out.is_relative_to(place / "copy")
        changed = contents(copy.source), contents(copy.out)
        assert changed[1] != untouched[1], mutation.name
        assert (changed[0] != untouched[0]) == (mutation.variant is not None or "unheeded" in mutation.name)
        assert (contents(source), contents(place / "fp32")) == untouched, mutation.name
        assert {path.name for path in place.iterdir()} == {"fp32", "copy"}
    assert {path.name for path in place.parent.iterdir()} == beside


def test_what_one_mutation_did_the_next_one_does_not_see(laboratory: Laboratory) -> None:
    epsilon = next(mutation for mutation in MUTATIONS if mutation.name == "epsilon × 10 in one place")
    once = contents(laboratory.spoilt(epsilon).out)
    for mutation in (MUTATIONS[0], epsilon):
        last = contents(laboratory.spoilt(mutation).out)
    assert last == once


def test_no_mutation_leaves_the_copy(source: Path, laboratory: Laboratory, tmp_path: Path) -> None:
    """A source may be made of links, as in the Hub's cache: what they point to stays as it is."""
    blobs, linked = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    linked.mkdir()
    for file in source.iterdir():
        (blobs / file.name).write_bytes(file.read_bytes())
        (linked / file.name).symlink_to(blobs / file.name)
    before = contents(tmp_path)
    (tmp_path.parent / f"{tmp_path.name}-place").mkdir()
    other = Laboratory(linked, tmp_path.parent / f"{tmp_path.name}-place", Steps())
    for name in ("head tied to the wrong matrix", "activation of the config unheeded", "weight transposed"):
        other.spoilt(next(mutation for mutation in MUTATIONS if mutation.name == name))
        assert contents(tmp_path) == before, name


def test_a_source_that_was_changed_is_measured_anew(laboratory: Laboratory) -> None:
    truth = laboratory.baseline.truths["prefill"].copy()
    unheeded = next(mutation for mutation in MUTATIONS if mutation.name == "activation of the config unheeded")
    report = laboratory.examine(laboratory.spoilt(unheeded), files=False)
    assert report.diagnosis is not None
    assert report.diagnosis.findings[0].sentence.endswith("is gelu_new; the source has silu")
    assert (laboratory.baseline.truths["prefill"] == truth).all()
    assert laboratory.examine(laboratory.spoilt(Mutation("none", (), lambda copy: None)), files=True).passed


# --- models of every kind ---------------------------------------------------------------------------------------------


def test_defects_without_a_place_are_listed_as_skipped(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("another GELU in one layer", "ReLU in all layers", "attention scale missing", "two layers swapped",
             "epsilon × 10 in one place")  # fmt: skip
    only(monkeypatch, *names)
    found = prove.prove(save(activation_function="relu", scale_attn_weights=False, n_layer=1))
    assert found.skipped == names[:4]
    assert [trial.defect for trial in found.trials] == [names[4]]
    assert found.passed


SCALES = ("attention scale missing", "attention scale doubled", "scaled by the layer's number",
          "scale by the layer's number unheeded")  # fmt: skip
PLACES = ("positions off by one", "positions count the padding", "mask off by one", "padding not masked")
ODD = {
    "one layer": ({"n_layer": 1}, SCALES),
    "one head": ({"n_head": 1}, ("q, k, v interleaved per head",)),
    "one position": ({"n_positions": 1}, PLACES),
    "swish, which is silu": ({"activation_function": "swish"}, ("activation of the config unheeded",)),
    "a learned slope": ({"activation_function": "prelu"}, ("activation of the config unheeded",)),
    "no epsilon": ({"layer_norm_epsilon": 0.0}, ("epsilon × 10 in one place", "epsilon ÷ 10 everywhere")),
    "bfloat16": ({"dtype": torch.bfloat16}, ("weight rounded to bfloat16", "weight rounded to float8")),
    "untied": ({"tie_word_embeddings": False}, ("head tied to the wrong matrix",)),
    "no scale": ({"scale_attn_weights": False}, SCALES),
}


@pytest.mark.parametrize("name", ODD)
def test_a_sound_model_of_an_odd_shape_passes(save: Save, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config, names = ODD[name]
    only(monkeypatch, *names)
    found = prove.prove(save(**config))
    assert found.passed, [trial for trial in found.trials if not trial.passed]


def test_a_model_that_was_never_trained_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its biases are 0."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SHAPE, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(tmp_path / "source")
    names = ("bias zero in the weights", "bias dropped in the graph", "1 % on one element of ln_f.bias")
    monkeypatch.setattr(
        prove, "defects", lambda config: [m for m in (*MUTATIONS, *elements(config)) if m.name in names]
    )
    found = prove.prove(tmp_path / "source")
    assert found.passed, [trial for trial in found.trials if not trial.passed]


def test_names_without_the_models_prefix_are_known(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_ = save()
    file = folder_ / "model.safetensors"
    save_file({n.removeprefix("transformer."): w for n, w in load_file(file).items()}, file, {"format": "pt"})
    only(monkeypatch, "head tied to the wrong matrix", "square weight transposed")
    assert prove.prove(folder_).passed


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sharded", "pickled"])
def test_a_source_that_cannot_be_copied_and_changed_is_refused(save: Save, kind: str) -> None:
    if kind == "sharded":
        place = save(max_shard_size=4000)
    else:
        place = save()
        torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
        (place / "model.safetensors").unlink()
    before = contents(place)
    with pytest.raises(GPT2Error, match=r"source cannot be seeded with defects: it has no single model\.safetensors"):
        prove.prove(place)
    assert contents(place) == before


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GPT2Error, match="nothing-here"):
        prove.prove(tmp_path / "nothing-here")


def test_a_copy_is_spoilt_in_its_middle(laboratory: Laboratory) -> None:
    for layers, layer in ((1, 0), (2, 1), (3, 1), (12, 6)):
        assert Copy(Path(), Path(), GPT2Config(n_layer=layers)).layer == layer
