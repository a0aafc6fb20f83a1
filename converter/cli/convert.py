"""``gpt2onnx convert``."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import click

from converter.cli.check import run_check
from converter.cli.group import MISMATCH, cli
from converter.cli.options import (
    activation_option,
    adapter_option,
    debug_option,
    head_option,
    ignore_option,
    json_option,
)

# What --to names → the function that writes it (module, name), and the options that it alone heeds.
TARGETS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "onnx": ("converter.export", "convert", ("precision", "in_place", "opset", "then_check")),
    "hf": ("converter.save", "to_huggingface", ("max_shard_size",)),
    "reference": ("converter.save", "to_reference", ()),
}


@cli.command()
@click.argument("source")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(list(TARGETS)),
    default="onnx",
    show_default=True,
    help="hf: a Hugging Face folder; reference: a state dict of the from-scratch model.",
)
@click.option(
    "--max-shard-size", metavar="SIZE", default="50GB", show_default=True, help="Of a file of weights; --to hf only."
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="fp32, fp16, int8, int4; several with commas between. An OUT of the same SOURCE keeps what it holds.",
)
@click.option("--in-place", is_flag=True, help="Add the graph to SOURCE itself; no weights are copied.")
@click.option("--opset", default=23, show_default=True, help="ONNX opset of the graph, 17 to 25.")
@click.option("--force", is_flag=True, help="Replace an OUT that gpt2onnx wrote.")
@click.option("--no-scan", is_flag=True, help="Do not look for NaN and infinity in the weights.")
@click.option(
    "--check", "then_check", is_flag=True, help="Check the folder once it is written; a mismatch removes nothing."
)
@ignore_option
@activation_option
@adapter_option
@head_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
@debug_option
def convert(
    source: str,
    out: Path | None,
    to: str,
    max_shard_size: str,
    precision: str,
    in_place: bool,
    opset: int,
    force: bool,
    no_scan: bool,
    then_check: bool,
    ignore: tuple[str, ...],
    activation: str | None,
    adapter: str | None,
    head: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Convert SOURCE into the model folder OUT, or with --to into a checkpoint that other programs read.

    SOURCE is a Hugging Face folder, a Hub id such as openai-community/gpt2 or user/model@revision, or a folder or
    file of another format: docs/sources.md lists them.

    \b
    gpt2onnx convert ./my-gpt2 ./my-gpt2-onnx
    gpt2onnx convert user/model@main OUT --opset 17
    gpt2onnx convert ./my-gpt2 ./my-gpt2-onnx --precision int8,int4
    gpt2onnx convert ./my-gpt2 --in-place
    gpt2onnx convert nanogpt/ckpt.pt OUT --activation gelu
    gpt2onnx convert openai-community/gpt2 OUT --adapter ./my-lora
    gpt2onnx convert nanogpt/ckpt.pt OUT --activation gelu --to hf
    """
    from converter import terminal

    began = time.monotonic()
    refuse_unheeded(to)
    if out is None and not in_place:
        raise click.UsageError("give a folder to write to (OUT)" + (", or --in-place" if to == "onnx" else ""))
    if out is not None and in_place:
        raise click.UsageError("--in-place writes into SOURCE: leave OUT away")
    with terminal.byte_progress("copying weights", show=not quiet and not as_json) as progress:
        module, name, heeded = TARGETS[to]
        special = {
            "precision": precision, "in_place": in_place, "opset": opset, "max_shard_size": max_shard_size,
        }  # fmt: skip
        done = getattr(importlib.import_module(module), name)(
            source,
            out,
            **{key: value for key, value in special.items() if key in heeded},
            force=force,
            ignore=ignore,
            scan=not no_scan,
            activation=activation,
            adapter=adapter,
            head=head,
            progress=progress,
        )
    seconds = time.monotonic() - began
    for warning in () if quiet else done.warnings:
        click.echo(f"gpt2onnx: warning: {warning}", err=True)
    if not as_json and not quiet:
        click.echo(terminal.conversion_line(done, seconds))
    report = None
    if then_check:
        options = {"ignore": ignore, "activation": activation, "adapter": adapter, "head": head}
        report = run_check(source, done.out, show=not as_json and not quiet, **options)
    if as_json:
        facts = terminal.conversion_facts(done, seconds)
        click.echo(terminal.to_json(facts | ({"check": report.to_dict()} if report else {})))
    elif report is not None and not (quiet and report.passed):
        terminal.print_report(report)
    if report is not None and not report.passed:
        sys.exit(MISMATCH)


def refuse_unheeded(to: str) -> None:
    """Options that a target would not heed are a mistake."""
    ctx = click.get_current_context()
    special = {name for *_, heeded in TARGETS.values() for name in heeded}.difference(TARGETS[to][-1])
    for option in ctx.command.params:
        if option.name in special and ctx.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--to {to} does not heed {option.opts[0]}: leave it away")
