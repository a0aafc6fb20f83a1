"""Mistakes that anybody can make, each met with a sentence that says what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from safetensors.torch import load_file, save_file

from converter.data import CHECKPOINT

Run = Callable[..., Result]
Save = Callable[..., Path]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [(("generate",), "a prompt"), (("run",), "a text"), (("score", "-"), "a FILE")],
    ids=lambda value: value[0],
)
def test_nothing_on_standard_input_is_no_prompt(
    run: Run, bundled: Path, arguments: tuple[str, ...], wanted: str
) -> None:
    command, *rest = arguments
    for stdin in ("", "\n\n"):
        result = run(command, bundled, *rest, stdin=stdin)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"standard input is empty: give {wanted}, or pipe a text into standard input\n" in result.stderr
    assert run("generate", bundled, "", "-n", 2, "-q").exit_code == 0  # this one asks for nothing to start from


def test_an_empty_text_is_not_scored(run: Run, bundled: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    result = run("score", bundled, tmp_path / "empty.txt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "empty.txt is empty; expected a text\n" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("generate", "nowhere", "x"), ("run", "nowhere", "x"), ("bench", "nowhere"), ("verify", "nowhere")],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_that_is_not_there_is_made_by_convert(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    mend = "make one with gpt2onnx convert SOURCE OUT"
    assert result.stderr == f"gpt2onnx: there is no model folder nowhere; {mend}\n"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_what_may_not_be_written_is_refused_before_any_work(run: Run, bundled: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = run("convert", CHECKPOINT, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.endswith("; choose an OUT in a folder that you may write to\n")
    for arguments in (("check", CHECKPOINT, bundled, "--junit"), ("bench", bundled, "--plot")):
        result = run(*arguments, tmp_path / "file")
        assert result.exit_code == 2
        assert f"cannot be written: you may not write to {tmp_path}" in result.stderr


FORGED = "x\n\x1b[2K\u202eMATCH"


def test_a_name_cannot_forge_a_line_of_its_own(run: Run, save: Save) -> None:
    """Names of tensors, files and folders come from others: of an error, a warning, a table, and standard output."""
    source = save()
    weights = load_file(source / "model.safetensors")
    save_file(weights | {FORGED: weights["transformer.ln_f.bias"].clone()}, source / "model.safetensors")
    refused = run("convert", source, source.with_name("out"))
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    for shown in (refused.stderr, run("inspect", source, "--ignore", "x*").stdout, run("verify", FORGED).stderr):
        assert "x\\n\\x1b[2K\\u202eMATCH" in shown
        assert not {"\x1b", "\u202e"} & set(shown)
        assert "MATCH" not in {line.strip() for line in shown.splitlines()}


def test_brackets_in_a_name_are_no_markup(run: Run, save: Save) -> None:
    source = save()
    weights = load_file(source / "model.safetensors")
    save_file(weights | {"[/red]x": weights["transformer.ln_f.bias"].clone()}, source / "model.safetensors")
    assert "[/red]x" in run("inspect", source, "--ignore", "*red*").stdout


def test_a_message_without_end_is_cut(run: Run) -> None:
    result = run("verify", "x" * 10_000)
    assert result.exit_code == 2
    assert len(result.stderr) < 2_200
    assert "…" in result.stderr
