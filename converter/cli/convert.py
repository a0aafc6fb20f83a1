"""``gpt2onnx convert``."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli import terminal
from converter.cli.check import run_check
from converter.cli.check_tables import print_report
from converter.cli.group import MISMATCH, cli
from converter.cli.options import (
    OUTPUT_GROUP,
    SOURCE_GROUP,
    complete_names,
    complete_paths,
    debug_option,
    json_option,
    source_help,
    source_options,
)
from converter.graph.outputs import WORDS
from converter.memory import peak_memory
from converter.weights.precisions import PRECISIONS

if TYPE_CHECKING:
    from converter.checkpoint.options import SourceOptions
    from converter.folder.convert import Conversion

# What --to names → the function that writes it (module, name), and the options that it alone uses.
TARGETS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "onnx": ("converter.folder.convert", "convert", ("precision", "in_place", "opset", "outputs", "then_check")),
    "hf": ("converter.folder.save", "to_huggingface", ("max_shard_size",)),
    "reference": ("converter.folder.save", "to_reference", ()),
}


@cli.command(
    short_help="Turn a checkpoint into a model folder.",
    examples=[
        "gpt2onnx convert openai-community/gpt2 gpt2-onnx",
        "gpt2onnx convert user/model@main model-onnx --check",
        "gpt2onnx convert ./my-gpt2 my-gpt2-onnx --precision fp32,int8",
        "gpt2onnx convert ./my-gpt2 my-gpt2-onnx --precision int4   # added to it",
        "gpt2onnx convert ./my-gpt2 --in-place   # beside the weights",
        "gpt2onnx convert ./my-gpt2 my-inside-onnx --outputs 'attentions,h.*.mlp.act'",
        "gpt2onnx convert openai-community/gpt2 lora-onnx --adapter ./my-lora",
        "gpt2onnx convert nanogpt/ckpt.pt my-hf --activation gelu --to hf",
    ],
    groups={
        "The graph": ("precision", "opset", "outputs", "in_place", "then_check"),
        **SOURCE_GROUP,
        **OUTPUT_GROUP,
    },
)
@click.argument("source", shell_complete=complete_paths("file"), help=source_help)
@click.argument(
    "out",
    required=False,
    type=click.Path(path_type=Path),
    shell_complete=complete_paths("dir"),
    help="The folder to write; it appears whole or not at all.",
)
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
    metavar="NAMES",
    default="fp32",
    shell_complete=complete_names(PRECISIONS, ","),
    show_default=True,
    help="fp32, fp16, int8, int4; several with commas between. An OUT of the same SOURCE keeps what it holds.",
)
@click.option("--in-place", is_flag=True, help="Add the graph to SOURCE itself; no weights are copied.")
@click.option(
    "--opset", metavar="NUMBER", default=23, show_default=True, help="ONNX opset, 17 to 25; lower for old runtimes."
)
@click.option(
    "--outputs",
    metavar="NAMES",
    multiple=True,
    shell_complete=complete_names(WORDS, ","),
    help="What the graph returns too: hidden_states, attentions, or globs over its operations such as 'h.*.mlp.act'.",
)
@click.option("--force", is_flag=True, help="Replace an OUT that gpt2onnx wrote.")
@click.option("--no-scan", is_flag=True, help="Do not look for NaN and infinity in the weights.")
@click.option(
    "--check", "then_check", is_flag=True, help="Check the folder once it is written; a mismatch removes nothing."
)
@source_options
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
    outputs: tuple[str, ...],
    force: bool,
    no_scan: bool,
    then_check: bool,
    read_as: SourceOptions,
    quiet: bool,
    as_json: bool,
) -> None:
    """Convert SOURCE into the model folder OUT, or with --to into a checkpoint that other programs read.

    SOURCE is what Hugging Face, nanoGPT, llm.c, Megatron-LM, GGUF or OpenAI wrote: docs/sources.md. What exists here
    is never looked up on the Hub.
    """
    from converter.cli import progress

    began = time.monotonic()
    refuse_unused(to)
    if out is None and not in_place:
        raise click.UsageError("give a folder to write to (OUT)" + (", or --in-place" if to == "onnx" else ""))
    if out is not None and in_place:
        raise click.UsageError("--in-place writes into SOURCE: omit OUT")
    with progress.amounts(f"writing {out or source}", show=not quiet, at_once=False) as count:
        module, name, used = TARGETS[to]
        special = {
            "precision": precision, "in_place": in_place, "opset": opset, "outputs": outputs,
            "max_shard_size": max_shard_size,
        }  # fmt: skip
        done = getattr(importlib.import_module(module), name)(
            source,
            out,
            **{key: value for key, value in special.items() if key in used},
            force=force,
            scan=not no_scan,
            **vars(read_as),
            progress=count,
        )
    seconds = time.monotonic() - began
    for warning in () if quiet else done.warnings:
        terminal.warn(warning)
    if not as_json and not quiet:
        click.echo(conversion_line(done, seconds))
    report = None
    if then_check:
        report = run_check(source, done.out, show=not quiet, **vars(read_as))
    if as_json:
        facts = conversion_facts(done, seconds)
        click.echo(terminal.to_json(facts | ({"check": report.to_dict()} if report else {})))
    elif report is not None and not (quiet and report.passed):
        print_report(report)
    if report is not None and not report.passed:
        sys.exit(MISMATCH)


def refuse_unused(to: str) -> None:
    """Refuse options that a target would not use."""
    ctx = click.get_current_context()
    special = {name for *_, used in TARGETS.values() for name in used}.difference(TARGETS[to][-1])
    for option in ctx.command.params:
        if option.name in special and ctx.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--to {to} does not use {option.opts[0]}: omit it")


def conversion_facts(done: Conversion, seconds: float) -> dict[str, Any]:
    """Return a conversion for JSON."""
    return {
        "out": str(done.out),
        "parameters": done.ledger.parameters,
        "bytes_written": done.bytes_written,
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory(),
        "quantized": dict(done.quantized),
        "warnings": list(done.warnings),
    }


def conversion_line(done: Conversion, seconds: float) -> str:
    """Describe a conversion in one line."""
    peak = peak_memory()
    memory = f", peak memory {terminal.size(peak)}" if peak is not None else ""
    written = f"{terminal.size(done.bytes_written)} written in {seconds:.2f} s"
    shares = "".join(f", {share:.1%} of them quantized to {name}" for name, share in done.quantized.items())
    return f"{done.out}: {done.ledger.parameters:,} parameters{shares}, {written}{memory}"
