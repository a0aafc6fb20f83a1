"""``gpt2onnx completion``."""

from __future__ import annotations

import os

import click

from converter.cli.group import cli
from converter.cli.options import OUTPUT_GROUP, debug_option

# Shells → what makes them complete from then on.
INSTALL = {
    "bash": """echo 'eval "$(gpt2onnx completion bash)"' >> ~/.bashrc""",
    "zsh": """echo 'eval "$(gpt2onnx completion zsh)"' >> ~/.zshrc""",
    "fish": "gpt2onnx completion fish > ~/.config/fish/completions/gpt2onnx.fish",
}

PROGRAM, VARIABLE = "gpt2onnx", "_GPT2ONNX_COMPLETE"  # by which click knows that a shell asks


@cli.command(
    short_help="Let the Tab key complete commands, options and folders.",
    examples=['eval "$(gpt2onnx completion bash)"      # in this shell', *INSTALL.values()],
    groups=OUTPUT_GROUP,
)
@click.argument("shell", required=False, type=click.Choice(list(INSTALL)), help="By default the one that $SHELL names.")
@debug_option
def completion(shell: str | None) -> None:
    """Print the script by which a shell completes gpt2onnx's commands, options, their values, and folders.

    Its last line says how to install it; a new shell then has it.
    """
    from click.shell_completion import get_completion_class

    shell = shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in INSTALL:
        raise click.UsageError(f"$SHELL names none of {', '.join(INSTALL)}: give one of them")
    known = get_completion_class(shell)
    assert known is not None, shell
    script = known(cli, {}, PROGRAM, VARIABLE).source()
    # click's script for fish cuts values at the first comma, and ours may hold some.
    script = script.replace('string split ","', 'string split --max 1 ","')
    click.echo(f"{script.rstrip()}\n# To install it: {INSTALL[shell]}")
