"""``check`` as a user meets it: matches, mismatches, options, reports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest

from converter.data import CHECKPOINT
from converter.parity.seeded import mutations
from tests.cli.commands import ROOT, assert_one_sentence, run, succeed
from tests.conftest import Save
from tests.disguises import called, disguise, renamed


def test_check_prints_a_table_and_exits_with_0_on_a_match(bundled: Path) -> None:
    result = run("check", CHECKPOINT, bundled)
    assert result.exit_code == 0
    for part in ("64 initializers", "Hugging Face float64 eager", "ONNX Runtime float32", "noise floor", "MATCH: "):
        assert part in result.stdout
    assert "FAIL" not in result.stdout


def test_check_exits_with_1_on_a_mismatch_and_says_why(tmp_path: Path) -> None:
    succeed("convert", CHECKPOINT, tmp_path / "out", "-q")
    data = tmp_path / "out" / "onnx" / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    result = run("check", CHECKPOINT, tmp_path / "out")
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert "MISMATCH: " in result.stdout
    assert "wte.weight" in result.stdout or "wpe.weight" in result.stdout
    report = json.loads(run("check", CHECKPOINT, tmp_path / "out", "--json").stdout)
    assert report["passed"] is False
    assert len(report["exactness_faults"]) == 1


def test_check_of_nonsense_is_one_sentence(tmp_path: Path, bundled: Path, save: Save) -> None:
    assert_one_sentence(run("check", CHECKPOINT, tmp_path / "nowhere"), "there is no model folder")
    assert_one_sentence(run("check", tmp_path / "nowhere", bundled), "there is no folder")
    assert_one_sentence(run("check", save(), bundled), "is another model than", "vocab_size")
    assert_one_sentence(run("check", CHECKPOINT, bundled, "--provider", "abacus"), "no provider abacus; it offers")


def test_a_mismatch_is_traced_to_its_operation_and_named(save: Save, tmp_path: Path) -> None:
    source = save()
    succeed("convert", source, tmp_path / "out", "-q")
    file = tmp_path / "out" / "onnx" / "model.onnx"
    model = onnx.load(file, load_external_data=False)
    node = next(node for node in model.graph.node if node.output[0] == "h.1.ln_2")
    next(attribute for attribute in node.attribute if attribute.name == "epsilon").f = 1e-3
    onnx.save(model, file)
    result = run("check", source, tmp_path / "out", "--layers")
    assert result.exit_code == 1
    assert "first divergence: h.1.ln_2, in the case 'prefill'" in result.stdout
    assert "cause (epsilon): the epsilon in h.1.ln_2 is 0.001; the source has 1e-05" in result.stdout
    assert "is NOT" in result.stdout
    found = json.loads(run("check", source, tmp_path / "out", "--json").stdout)
    assert found["localisation"]["first"] == "h.1.ln_2"
    assert [finding["cause"] for finding in found["diagnosis"]["findings"]] == ["epsilon"]


def test_every_key_of_the_json_is_documented(save: Save, tmp_path: Path) -> None:
    source = save()
    succeed("convert", source, tmp_path / "out", "-q")
    found = json.loads(run("check", source, tmp_path / "out", "--layers", "--level", "full", "--json").stdout)
    documented = set(re.findall(r"`([\w.]+)`", (ROOT / "docs" / "check.md").read_text(encoding="utf-8")))
    assert found["schema"] == "gpt2onnx/check/2"
    assert found["schema"] in (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    taps = found["localisation"]
    for part in (found, found["legs"][0], found["limits"], taps, taps["taps"][0]):
        assert set(part) <= documented
    assert {leg["budget"] for leg in found["legs"]} == {"", "float16", "bfloat16"}


def test_check_reads_another_exporters_file_too(save: Save, tmp_path: Path) -> None:
    source = save()
    other = save("other", seed=1)
    for name in (source, other):
        succeed("convert", name, tmp_path / f"{name.name}-onnx", "-q")
    own, foreign = (tmp_path / f"{name}-onnx" / "onnx" / "model.onnx" for name in ("source", "other"))
    right = run("check", source, tmp_path / "source-onnx", "--also", own)
    assert right.exit_code == 0
    assert "another file" in right.stdout
    wrong = run("check", source, tmp_path / "source-onnx", "--also", foreign)
    assert wrong.exit_code == 1
    assert f"{foreign} is NOT {source}" in wrong.stdout
    assert f"MISMATCH: {tmp_path / 'source-onnx'} is {source}, but {foreign} is NOT {source}" in wrong.stdout
    assert json.loads((tmp_path / "source-onnx" / "gpt2onnx.json").read_text())["certificate"]["passed"] is True
    assert_one_sentence(
        run("check", source, tmp_path / "source-onnx", "--also", "no.onnx"), "there is no ONNX file or folder no"
    )
    (tmp_path / "broken.onnx").write_bytes(b"rubbish")
    assert_one_sentence(run("check", source, tmp_path / "source-onnx", "--also", tmp_path / "broken.onnx"), "broken")


def test_limits_can_be_set_and_are_refused_if_they_mean_nothing(save: Save, tmp_path: Path) -> None:
    source = save()
    succeed("convert", source, tmp_path / "out", "-q")
    strict = run("check", source, tmp_path / "out", "--limit", "rms=1e-9", "--json")
    assert strict.exit_code == 1
    found = json.loads(strict.stdout)
    assert found["limits"]["rms"] == 1e-9
    assert "at most 1e-09 × is rounding" in found["faults"][0]
    assert_one_sentence(run("check", source, tmp_path / "out", "--limit", "speed=1"), "no limit 'speed'", "rms")
    assert_one_sentence(run("check", source, tmp_path / "out", "--limit", "rms=-1"), "limit rms is -1.0")
    wrong = run("check", source, tmp_path / "out", "--limit", "rms")
    assert wrong.exit_code == 2
    assert "NAME=NUMBER" in wrong.stderr


def test_the_logits_alone_can_decide(save: Save, tmp_path: Path) -> None:
    source = save()
    succeed("convert", source, tmp_path / "out", "-q")
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"activation_function": "relu"}))
    assert run("check", source, tmp_path / "out").exit_code == 1
    alone = run("check", source, tmp_path / "out", "--logits-only")
    assert alone.exit_code == 0
    assert "initializers" not in alone.stdout
    assert "weights not compared" in alone.stdout


def test_check_writes_a_page_and_junit(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save()
    succeed("convert", source, tmp_path / "out", "-q")
    page, xml = tmp_path / "report.html", tmp_path / "junit.xml"
    assert run("check", source, tmp_path / "out", "--report", page, "--junit", xml).exit_code == 0
    assert "MATCH" in page.read_text(encoding="utf-8")
    assert 'failures="0"' in xml.read_text(encoding="utf-8")
    nowhere = tmp_path / "no" / "report.html"
    for option in ("--report", "--junit"):
        refused = run("check", source, tmp_path / "out", option, nowhere)
        assert refused.exit_code == 2
        assert f"{nowhere} cannot be written: there is no folder {nowhere.parent}" in refused.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else name)
    assert_one_sentence(
        run("check", source, tmp_path / "out", "--report", page), "--report needs jinja2 and matplotlib; install"
    )


def test_check_needs_a_source_and_a_folder_or_to_prove_itself(bundled: Path) -> None:
    assert "or --prove" in run("check").stderr
    assert "or --prove" in run("check", CHECKPOINT).stderr
    assert "omit OUT" in run("check", CHECKPOINT, bundled, "--prove").stderr
    assert "omit --logits-only" in run("check", "--prove", "--logits-only").stderr
    assert run("check").exit_code == run("check", CHECKPOINT, bundled, "--prove").exit_code == 2


def test_check_can_prove_that_it_would_have_noticed(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    few = mutations.MUTATIONS[:2]  # tests/parity tries them all
    monkeypatch.setattr("converter.parity.seeded.prove.defects", lambda config: few)
    result = run("check", save(), "--prove")
    assert result.exit_code == 0, result.stdout
    assert "PROVEN: all" in result.stdout
    assert "square weight transposed" in result.stdout
    assert "is transposed: it lies [out, in] where the graph takes [in, out]" in result.stdout
    assert_one_sentence(run("check", "nowhere", "--prove"), "nowhere")


def test_an_export_of_another_program_is_checked_and_its_verdict_kept_where_one_says(
    save: Save, tmp_path: Path
) -> None:
    source, other = save(), save("other", activation_function="gelu")
    for name in (source, other):
        succeed("convert", name, tmp_path / f"{name.name}-onnx", "-q")
    right, wrong = (
        disguise(
            tmp_path / f"{name}-onnx",
            tmp_path / name / "theirs.onnx",
            renamed,
            called(input_ids="x", attention_mask="m"),
        )
        for name in ("source", "other")
    )
    roles = "--inputs", "x=input_ids,m=attention_mask"
    refused = run("check", source, right)
    assert_one_sentence(
        refused, "theirs.onnx has an unknown interface, as the input x cannot be told; it takes x (int64"
    )
    misread = run("check", source, right, "--inputs", "x")
    assert misread.exit_code == 2
    assert "'x' is not of the form NAME=ROLE" in misread.stderr
    found = run("check", source, right, *roles, "--certificate", tmp_path / "verdict.json", "--json")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["export"]["weights"]["missing"] == []
    assert "all 1 files: a match" in succeed("verify", right, "--certificate", tmp_path / "verdict.json").stdout
    named = run("check", source, wrong, *roles)
    assert named.exit_code == 1
    assert "the activation in h.0.mlp.act is gelu; the source has gelu_new" in named.stdout
    right.write_bytes(wrong.read_bytes())
    assert run("verify", right, "--certificate", tmp_path / "verdict.json").exit_code == 1
    assert_one_sentence(run("verify", right, "--certificate", source / "config.json"), "holds no certificate")
    assert_one_sentence(run("verify", right), "there is no model folder")
