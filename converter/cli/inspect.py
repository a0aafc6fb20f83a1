"""``gpt2onnx inspect``."""

from __future__ import annotations

import click

from converter.cli.group import cli
from converter.cli.options import (
    activation_option,
    adapter_option,
    debug_option,
    head_option,
    ignore_option,
    json_option,
)


@cli.command()
@click.argument("source")
@ignore_option
@activation_option
@adapter_option
@head_option
@json_option
@debug_option
def inspect(
    source: str, ignore: tuple[str, ...], activation: str | None, adapter: str | None, head: str | None, as_json: bool
) -> None:
    """Show what SOURCE is: its config, its size, and what becomes of each of its tensors.

    \b
    gpt2onnx inspect ./my-gpt2
    gpt2onnx inspect openai-community/gpt2 --json
    """
    from converter import terminal
    from converter.checkpoint import open_checkpoint
    from converter.weights import account

    checkpoint = open_checkpoint(source, activation=activation, adapter=adapter, head=head)
    ledger = account(checkpoint, ignore)
    if as_json:
        click.echo(terminal.to_json(terminal.ledger_facts(checkpoint, ledger)))
    else:
        terminal.print_ledger(checkpoint, ledger)
    for warning in (*ledger.warnings, *checkpoint.notes):
        click.echo(f"gpt2onnx: warning: {warning}", err=True)
