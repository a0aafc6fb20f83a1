"""``gpt2onnx check``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli import check_tables, terminal
from converter.cli.group import MISMATCH, cli
from converter.cli.options import (
    OUTPUT_GROUP,
    SOURCE_GROUP,
    complete_names,
    complete_paths,
    debug_option,
    json_option,
    provider_option,
    refuse_unwritable,
    source_help,
    source_options,
)
from converter.parity.verdict.limits import Limits

if TYPE_CHECKING:
    from converter.checkpoint.options import SourceOptions
    from converter.parity.report.report import Report


def run_check(source: str, out: Path, show: bool, **options: Any) -> Report:
    """Run a check, show its steps as they are taken, and return the report."""
    from converter.cli import progress
    from converter.parity.check import check as run

    with progress.steps("opening source and folder", show) as step:
        return run(source, out, own_process=True, progress=step, **options)


def parse_limits(_ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, float]:
    """Parse ``('rms=6',)`` into ``{'rms': 6.0}``."""
    limits = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            limits[name] = float(value)
        except ValueError as error:
            raise click.BadParameter(f"{pair!r} is not of the form NAME=NUMBER, such as rms=6") from error
    return limits


def parse_inputs(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Parse ``('x=input_ids,m=attention_mask',)`` into ``{'x': 'input_ids', 'm': 'attention_mask'}``."""
    roles = {}
    for pair in (pair for text in given for pair in text.split(",")):
        name, equals, role = pair.rpartition("=")
        if not (name and equals and role):
            raise click.BadParameter(f"{pair!r} is not of the form NAME=ROLE, such as x=input_ids")
        roles[name] = role
    return roles


@cli.command(
    short_help="Prove that a model folder is its source.",
    examples=[
        "gpt2onnx check openai-community/gpt2 gpt2-onnx",
        "gpt2onnx check ./my-gpt2 my-gpt2-onnx --text my.txt --report report.html",
        "gpt2onnx check ./my-gpt2 my-gpt2-onnx --level full --json > report.json",
        "gpt2onnx check --prove      # would it notice? 124 defects are tried",
    ],
    groups={
        "How it is judged": ("level", "limits", "text", "logits_only", "layers", "also", "inputs", "allow", "provider"),
        **SOURCE_GROUP,
        "Output": ("report", "junit", "certificate", "sign", "no_certificate", *OUTPUT_GROUP["Output"]),
    },
)
@click.argument("source", required=False, shell_complete=complete_paths("file"), help=source_help)
@click.argument(
    "out",
    required=False,
    type=click.Path(path_type=Path),
    shell_complete=complete_paths("dir"),
    help="The model folder that gpt2onnx convert made of it, or an ONNX file or folder of another exporter.",
)
@click.option(
    "--level",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="full: every leg on every case, half precisions, more text.",
)
@click.option("--layers", is_flag=True, help="Compare every operation of every layer, even on a match.")
@click.option("--prove", is_flag=True, help="Check the check: seed defects into copies; each must be caught and named.")
@click.option("--text", type=click.Path(path_type=Path), help="Feed this text (plain or JSONL), not the bundled one.")
@click.option(
    "--also",
    metavar="ONNX",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another exporter's ONNX file or folder, held against SOURCE too. Repeatable.",
)
@click.option(
    "--inputs",
    metavar="NAME=ROLE,…",
    multiple=True,
    callback=parse_inputs,
    help="Say what an input or output of another exporter's file is: x=input_ids, m=attention_mask, p=position_ids, …",
)
@click.option(
    "--allow",
    metavar="FILE[:KEY]",
    multiple=True,
    help="Accept what was changed on purpose in this file, or at this key of a JSON file. Repeatable.",
)
@click.option("--logits-only", is_flag=True, help="Do not compare files: let the logits alone decide.")
@click.option(
    "--limit",
    "limits",
    metavar="NAME=NUMBER",
    multiple=True,
    callback=parse_limits,
    shell_complete=complete_names(f"{name}=" for name in Limits().named()),
    help="Allow more or less: rms, maximum (× noise floor), graph_float64, huggingface_float64, noise, int8.kl_mean …",
)
@provider_option
@source_options
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with tables and plots.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML, for CI systems.")
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the verdict into this file, not into OUT.",
)
@click.option(
    "--sign",
    metavar="KEY",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Sign the certificate with this private key (Ed25519), for verify --key.",
)
@click.option("--no-certificate", is_flag=True, help="Write no verdict into OUT.")
@json_option
@debug_option
def check(
    source: str | None,
    out: Path | None,
    level: str,
    layers: bool,
    prove: bool,
    text: Path | None,
    also: tuple[Path, ...],
    inputs: dict[str, str],
    allow: tuple[str, ...],
    logits_only: bool,
    limits: dict[str, float],
    provider: str,
    read_as: SourceOptions,
    report: Path | None,
    junit: Path | None,
    certificate: Path | None,
    sign: Path | None,
    no_certificate: bool,
    as_json: bool,
) -> None:
    """Prove that OUT is SOURCE; exit with 1 if it is not.

    Weights are compared bit for bit; the mathematics in float64 against Hugging Face and a GPT-2 written from
    scratch; float32 against the noise of Hugging Face's own float32. On a mismatch the check says which operation is
    wrong, and why: docs/check.md. Needs torch and transformers.
    """
    from converter.parity import check as parity

    if prove:
        refuse_beside_prove(out)
        run_prove(source, as_json)
        return
    if source is None or out is None:
        raise click.UsageError("give a SOURCE and the model folder OUT that was made from it, or --prove")
    if report is not None:
        parity.require(parity.PAGE_NEEDED, "--report")
    refuse_unwritable(report, junit, certificate)
    found = run_check(
        source,
        out,
        show=True,
        level=level,
        layers=layers or report is not None,
        provider=provider,
        text=text,
        also=also,
        inputs=inputs,
        files=not logits_only,
        allow=allow,
        certify=not no_certificate,
        certificate=certificate,
        sign=sign,
        limits=limits,
        **vars(read_as),
    )
    if report is not None:
        from converter.parity.report import page

        page.write(found, report, shlex.join(["gpt2onnx", *sys.argv[1:]]))
    if junit is not None:
        from converter.parity.report import junit as xml

        xml.write(found, junit)
    if as_json:
        click.echo(terminal.to_json(found.to_dict()))
    else:
        check_tables.print_report(found, layers)
    if not found.passed:
        sys.exit(MISMATCH)


def refuse_beside_prove(out: Path | None) -> None:
    """Refuse options that ``--prove`` would not use."""
    if out is not None:
        raise click.UsageError("--prove converts SOURCE itself: omit OUT")
    ctx = click.get_current_context()
    for name in ctx.params:
        given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in ("source", "out", "prove", "as_json"):
            raise click.UsageError(f"--prove goes with SOURCE and --json only: omit --{name.replace('_', '-')}")


def run_prove(source: str | None, as_json: bool) -> None:
    """Seed defects into a conversion of ``source``, by default of the bundled checkpoint."""
    from converter.cli import progress
    from converter.data import CHECKPOINT
    from converter.parity.check import require

    require()
    from converter.parity.seeded.prove import prove as run

    with progress.steps() as step:
        proof = run(source or terminal.short(CHECKPOINT), progress=step, own_process=True)
    if as_json:
        click.echo(terminal.to_json(proof.to_dict()))
    else:
        check_tables.print_proof(proof)
    if not proof.passed:
        sys.exit(MISMATCH)
