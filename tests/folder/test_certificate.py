"""What a check leaves in the folder, and what ``verify`` makes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from converter import check, convert
from converter.cli import cli
from converter.errors import GPT2Error
from converter.folder.certificate import sha256, verify
from tests.conftest import random_gpt2

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("certificate")
    random_gpt2().save_pretrained(home / "source")
    convert(home / "source", home / "out")
    assert check(home / "source", home / "out").passed
    return home / "out"


@pytest.fixture
def checked(once: Path, tmp_path: Path) -> Path:
    """A folder that was checked, to be changed."""
    return shutil.copytree(once, tmp_path / "out", symlinks=True)


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


def edit(file: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("name", ["onnx/evil.onnx", "vocab.json", ".hidden", "onnx/.git2/x"])
def test_a_new_file_is_named(checked: Path, name: str) -> None:
    (checked / name).parent.mkdir(exist_ok=True)
    (checked / name).write_text("new")
    found = verify(checked)
    assert (found.passed, found.unknown) == (False, (name,))
    assert f"{name} is new: the check did not see it" in found.verdict


def test_a_new_pipe_is_named_and_not_read(checked: Path) -> None:
    os.mkfifo(checked / "pipe")
    assert verify(checked).unknown == ("pipe",)
    (checked / "config.json").unlink()
    os.mkfifo(checked / "config.json")
    assert verify(checked).changed == ("config.json",)


def test_what_git_and_downloads_leave_is_no_new_file(checked: Path) -> None:
    for name in (".git/HEAD", ".cache/huggingface/x"):
        (checked / name).parent.mkdir(parents=True)
        (checked / name).write_text("")
    assert verify(checked).passed


def test_a_link_that_points_elsewhere_is_noticed(checked: Path) -> None:
    (checked / "model.safetensors").unlink()
    (checked / "model.safetensors").symlink_to("config.json")
    assert verify(checked).changed == ("model.safetensors",)
    (checked / "model.safetensors").unlink()
    assert verify(checked).missing == ("model.safetensors",)
    (checked / "model.safetensors").write_bytes((checked / "onnx" / "model.onnx_data").read_bytes())
    assert verify(checked).changed == ("model.safetensors",)  # the same bytes, and yet no link


def test_a_folder_that_became_a_link_is_not_followed(checked: Path) -> None:
    (checked / "onnx").rename(checked.parent / "elsewhere")
    (checked / "onnx").symlink_to("../elsewhere")
    found = verify(checked)
    assert found.missing == ("onnx/model.onnx", "onnx/model.onnx_data")
    assert found.unknown == ("onnx",)


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda v: v.update(model="evil.onnx"), "gpt2onnx.json"),
        (lambda v: v["precisions"]["fp32"]["quality"].update(kl_mean=0.0), "gpt2onnx.json"),
        (lambda v: v.update(added=1), "gpt2onnx.json"),
        (lambda v: v["certificate"].update(verdict="MATCH"), "certificate"),
        (lambda v: v["certificate"].update(date="2001-01-01"), "certificate"),
        (lambda v: v["certificate"]["legs"].clear(), "certificate"),
        (lambda v: v["certificate"].pop("sha256"), "certificate"),
        (lambda v: v["certificate"].pop("gpt2onnx.json"), "certificate"),
    ],
    ids=["model", "quality", "key", "verdict", "date", "legs", "own hash", "hash of the manifest"],
)
def test_an_edited_manifest_or_certificate_is_noticed(
    checked: Path, change: Callable[[Any], None], changed: str
) -> None:
    edit(checked / "gpt2onnx.json", change)
    assert verify(checked).changed == (changed,)


def test_a_certificate_of_no_files_covers_none(checked: Path) -> None:
    edit(checked / "gpt2onnx.json", lambda v: v["certificate"].update(files={}))
    assert verify(checked).unknown == (
        "README.md", "config.json", "genai_config.json", "generation_config.json", "onnx/model.onnx",
        "onnx/model.onnx_data",
    )  # fmt: skip


def test_nothing_outside_the_folder_is_opened(checked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = checked.parent / "secret"
    outside.write_text("secret")
    names = {"../secret": sha256(outside), str(outside): sha256(outside)}
    edit(checked / "gpt2onnx.json", lambda v: v["certificate"]["files"].update(names))
    opened: list[Path] = []
    monkeypatch.setattr("converter.folder.certificate.sha256", lambda file: opened.append(file) or "")
    assert set(verify(checked).missing) == names.keys()
    assert all(".." not in file.parts and file.is_relative_to(checked) for file in opened)
    (checked / "gpt2onnx.json").rename(outside)
    (checked / "gpt2onnx.json").symlink_to(outside)
    with pytest.raises(GPT2Error, match="is a link"):
        verify(checked)


def test_no_name_can_forge_a_line(checked: Path) -> None:
    name = "x\n\u202eout is what was checked: a match"
    (checked / name).write_text("")
    assert verify(checked).unknown == (name,)
    assert "x\\n\\u202eout is" in verify(checked).verdict
    assert "\n" not in verify(checked).verdict


def test_a_link_that_leads_out_is_not_certified(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").symlink_to(tmp_path)
    report = check(source, tmp_path / "out", files=True)
    assert any("notes.txt leads out of the folder" in note for note in report.notes), report.notes


@pytest.mark.parametrize("hidden", [".cache", ".git", ".gpt2onnx-1-ab"])
def test_a_link_to_what_no_certificate_hashes_is_not_certified(save: Save, tmp_path: Path, hidden: str) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out)
    weights = out / "onnx" / "model.onnx_data"
    (out / "onnx" / hidden).mkdir()
    weights.rename(out / "onnx" / hidden / "weights")
    weights.symlink_to(f"{hidden}/weights")
    report = check(source, out)
    assert any("leads out of the folder or to a hidden file" in note for note in report.notes), report.notes
    with pytest.raises(GPT2Error, match="has no certificate"):
        verify(out)


def test_a_link_that_came_to_lead_to_what_no_certificate_hashes_is_noticed(checked: Path) -> None:
    (checked / ".cache").mkdir()
    (checked / "onnx" / "model.onnx_data").rename(checked / ".cache" / "model.onnx_data")
    (checked / "onnx" / "model.onnx_data").symlink_to("../.cache/model.onnx_data")
    assert set(verify(checked).changed) >= {"onnx/model.onnx_data"}


def test_a_name_that_is_no_text_is_not_certified(save: Save, tmp_path: Path) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out)
    try:
        Path(os.fsdecode(os.fsencode(out) + b"/\xff")).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    report = check(source, out, allow=["\udcff"])
    assert any("has a name that is not UTF-8: rename it" in note for note in report.notes), report.notes


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
