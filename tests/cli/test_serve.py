"""``gpt2onnx serve``: what it refuses before it serves. tests/serving looks at what it serves."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from converter.folder.convert import convert
from tests.cli.commands import assert_one_sentence

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

Run = Callable[..., Result]
Save = Callable[..., Path]


def test_an_address_that_others_reach_needs_a_key(run: Run, bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2ONNX_API_KEY", raising=False)
    assert_one_sentence(run("serve", bundled, "--host", "0.0.0.0"), "there is no API key", "--api-key-file")


@pytest.mark.parametrize("content", ["", "\n", "two\nlines", "clé"])
def test_a_key_that_is_none_is_refused(run: Run, bundled: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content, encoding="utf-8")
    assert_one_sentence(run("serve", bundled, "--api-key-file", tmp_path / "key"), "the API key in", "one line")
    assert_one_sentence(run("serve", bundled, "--api-key-file", tmp_path / "none"), "cannot be read as an API key")


def test_a_port_that_is_taken_is_refused(run: Run, bundled: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_sentence(run("serve", bundled, "--port", port, "-q"), f"port {port} of 127.0.0.1", "another --port")


def test_a_folder_that_is_not_proven_is_refused(run: Run, save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    result = run("serve", tmp_path / "out", "--port", 0, "--require-certificate", "-q")
    assert_one_sentence(result, "has no certificate", "without --require-certificate")
    assert_one_sentence(run("serve", tmp_path / "nothing", "--port", 0, "-q"), "there is no model folder")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--timeout", "nan"), "--timeout is nan; expected a number of seconds above 0"),
        (("--timeout", "0"), "--timeout is 0.0; expected a number of seconds above 0"),
        (("--drain", "nan"), "--drain is nan; expected a number of seconds, 0 or more"),
        (("--drain", "-1"), "--drain is -1.0; expected a number of seconds, 0 or more"),
        (("--name", ""), "--name is empty; omit it for OUT's own name"),
    ],
)
def test_times_and_names_that_are_none_are_refused(
    run: Run, bundled: Path, options: tuple[str, str], said: str
) -> None:
    assert_one_sentence(run("serve", bundled, *options), said)
