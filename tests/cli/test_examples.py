"""Every example that --help shows is run as it stands, those of a command one after the other in one folder.

A Hub id means a folder of that name here, as what exists on this machine is never looked up on the Hub. In place of a
model of a real size there are small random ones, with the tokenizer of the bundled checkpoint.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from converter import check, convert
from converter.checkpoint.folder import companions
from converter.cli import cli
from converter.cli.group import Command
from converter.data import CHECKPOINT
from converter.parity.seeded import mutations
from reference.config import GPT2Config
from reference.model import GPT2
from tests.checkpoint.writers.lora import MODULES, pairs
from tests.checkpoint.writers.lora import write as write_adapter

Head = Callable[..., torch.nn.Module]
Run = Callable[..., Result]

SIZES = {"vocab_size": 2048, "n_positions": 96, "n_embd": 32, "n_layer": 3, "n_head": 4}
IN_A_SHELL = "|<>$"  # what only a shell understands

SOURCES = ("openai-community/gpt2", "user/model@main", "my-gpt2")
CONVERTED = {"openai-community/gpt2": "gpt2-onnx", "my-gpt2": "my-gpt2-onnx"}
HEADS = {"classifier-onnx": "sequence-classification", "qa-onnx": "question-answering"}
TEXT = "The following statement is executed by the interpreter. A name is bound to an object. " * 4


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory, head_model: Head) -> Path:
    """Everything that an example reads, by the name that it has there."""
    here = tmp_path_factory.mktemp("things")

    def save(name: str, head: str = "lm", seed: int = 0) -> Path:
        head_model(head, seed, n_inner=72, **SIZES).save_pretrained(here / name)  # type: ignore[operator]
        for file in companions(CHECKPOINT):
            shutil.copy(CHECKPOINT / file, here / name)
        return here / name

    for seed, name in enumerate(SOURCES):
        save(name, seed=seed)
    for name, out in CONVERTED.items():
        convert(here / name, here / out, precision="fp32,int8")
    check(here / SOURCES[0], here / "gpt2-onnx")
    for out, head in HEADS.items():
        convert(save(f"{head}-source", head), here / out)
    write_adapter(here / "my-lora", pairs(MODULES))  # whose sizes are those of SIZES
    write_nanogpt(here / "nanogpt" / "ckpt.pt")
    for name in ("my.txt", "held-out.txt", "code.py"):
        (here / name).write_text(TEXT, encoding="utf-8")
    (here / "documents.jsonl").write_text(2 * (json.dumps({"text": TEXT}) + "\n"), encoding="utf-8")
    return here


def write_nanogpt(file: Path) -> None:
    model = GPT2(GPT2Config(**SIZES))
    state = {name if name.startswith("lm_head") else f"transformer.{name}": w for name, w in model.state_dict().items()}
    sizes = {key: value for key, value in SIZES.items() if key != "n_positions"}
    file.parent.mkdir()
    torch.save({"model": state, "model_args": sizes | {"block_size": SIZES["n_positions"], "bias": True}}, file)


@pytest.fixture
def workplace(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with copies of everything; the home folder, too."""
    here = tmp_path / "here"
    shutil.copytree(things, here, symlinks=True)
    (here / ".config" / "fish" / "completions").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as conftest.py has it in this process
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return here


@pytest.mark.parametrize("command", [cli, *cli.commands.values()], ids=lambda command: command.name)
def test_the_examples_of_the_help_work(
    run: Run, workplace: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "convert" in (command.name, *(line.split()[1] for line in command.examples)):
        for out in CONVERTED.values():  # which they are about to write
            shutil.rmtree(out)
    if command.name == "check":  # --prove tries two defects in a small model: tests/parity tries them all
        monkeypatch.setattr("converter.data.CHECKPOINT", workplace / "my-gpt2")
        monkeypatch.setattr("converter.parity.seeded.prove.MUTATIONS", mutations.MUTATIONS[:2])
        monkeypatch.setattr("converter.parity.seeded.prove.elements", lambda config: ())
    for line in command.examples:
        if set(line) & set(IN_A_SHELL):
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}: {done.stderr}"
        else:
            program, *arguments = shlex.split(line, comments=True)
            assert program == "gpt2onnx"
            result = run(*arguments)
            assert result.exit_code == 0, f"{line}: {result.output}"
