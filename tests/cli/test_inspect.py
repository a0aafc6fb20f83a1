"""``inspect`` of a model folder: what it holds, and what a check found of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converter import check, convert
from converter.data import CHECKPOINT
from tests.cli.commands import run, succeed
from tests.conftest import Save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inspected") / "out"
    convert(CHECKPOINT, out, precision="fp32,int4")
    return out


def test_a_folder_that_was_not_checked_says_how_to_check_it(folder: Path) -> None:
    shown = run("inspect", folder).stdout
    assert f"not checked: gpt2onnx check SOURCE {folder}" in shown
    for part in ("2,667,072 parameters", "head lm", "made of tiny by gpt2onnx", "onnx/model_q4.onnx", "97.7%"):
        assert part in shown
    assert json.loads(run("inspect", folder, "--json").stdout)["certificate"] is None


def test_a_folder_that_was_checked_tells_the_quality_of_each_precision(folder: Path) -> None:
    report = check(CHECKPOINT, folder)
    shown = run("inspect", folder).stdout
    facts = json.loads(run("inspect", folder, "--json").stdout)
    assert list(facts["precisions"]) == ["fp32", "int4"]
    assert facts["certificate"]["passed"] is True
    assert facts["certificate"]["verdict"] == report.verdict
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert facts["bytes"] == sum(file.stat().st_size for file in files)
    assert "a match; whether these are still the files" in shown
    for name, held in facts["precisions"].items():
        row = next(line for line in shown.splitlines() if line.startswith(f" {name} "))
        leg = next(leg for leg in report.legs if leg.ships(name))
        for part in (
            f"{leg.kl_mean:.0e}",
            f"{leg.perplexity_ratio:.5f}",
            str(held["opset"]),
            f"{held['bytes'] / 1e6:.1f} MB",
        ):
            assert part in row


def test_a_mismatch_is_told_with_its_verdict(tmp_path: Path, save: Save) -> None:
    source, other = save(), save(name="other", seed=1)
    convert(source, tmp_path / "out")
    assert not check(other, tmp_path / "out").passed
    shown = run("inspect", tmp_path / "out").stdout
    assert f"a MISMATCH: {tmp_path / 'out'} is NOT {other}" in shown


def test_a_folder_of_another_head_names_it(save: Save, tmp_path: Path) -> None:
    convert(save(head="double-heads"), tmp_path / "out")
    assert "heads lm, multiple-choice" in run("inspect", tmp_path / "out").stdout


def test_a_source_with_a_graph_in_place_is_both(save: Save) -> None:
    source = save()
    succeed("convert", source, "--in-place", "-q")
    shown = run("inspect", source).stdout
    assert "model folder, GPT-2 with" in shown
    assert "transformer.h.2.mlp.c_fc.weight" in shown
    facts = json.loads(run("inspect", source, "--json").stdout)
    assert facts["in_place"]["precisions"]["fp32"]["model"] == "model.onnx"
    assert len(facts["tensors"]) == 40


def test_a_checkpoint_that_we_wrote_for_others_is_a_source(save: Save, tmp_path: Path) -> None:
    succeed("convert", save(), tmp_path / "hf", "--to", "hf", "-q")
    assert "tensors in model.safetensors (Hugging Face)" in run("inspect", tmp_path / "hf").stdout
