"""What a check leaves in the folder, and what ``verify`` makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from converter import check, convert
from converter.cli import cli
from converter.errors import GPT2Error
from converter.folder.certificate import verify

Save = Callable[..., Path]


@pytest.fixture
def checked(save: Save, tmp_path: Path) -> Path:
    source = save()
    convert(source, tmp_path / "out")
    assert check(source, tmp_path / "out").passed
    return tmp_path / "out"


def test_files_that_were_checked_are_recognised(checked: Path) -> None:
    found = verify(checked)
    assert found.passed
    assert found.files == 6  # three configs, the model card, graph and data
    assert "all 6 files: a match" in found.verdict
    certificate = json.loads((checked / "gpt2onnx.json").read_text())["certificate"]
    assert certificate["source"].keys() == {"config.json", "model.safetensors"}
    assert {leg["name"] for leg in certificate["legs"]} >= {"ONNX graph in float64", "ONNX Runtime float32"}


def test_a_single_changed_bit_is_noticed(checked: Path) -> None:
    data = checked / "onnx" / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[-7] ^= 4
    data.write_bytes(content)
    found = verify(checked)
    assert (found.passed, found.changed, found.missing) == (False, ("onnx/model.onnx_data",), ())
    assert "onnx/model.onnx_data changed since" in found.verdict


def test_a_missing_file_is_noticed(checked: Path) -> None:
    (checked / "config.json").unlink()
    assert verify(checked).missing == ("config.json",)


def test_a_folder_that_moved_is_still_what_it_was(checked: Path) -> None:
    assert verify(checked.rename(checked.with_name("elsewhere"))).passed


def test_a_mismatch_is_certified_as_one(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")
    other = save("other", seed=1)
    assert not check(other, tmp_path / "out").passed
    found = verify(tmp_path / "out")
    assert not found.passed
    assert found.changed == ()
    assert "it was a mismatch" in found.verdict
    assert check(source, tmp_path / "out").passed  # the later verdict replaces the earlier
    assert verify(tmp_path / "out").passed


def test_a_folder_that_was_never_checked_says_so(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    with pytest.raises(GPT2Error, match="has no certificate; make one with gpt2onnx check SOURCE"):
        verify(tmp_path / "out")
    with pytest.raises(GPT2Error, match="there is no model folder"):
        verify(tmp_path / "nowhere")


def test_a_certificate_is_only_written_when_wanted_and_possible(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save()
    convert(source, tmp_path / "out")
    before = (tmp_path / "out" / "gpt2onnx.json").read_bytes()
    check(source, tmp_path / "out", certify=False)

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("converter.folder.certificate.write_json", read_only)
    report = check(source, tmp_path / "out")
    assert report.passed
    assert "no certificate: " in report.notes[-1]
    assert "Read-only file system" in report.notes[-1]
    assert (tmp_path / "out" / "gpt2onnx.json").read_bytes() == before
    assert not list((tmp_path / "out").glob(".*"))


def test_convert_checks_in_one_go(save: Save, tmp_path: Path) -> None:
    source = save()
    result = CliRunner().invoke(cli, ["convert", str(source), str(tmp_path / "out"), "--check", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["check"]["passed"] is True
    assert CliRunner().invoke(cli, ["verify", str(tmp_path / "out")]).exit_code == 0
    (tmp_path / "out" / "README.md").write_text("changed")
    changed = CliRunner().invoke(cli, ["verify", str(tmp_path / "out"), "--json"])
    assert changed.exit_code == 1
    assert json.loads(changed.stdout)["changed"] == ["README.md"]


def test_verify_needs_neither_torch_nor_onnx(checked: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'onnxruntime'): sys.modules[name] = None\n"
        "from converter.cli import cli; cli()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", str(checked)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
