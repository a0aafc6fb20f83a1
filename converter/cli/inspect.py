"""``gpt2onnx inspect``."""

from __future__ import annotations

import click

from converter.cli.group import cli
from converter.cli.options import (
    OUTPUT_GROUP,
    SOURCE_GROUP,
    activation_option,
    adapter_option,
    complete_paths,
    debug_option,
    head_option,
    ignore_option,
    json_option,
    source_help,
)


@cli.command(
    short_help="What a source is: config, size, every tensor.",
    examples=["gpt2onnx inspect ./my-gpt2", "gpt2onnx inspect openai-community/gpt2 --json"],
    groups={**SOURCE_GROUP, **OUTPUT_GROUP},
)
@click.argument("source", shell_complete=complete_paths("file"), help=source_help)
@ignore_option
@activation_option
@adapter_option
@head_option
@json_option
@debug_option
def inspect(
    source: str, ignore: tuple[str, ...], activation: str | None, adapter: str | None, head: str | None, as_json: bool
) -> None:
    """Show what SOURCE is: its config, its size, and what becomes of each of its tensors."""
    from converter import terminal
    from converter.checkpoint import open_checkpoint
    from converter.cli import progress
    from converter.weights import account

    checkpoint = open_checkpoint(source, bars=progress.seen(), activation=activation, adapter=adapter, head=head)
    ledger = account(checkpoint, ignore)
    if as_json:
        click.echo(terminal.to_json(terminal.ledger_facts(checkpoint, ledger)))
    else:
        terminal.print_ledger(checkpoint, ledger)
    for warning in (*ledger.warnings, *checkpoint.notes):
        click.echo(f"gpt2onnx: warning: {warning}", err=True)
