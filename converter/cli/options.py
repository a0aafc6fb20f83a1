"""Options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

MAX_THREADS = 1024


def debug_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--debug`` to a command."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta["debug"] = value

    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=remember, help="Show the traceback of an error."
    )(command)


ignore_option = click.option(
    "--ignore", metavar="GLOB", multiple=True, help="Leave tensors of this name aside, such as 'v_head.*'. Repeatable."
)
activation_option = click.option(
    "--activation", metavar="NAME", help="activation_function of a checkpoint that does not record it, as nanoGPT's."
)
adapter_option = click.option(
    "--adapter", metavar="DIR|ID", help="Merge this PEFT LoRA adapter, a folder or a Hub id, into SOURCE first."
)
head_option = click.option(
    "--head",
    metavar="NAME",
    help="lm, base (hidden states), sequence-classification, token-classification, question-answering or double-heads; "
    "by default that of SOURCE.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
provider_option = click.option(
    "--provider", default="cpu", show_default=True, help="ONNX Runtime's execution provider: cpu, cuda, …"
)
precision_option = click.option(
    "--precision",
    metavar="NAME",
    help="fp32, fp16, int8 or int4, of those that OUT holds; by default the first of these.",
)
out_argument = click.argument("out", type=click.Path(path_type=Path))
threads_option = click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), help="Threads of ONNX Runtime; by default one a core."
)


def standard_input(what: str) -> str:
    """The text on standard input, if any is piped there."""
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError(f"give {what}, or text on standard input")
    return sys.stdin.read().rstrip("\n")
