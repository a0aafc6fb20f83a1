"""``gpt2onnx inspect``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.checkpoint.config import dead_keys
from converter.cli import tables, terminal
from converter.cli.group import cli
from converter.cli.options import (
    OUTPUT_GROUP,
    SOURCE_GROUP,
    complete_paths,
    debug_option,
    json_option,
    source_help,
    source_options,
)

if TYPE_CHECKING:
    from converter.checkpoint.options import SourceOptions
    from converter.checkpoint.source import Checkpoint
    from converter.weights.ledger import Ledger


@cli.command(
    short_help="What a source is, tensor by tensor; what a model folder holds.",
    examples=[
        "gpt2onnx inspect ./my-gpt2",
        "gpt2onnx inspect openai-community/gpt2 --json",
        "gpt2onnx inspect gpt2-onnx      # precisions, sizes, quality, certificate",
    ],
    groups={**SOURCE_GROUP, **OUTPUT_GROUP},
)
@click.argument("source", shell_complete=complete_paths("file"), help=source_help)
@source_options
@json_option
@debug_option
def inspect(source: str, read_as: SourceOptions, as_json: bool) -> None:
    """Show what SOURCE is: its config, its size, and what becomes of each of its tensors.

    Of a model folder that gpt2onnx wrote show what it holds: precisions, sizes, quality, and what a check found.
    """
    from converter.cli import inspect_folder, progress
    from converter.weights.ledger import read_source

    folder = Path(source)
    held = inspect_folder.folder_facts(folder) if inspect_folder.holds_model(folder) else None
    if held is not None and not as_json:
        inspect_folder.print_folder(folder, held)
    if held is not None and not inspect_folder.is_in_place(folder):
        if as_json:
            click.echo(terminal.to_json(held))
        return
    checkpoint, ledger = read_source(source, read_as, bars=progress.seen())
    if as_json:
        click.echo(terminal.to_json(ledger_facts(checkpoint, ledger) | ({"in_place": held} if held else {})))
    else:
        print_ledger(checkpoint, ledger)
    for warning in (*ledger.warnings, *checkpoint.notes):
        terminal.warn(warning)


def print_ledger(checkpoint: Checkpoint, ledger: Ledger) -> None:
    """Print a source's config and what becomes of each tensor."""
    out = terminal.console()
    out.print(
        f"{checkpoint.name}: GPT-2 with {ledger.parameters:,} parameters, "
        f"{len(ledger.entries)} tensors in {checkpoint.weight_file} ({checkpoint.format})",
        markup=False,
    )
    out.print(
        ", ".join(f"{key} {value}" for key, value in asdict(ledger.config).items() if value is not None), markup=False
    )
    if dead := dead_keys(checkpoint.config_values):
        out.print(f"not read by any GPT-2: {', '.join(dead)}", markup=False)
    numbers = ("shape", "bytes")
    rows = tables.table("source name", "canonical name", "role", "layout", "dtype", *numbers, "file", right=numbers)
    for entry in ledger.entries:
        tensor = entry.tensor
        rows.add_row(
            tables.named(tensor.name),
            tables.named(entry.name),
            entry.role,
            entry.layout or "–",
            tensor.dtype,
            " × ".join(map(str, tensor.shape)) or "scalar",
            f"{tensor.nbytes:,}",
            tables.named(tensor.file.name),
        )
    tables.show(out, rows, "file", "canonical name", "bytes", "layout", "role")


def ledger_facts(checkpoint: Checkpoint, ledger: Ledger) -> dict[str, Any]:
    """Return a source for JSON."""
    return {
        "name": checkpoint.name,
        "format": checkpoint.format,
        "weight_file": checkpoint.weight_file,
        "config": asdict(ledger.config),
        "dead_keys": dead_keys(checkpoint.config_values),
        "parameters": ledger.parameters,
        "warnings": list(ledger.warnings),
        "tensors": [
            {
                "source": entry.tensor.name,
                "name": entry.name,
                "role": entry.role,
                "layout": entry.layout,
                "dtype": entry.tensor.dtype,
                "shape": list(entry.tensor.shape),
                "bytes": entry.tensor.nbytes,
                "file": entry.tensor.file.name,
            }
            for entry in ledger.entries
        ],
    }
