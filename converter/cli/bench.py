"""``gpt2onnx bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.group import cli
from converter.cli.options import (
    OUTPUT_GROUP,
    PRECISIONS,
    RUNTIME_GROUP,
    complete_names,
    debug_option,
    json_option,
    out_argument,
    provider_option,
    refuse_unwritable,
    threads_option,
)

if TYPE_CHECKING:
    from converter.runtime.benching import Settings

DEFAULT_MINUTES = 10.0


@cli.command(
    short_help="How fast a model folder runs here, and in what memory.",
    examples=[
        "gpt2onnx bench gpt2-onnx",
        "gpt2onnx bench gpt2-onnx --quick --precision fp32,int8",
        "gpt2onnx bench gpt2-onnx --quick --batch-sizes 1,4 --plot bench.svg",
        "gpt2onnx bench gpt2-onnx --quick --json > bench.json",
    ],
    groups={
        "What is measured": ("batch_sizes", "contexts", "prompt_lengths", "new_tokens"),
        **RUNTIME_GROUP,
        "Output": ("plot", *OUTPUT_GROUP["Output"]),
    },
)
@out_argument
@click.option(
    "--precision",
    metavar="NAMES",
    shell_complete=complete_names(PRECISIONS, ","),
    help="Of those that OUT holds, with commas between; by default all.",
)
@click.option("--batch-sizes", metavar="NUMBERS", help="Prompts that run together.  [default: 1,8]")
@click.option("--contexts", metavar="NUMBERS", help="Tokens in the cache before decoding.  [default: 128,900]")
@click.option("--prompt-lengths", metavar="NUMBERS", help="Tokens of a prefill.  [default: 16,128,900]")
@click.option("--new-tokens", type=int, help="Tokens that decoding is timed over.  [default: 32]")
@click.option("--rounds", type=int, help="Samples that a median is of, each in a new process.  [default: 3]")
@click.option(
    "--max-minutes",
    default=DEFAULT_MINUTES,
    show_default=True,
    help="When they are over, what is still to do is left out: rounds first, then the largest batches.",
)
@click.option("--quick", is_flag=True, help="One round, batch 1, at most 128 tokens, unless other options say more.")
@threads_option
@provider_option
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw it all into this SVG file too.")
@json_option
@debug_option
def bench(out: Path, plot: Path | None, as_json: bool, quick: bool, **given: Any) -> None:
    """Measure how fast the model folder OUT runs on this machine, and in what memory.

    Prefill, decoding with the cache, load time and memory, for each precision in processes of its own; and how near
    decoding is to the limit that the machine's memory sets: docs/bench.md. It ends after --max-minutes at the latest,
    with what it has; gpt2 needs less. Lengths are cut to the model's positions.
    """
    from converter import parity, terminal
    from converter.cli import progress
    from converter.runtime import benching

    if plot is not None:
        parity.require(parity.PLOT_NEEDED, "--plot")
        refuse_unwritable(plot)
    settings = bench_settings(quick, **given)
    with progress.steps() as step:
        found = benching.bench(out, settings, step)
    if plot is not None:
        from converter.runtime import bench_plot

        bench_plot.write(found, plot)
    if as_json:
        click.echo(terminal.to_json(found.to_dict()))
    else:
        terminal.print_bench(found)


def bench_settings(quick: bool, **given: Any) -> Settings:
    """What options ask for; of those that are not given, what ``quick`` does or what is the default."""
    from converter import precisions
    from converter.runtime import benching

    asked: dict[str, Any] = dict(benching.QUICK) if quick else {}
    for name, value in given.items():
        if value is None:
            continue
        if name == "precision":
            asked["precisions"] = tuple(row.name for row in precisions.parse(value))
        elif name in ("batch_sizes", "contexts", "prompt_lengths"):
            asked[name] = benching.whole_numbers(name, value)
        else:
            asked[name] = value
    return benching.Settings(**asked)
