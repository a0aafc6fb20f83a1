"""What the Tab key offers: asked as a shell asks, without a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem, get_completion_class
from click.testing import Result

from converter.cli import cli
from converter.cli.completion import INSTALL, PROGRAM, VARIABLE

Run = Callable[..., Result]

SHELLS = list(INSTALL)


def offered(*words: str) -> list[CompletionItem[str]]:
    """For the last of the words, which may be empty."""
    shell = get_completion_class("bash")
    assert shell is not None
    return shell(cli, {}, PROGRAM, VARIABLE).get_completions(list(words[:-1]), words[-1])


def values(*words: str) -> list[str]:
    return [item.value for item in offered(*words)]


def test_commands_are_offered_with_what_they_do() -> None:
    assert set(values("")) == set(cli.commands)
    assert values("co") == ["completion", "convert"]
    assert all(item.help for item in offered(""))


def test_options_are_offered_with_what_they_do() -> None:
    assert values("generate", "out", "--temp") == ["--temperature"]
    assert {"--prove", "--report", "--head"} <= set(values("check", "--"))
    assert all(item.help for item in offered("check", "--"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("convert", "a", "b", "--to", ""), ["onnx", "hf", "reference"]),
        (("convert", "a", "b", "--head", "token"), ["token-classification"]),
        (("convert", "a", "b", "--outputs", "attentions,h"), ["attentions,hidden_states"]),
        (("convert", "a", "b", "--activation", "gelu_p"), ["gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh"]),
        (("generate", "out", "--precision", "int"), ["int8", "int4"]),
        (("generate", "out", "--provider", "c"), ["cpu", "cuda"]),
        (("generate", "out", "--early-stopping", "n"), ["no", "never"]),
        (("check", "a", "b", "--limit", "g"), ["graph_float64="]),
        (("completion", ""), ["bash", "zsh", "fish"]),
    ],
)
def test_values_are_offered(words: tuple[str, ...], expected: list[str]) -> None:
    assert values(*words) == expected


@pytest.mark.parametrize("command", ["convert", "bench"])
def test_of_several_precisions_the_next_is_offered(command: str) -> None:
    assert values(command, "a", "--precision", "") == ["fp32", "fp16", "int8", "int4"]
    assert values(command, "a", "--precision", "fp") == ["fp32", "fp16"]
    assert values(command, "a", "--precision", "int8,i") == ["int8,int4"]
    assert values(command, "a", "--precision", "fp32,int8,") == ["fp32,int8,fp16", "fp32,int8,int4"]
    assert values("generate", "a", "--precision", "int8,") == []


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("convert", ""), "file"),  # a source may be a file
        (("convert", "a", ""), "dir"),
        (("check", "a", ""), "dir"),
        (("generate", ""), "dir"),
        (("score", "out", ""), "file"),
        (("inspect", "a", "--adapter", ""), "dir"),
        (("check", "a", "b", "--report", ""), "file"),
    ],
)
def test_paths_are_left_to_the_shell(words: tuple[str, ...], kind: str) -> None:
    assert [item.type for item in offered(*words)] == [kind]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_asks_us_and_says_how_it_is_installed(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{VARIABLE}={shell}_complete" in result.stdout
    assert result.stdout.splitlines()[-1] == f"# To install it: {INSTALL[shell]}"
    assert run("completion", SHELL=f"/usr/bin/{shell}").stdout == result.stdout


def test_a_shell_that_cannot_complete_is_refused(run: Run) -> None:
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in run("completion", "tcsh").stderr
    for unknown in ("/bin/tcsh", ""):
        result = run("completion", SHELL=unknown)
        assert result.exit_code == 2
        assert "$SHELL names none of bash, zsh, fish: give one of them" in result.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_is_answered_without_anything_heavy(shell: str) -> None:
    code = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules))\n"
    code += "from converter.cli import cli; cli(prog_name='gpt2onnx')"
    told = {VARIABLE: f"{shell}_complete", "COMP_WORDS": "gpt2onnx convert a b --precision fp32,", "COMP_CWORD": "5"}
    if shell == "fish":
        told["COMP_CWORD"] = "fp32,"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, check=True)
    answer, _, loaded = done.stdout.partition("LOADED")
    assert "fp32,int8" in answer
    assert not set(loaded.split()) & {"numpy", "onnx", "onnxruntime", "tokenizers", "torch", "rich", "transformers"}


@pytest.mark.skipif(os.name != "posix", reason="bash")
def test_bash_completes() -> None:
    """The script itself, in a bash that is told which words there are and asked for the next."""
    script = f"""
        PATH={Path(sys.executable).parent}:$PATH
        eval "$(gpt2onnx completion bash)"
        complete -p gpt2onnx
        COMP_WORDS=(gpt2onnx convert a b --precision int8,) COMP_CWORD=5
        _gpt2onnx_completion gpt2onnx
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _gpt2onnx_completion gpt2onnx",
        *(f"int8,{name}" for name in ("fp32", "fp16", "int4")),
    ]
