"""Options that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.checkpoint.options import SourceOptions
from converter.weights.precisions import PRECISIONS
from reference.config import ACTIVATION_NAMES
from reference.head import ASKED, HEADS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

MAX_THREADS = 1024

# Headings of options that several commands have; a command need not have all of them.
SOURCE_GROUP = {"Reading SOURCE": ("ignore", "activation", "adapter", "head")}
RUNTIME_GROUP = {"ONNX Runtime": ("precision", "provider", "threads", "no_prepack", "cache", "steady", "cuda_graphs")}
OUTPUT_GROUP = {"Output": ("quiet", "as_json", "debug", "help")}

Completer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem[str]]"]


def complete_paths(kind: str) -> Completer:
    """Return a function by which the shell completes paths: ``dir``, or ``file`` for both."""

    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=kind)]

    return complete


def complete_names(names: Iterable[str], separator: str = "") -> Completer:
    """Return a function that completes one of ``names``, or with a separator the last of several."""
    names = tuple(names)

    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem

        before, comma, last = incomplete.rpartition(separator) if separator else ("", "", incomplete)
        left = [name for name in names if name.startswith(last) and name not in before.split(separator or None)]
        return [CompletionItem(f"{before}{comma}{name}") for name in left]

    return complete


def debug_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--debug`` to a command."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta["debug"] = value

    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=remember, help="Show the traceback of an error."
    )(command)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how SOURCE is read; the command gets them as ``read_as``."""

    @wraps(command)
    def gathered(
        *, ignore: tuple[str, ...], activation: str | None, adapter: str | None, head: str | None, **others: Any
    ) -> Any:
        return command(read_as=SourceOptions(ignore, activation, adapter, head), **others)

    for option in (head_option, adapter_option, activation_option, ignore_option):
        gathered = option(gathered)
    return gathered


def layout_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of how a language model lies in memory; the command gets them as ``layout``, for ``load``."""

    @wraps(command)
    def gathered(*, no_prepack: bool, cache: str | None, steady: bool, cuda_graphs: bool, **others: Any) -> Any:
        layout = {"prepack": not no_prepack, "cache": cache, "steady": steady, "cuda_graphs": cuda_graphs}
        return command(layout=layout, **others)

    for option in (cuda_graphs_option, steady_option, cache_option, no_prepack_option):
        gathered = option(gathered)
    return gathered


source_help = "A Hugging Face folder, a Hub id (user/model, user/model@revision), or another format's folder or file."
ignore_option = click.option(
    "--ignore", metavar="GLOB", multiple=True, help="Leave tensors of this name aside, such as 'v_head.*'. Repeatable."
)
activation_option = click.option(
    "--activation",
    metavar="NAME",
    shell_complete=complete_names(ACTIVATION_NAMES),
    help="activation_function of a checkpoint that does not record it, as nanoGPT's.",
)
adapter_option = click.option(
    "--adapter",
    metavar="DIR|ID",
    shell_complete=complete_paths("dir"),
    help="Merge this PEFT LoRA adapter, a folder or a Hub id, into SOURCE first.",
)
told_heads = [f"{name} ({HEADS[name].said})" if HEADS[name].said else name for name in ASKED]
head_option = click.option(
    "--head",
    metavar="NAME",
    shell_complete=complete_names(ASKED),
    help=f"{', '.join(told_heads[:-1])} or {told_heads[-1]}; by default that of SOURCE.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
provider_option = click.option(
    "--provider",
    metavar="NAME",
    default="cpu",
    show_default=True,
    shell_complete=complete_names(("cpu", "cuda")),
    help="ONNX Runtime's execution provider: cpu, cuda, …",
)
precision_option = click.option(
    "--precision",
    metavar="NAME",
    shell_complete=complete_names(PRECISIONS),
    help="fp32, fp16, int8 or int4, of those that OUT holds; by default the first of these.",
)
out_argument = click.argument(
    "out",
    type=click.Path(path_type=Path),
    shell_complete=complete_paths("dir"),
    help="A model folder, which gpt2onnx convert wrote.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), help="Threads of ONNX Runtime; by default one a core."
)

output_option = click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the lines go. Give it again after an interruption, and the lines that it has stay.",
)
no_prepack_option = click.option(
    "--no-prepack", is_flag=True, help="Keep no weights laid out for speed: less memory, but slower."
)
cache_option = click.option(
    "--cache",
    type=click.Choice(["float32", "int8"]),
    help="Type of the keys and values: int8 takes a quarter of the memory. By default as docs/generate.md says.",
)
steady_option = click.option(
    "--steady", is_flag=True, help="int8, int4: the same tokens for a text alone and beside others; slower."
)

cuda_graphs_option = click.option(
    "--cuda-graphs", is_flag=True, help="fp16 on a GPU: launch all kernels of a step at once."
)


def standard_input(what: str) -> str:
    """Return the text on standard input, without the line end that ``echo`` adds."""
    mend = f"give {what}, or pipe a text into standard input"
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError(mend)
    text = sys.stdin.read().removesuffix("\n")
    if not text.strip("\n"):
        raise click.UsageError(f"standard input is empty: {mend}")
    return text


def refuse_unwritable(*files: Path | None) -> None:
    """Refuse files at once that could not be written at the end."""
    for file in filter(None, files):
        folder = file.absolute().parent
        if not folder.is_dir():
            raise click.UsageError(f"{file} cannot be written: there is no folder {folder}")
        if not os.access(folder, os.W_OK):
            raise click.UsageError(f"{file} cannot be written: you may not write to {folder}")
