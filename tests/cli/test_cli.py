"""What holds for every command: imports, terminals, pipes, text that is no Unicode; ``inspect`` and ``demo``."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from converter.cli import cli
from converter.data import CHECKPOINT
from tests.cli.commands import process, run, succeed
from tests.conftest import Save

# Imports of torch and transformers fail, as where the extra `check` is not installed.
WITHOUT_TORCH = """
import sys
sys.modules['torch'] = sys.modules['transformers'] = None
from converter.cli import cli
cli()
"""


def test_inspect_shows_config_size_and_ledger() -> None:
    result = run("inspect", CHECKPOINT)
    assert result.exit_code == 0
    assert "2,667,072 parameters" in result.stdout
    assert "n_layer 5" in result.stdout
    row = next(line for line in result.stdout.splitlines() if "transformer.h.2.mlp.c_fc.weight" in line)
    for part in (" h.2.mlp.c_fc.weight", "used", "conv1d", "float16", "192 × 768", "294,912", "model.safetensors"):
        assert part in row
    facts = json.loads(run("inspect", CHECKPOINT, "--json").stdout)
    assert len(facts["tensors"]) == 64
    assert facts["parameters"] == 2667072


def test_demo_does_the_whole_job(tmp_path: Path) -> None:
    result = run("demo", tmp_path / "out")
    assert result.exit_code == 0
    for part in ("$ gpt2onnx convert", "2,667,072 parameters", "$ gpt2onnx check", "MATCH", "$ gpt2onnx generate"):
        assert part in result.stdout
    assert (tmp_path / "out" / "onnx" / "model.onnx").is_file()


# --- what holds for all -----------------------------------------------------------------------------------------------


def test_convert_inspect_and_generate_need_no_torch(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments in (
        ("convert", CHECKPOINT, out),
        ("convert", CHECKPOINT, tmp_path / "hf", "--to", "hf"),
        ("convert", CHECKPOINT, tmp_path / "ref", "--to", "reference"),
        ("inspect", tmp_path / "ref"),
        ("inspect", CHECKPOINT),
        ("generate", out, "The", "-n", 3),
    ):
        done = process(*arguments, code=WITHOUT_TORCH)
        assert done.returncode == 0, done.stderr
    demo = process("demo", code=WITHOUT_TORCH)
    assert demo.returncode == 0, demo.stderr
    assert "skipped: it needs torch and transformers" in demo.stdout
    check = process("check", CHECKPOINT, out, code=WITHOUT_TORCH)
    assert check.returncode == 2
    assert "pip install 'gpt2onnx[check]'" in check.stderr


def test_generate_imports_nothing_that_only_a_conversion_needs(bundled: Path) -> None:
    heavy = "('onnx_ir', 'onnxscript', 'huggingface_hub', 'rich', 'torch', 'converter.runtime.beams')"
    run_it = "import sys; from converter.cli import cli; cli(standalone_mode=False)"
    code = f"{run_it}; assert not {{*{heavy}}} & {{*sys.modules}}"
    done = process("generate", bundled, "The", "-n", 3, code=code)
    assert done.returncode == 0, done.stderr


def test_generate_without_onnx_runtime_says_what_to_install(bundled: Path) -> None:
    without = "import sys; sys.modules['onnxruntime'] = None; from converter.cli import cli; cli()"
    done = process("generate", bundled, "x", code=without)
    assert done.returncode == 2
    assert "pip install 'gpt2onnx[cpu]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from converter.cli import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    loaded = set(process(code=code).stdout.split())
    assert "click" in loaded
    assert not loaded & {"numpy", "onnx", "onnxruntime", "onnxscript", "torch", "transformers", "rich", "tokenizers"}


class Stream(io.StringIO):
    """A terminal, or a pipe. What a real terminal is sent stands in test_terminal.py."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "no_color", "coloured"),
    [(True, "", True), (True, "1", False), (False, "", False)],
    ids=["terminal", "terminal without colour", "pipe"],
)
def test_a_terminal_gets_colour_and_a_pipe_does_not(
    bundled: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, no_color: str, coloured: bool
) -> None:
    out, error = Stream(is_terminal), Stream(is_terminal)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", error)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    cli(["check", str(CHECKPOINT), str(bundled)], standalone_mode=False)
    shown = out.getvalue()
    assert ("\x1b[32m" in shown or "\x1b[1;32m" in shown) == coloured
    assert "MATCH" in shown
    if not is_terminal:
        assert "\x1b" not in shown
        assert error.getvalue() == ""


def test_a_reader_that_goes_away_is_no_error(bundled: Path) -> None:
    command = f"{sys.executable} -m converter.cli inspect {CHECKPOINT} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_a_reader_that_goes_away_is_not_taken_for_a_mismatch(bundled: Path) -> None:
    script = f"{sys.executable} -m converter.cli inspect {CHECKPOINT} | true; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", script], check=False, capture_output=True).returncode in (0, 141)


def test_debug_keeps_the_exit_code(tmp_path: Path) -> None:
    assert run("check", tmp_path / "nowhere", tmp_path / "out", "--debug").exit_code == 2


def test_text_that_is_not_unicode_is_one_sentence(bundled: Path) -> None:
    command = [sys.executable, "-m", "converter.cli", "generate", str(bundled)]
    done = subprocess.run(command, input=b"\xff\xfeabc", capture_output=True, check=False)
    assert done.returncode == 2
    assert b"a prompt is not UTF-8 text" in done.stderr


def test_a_narrow_terminal_still_shows_every_verdict(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.cli.terminal.PIPED_WIDTH", 70)
    lines = run("check", CHECKPOINT, bundled).stdout.splitlines()
    row = next(line for line in lines if "ONNX Runtime float32" in line)
    assert row.rstrip().endswith("pass")


def test_json_of_an_overflowing_model_is_still_json(save: Save, tmp_path: Path) -> None:
    source = save()
    weights = load_file(source / "model.safetensors")
    large = {f"transformer.{name}": weights[f"transformer.{name}"] * 1e38 for name in ("ln_f.weight", "wte.weight")}
    save_file(weights | large, source / "model.safetensors", metadata={"format": "pt"})
    succeed("convert", source, tmp_path / "out", "-q")
    result = run("check", source, tmp_path / "out", "--json")
    assert result.exit_code in (1, 2)
    if result.exit_code == 1:
        json.loads(result.stdout, parse_constant=pytest.fail)
