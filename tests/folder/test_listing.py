"""What is in a folder, and what is only named there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from converter.folder.listing import counts, listing, listing_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of each sort, beside a secret that it must not lead to."""
    inside = tmp_path / "folder"
    (inside / "deep" / "er").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (inside / "deep" / "file").write_text("a")
    (inside / "deep" / "link").symlink_to("file")
    (inside / "deep" / "up").symlink_to("..")
    (inside / "out").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe")
    return inside


def test_links_are_listed_and_not_followed(folder: Path) -> None:
    found = listing(folder)
    assert found.files == {"deep/file"}
    assert found.links == {"deep/link": "file", "deep/up": "..", "out": str(folder.parent)}
    assert found.others == {"pipe"}


@pytest.mark.parametrize(
    ("target", "outside"),
    [("deep/file", False), ("deep/up", False), ("../secret", True), ("/dev/null", True), ("deep/up/../secret", True)],
)
def test_a_link_leads_out_wherever_the_way_goes(folder: Path, target: str, outside: bool) -> None:
    (folder / "tried").symlink_to(target)
    assert listing(folder).leads_out("tried") is outside


def test_beside_a_file_only_what_was_named_counts_and_only_inside(folder: Path) -> None:
    names = ["er", "file", "../pipe", "link", "absent", str(folder.parent / "secret"), "up/deep/file"]
    assert listing_of(folder / "deep" / "model.onnx", names).files == {"file", "model.onnx"}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("onnx/model.onnx", True),
        (".hidden", True),
        (".gitattributes", False),
        ("onnx/.DS_Store", False),
        (".cache/huggingface/x", False),
        (".gpt2onnx-12-ab/model.onnx", False),
    ],
)
def test_what_other_tools_leave_is_no_part_of_a_model(name: str, part: bool) -> None:
    assert counts(name) is part
