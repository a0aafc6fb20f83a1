"""``gpt2onnx verify``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from converter.cli import terminal
from converter.cli.group import MISMATCH, cli
from converter.cli.options import OUTPUT_GROUP, debug_option, json_option, out_argument


@cli.command(
    short_help="Are these still the files that were checked?",
    examples=["gpt2onnx verify gpt2-onnx", "gpt2onnx verify gpt2-onnx --json"],
    groups={"What is compared": ("certificate", "key"), **OUTPUT_GROUP},
)
@out_argument
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The certificate, if it is not in OUT: what check --certificate wrote.",
)
@click.option(
    "--key",
    metavar="PUBLIC",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Demand that the certificate is signed, by this public key (Ed25519).",
)
@json_option
@debug_option
def verify(out: Path, certificate: Path | None, key: Path | None, as_json: bool) -> None:
    """Say whether the files in OUT are still those that were checked; exit with 1 if not.

    Needs neither the source, nor torch, nor a network: the check left its verdict and the files' hashes in OUT.
    """
    from converter.cli import progress
    from converter.folder.certificate import verify as run

    with progress.line(f"reading {out}"):
        found = run(out, certificate, key)
    if as_json:
        shown = ("passed", "verdict", "changed", "missing", "unknown", "not_compared", "signed", "certificate")
        click.echo(terminal.to_json({name: getattr(found, name) for name in shown}))
    else:
        click.echo(found.verdict)
    if not found.passed:
        sys.exit(MISMATCH)
