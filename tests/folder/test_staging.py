"""Several commands on one folder, and folders that a killed one left half changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from converter import convert, load, verify
from converter.cli.inspect_folder import folder_facts, holds_model
from converter.errors import ModelFolderError, OutputError
from converter.folder import staging
from tests.conftest import Save


def test_of_two_conversions_at_once_the_slower_one_replaces_nothing(save: Save, tmp_path: Path) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out)

    def slower() -> None:
        with staging.staged(out, force=True):
            convert(source, out, opset=17, force=True)

    with pytest.raises(OutputError, match="was written by another command meanwhile, which was quicker"):
        slower()
    assert folder_facts(out)["precisions"]["fp32"]["opset"] == 17
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


def test_a_check_meanwhile_is_not_thrown_away_either(save: Save, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(save(), out)
    with pytest.raises(OutputError, match="which was quicker"), staging.staged(out, force=True):
        with staging.together(out) as stage:
            shutil.copy(out / "gpt2onnx.json", stage)


def test_two_changes_within_a_folder_do_not_mix(save: Save, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(save(), out)

    def slower() -> None:
        with staging.together(out) as stage:
            (stage / "README.md").write_text("slower")
            (out / staging.READY).mkdir()
            (out / staging.READY / "README.md").write_text("quicker")

    with pytest.raises(OutputError, match="is being changed by another command; run this one again"):
        slower()
    staging.settle(out)
    assert (out / "README.md").read_text() == "quicker"


def half_changed(out: Path) -> None:
    """Leave what ``check`` leaves if it is killed as it moves its files."""
    ready = out / staging.READY
    ready.mkdir()
    (out / "config.json").rename(ready / "config.json")
    (out / "gpt2onnx.json").rename(ready / "gpt2onnx.json")


READ = {
    "generate": lambda out: load(out).generate([[1, 2]], max_new_tokens=1),
    "inspect": lambda out: holds_model(out) and folder_facts(out),
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_a_command_that_reads_finishes_what_a_killed_one_began(save: Save, tmp_path: Path, read: object) -> None:
    convert(save(), tmp_path / "out")
    half_changed(tmp_path / "out")
    assert callable(read)
    assert read(tmp_path / "out")
    assert not (tmp_path / "out" / staging.READY).exists()


def test_a_half_changed_folder_that_may_not_be_written_is_not_read(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    convert(save(), out)
    half_changed(out)

    def read_only(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", read_only)
    for read in (load, verify):
        with pytest.raises(ModelFolderError, match=r"is half changed, .* as a user who may write there"):
            read(out)


def test_a_folder_that_is_set_aside_is_named(save: Save, tmp_path: Path) -> None:
    """Where two folders cannot be swapped in one step, a process may be killed between the two."""
    out = tmp_path / "out"
    convert(save(), out)
    aside = out.rename(tmp_path / ".out.gpt2onnx-old")
    for read in (load, verify):
        with pytest.raises(ModelFolderError) as raised:
            read(out)
        assert f"the folder of before is {aside}" in str(raised.value)
