"""``gpt2onnx bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli import tables, terminal
from converter.cli.group import cli
from converter.cli.options import (
    OUTPUT_GROUP,
    RUNTIME_GROUP,
    complete_names,
    cuda_graphs_option,
    debug_option,
    json_option,
    out_argument,
    provider_option,
    refuse_unwritable,
    threads_option,
)
from converter.weights.precisions import PRECISIONS

if TYPE_CHECKING:
    from rich.table import Table

    from converter.runtime.benching.results import Bench, Spread
    from converter.runtime.benching.settings import Settings

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
@cuda_graphs_option
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw it all into this SVG file too.")
@json_option
@debug_option
def bench(out: Path, plot: Path | None, as_json: bool, quick: bool, **given: Any) -> None:
    """Measure how fast the model folder OUT runs on this machine, and in what memory.

    Prefill, decoding with the cache, load time and memory, for each precision in processes of its own; and how near
    decoding is to the limit that the machine's memory sets: docs/bench.md. It ends after --max-minutes at the latest,
    with what it has; gpt2 needs less. Lengths are cut to the model's positions.
    """
    from converter.cli import progress
    from converter.parity import check as parity
    from converter.runtime.benching.bench import bench as bench_folder

    if plot is not None:
        parity.require(parity.PLOT_NEEDED, "--plot")
        refuse_unwritable(plot)
    settings = bench_settings(quick, **given)
    with progress.steps() as step:
        found = bench_folder(out, settings, step)
    if plot is not None:
        from converter.runtime.benching import plot as page

        page.write(found, plot)
    if as_json:
        click.echo(terminal.to_json(found.to_dict()))
    else:
        print_bench(found)


def bench_settings(quick: bool, **given: Any) -> Settings:
    """Return the settings that the options ask for; the others are those of ``quick``, or the defaults."""
    from converter.runtime.benching.settings import QUICK, Settings, whole_numbers
    from converter.weights import precisions

    asked: dict[str, Any] = dict(QUICK) if quick else {}
    for name, value in given.items():
        if value is None:
            continue
        if name == "precision":
            asked["precisions"] = tuple(row.name for row in precisions.parse(value))
        elif name in ("batch_sizes", "contexts", "prompt_lengths"):
            asked[name] = whole_numbers(name, value)
        else:
            asked[name] = value
    return Settings(**asked)


def print_bench(bench: Bench) -> None:
    """Print how fast each precision runs, and what the limit was computed from."""
    out = terminal.console()
    for title, rows in (("", bench_loads), ("Prefill", bench_prefills), ("Decoding", bench_decodes)):
        if title:
            out.print(f"[bold]{title}[/]")
        tables.show(out, rows(bench), "min–max", "peak", "limit")
    rounds = "1 round" if bench.rounds == 1 else f"{bench.rounds} rounds"
    threads = "1 thread a core" if bench.settings.threads is None else f"{bench.settings.threads} threads"
    read = f"memory is read at {terminal.size(bench.bandwidth)}/s; " if bench.bandwidth is not None else ""
    runtime = f"ONNX Runtime {bench.environment['onnxruntime']}, {bench.settings.provider}, {threads}"
    out.print(f"Medians and extremes of {rounds}; {read}{runtime}; {bench.seconds:.0f} s.")
    if any(row.share_of_limit is not None and row.share_of_limit > 1 for one in bench.precisions for row in one.decode):
        out.print("note: above 100 % of the limit, weights come out of the processor's caches, not out of memory")
    if bench.missing:
        minutes = f"{bench.settings.max_minutes:g} minutes"
        out.print(f"note: not measured within {minutes}: {'; '.join(bench.missing)}", markup=False)


def bench_loads(bench: Bench) -> Table:
    """Return the table of loading times and memory."""
    numbers = ("load s", "min–max", "memory", "peak", "weights read")
    rows = tables.table("precision", *numbers, right=numbers)
    for one in bench.precisions:
        memory = [terminal.size(spread.median) if spread else "–" for spread in (one.resident_bytes, one.peak_bytes)]
        rows.add_row(one.precision, *spread_cells(one.load_seconds), *memory, terminal.size(one.weight_bytes))
    return rows


def bench_prefills(bench: Bench) -> Table:
    """Return the table of prefills, for each batch and prompt length with the precisions below each other."""
    numbers = ("batch", "prompt", "ms", "min–max", "tokens/s")
    rows = tables.table(*numbers[:2], "precision", *numbers[2:], right=numbers)
    for same in zip(*(one.prefill for one in bench.precisions), strict=True):
        for one, row in zip(bench.precisions, same, strict=True):
            took = row.milliseconds
            speed = f"{1000 * row.batch_size * row.prompt_length / took.median:,.0f}" if took else "–"
            place = (str(row.batch_size), str(row.prompt_length), one.precision)
            rows.add_row(*place, *spread_cells(took), speed)
    return rows


def bench_decodes(bench: Bench) -> Table:
    """Return the table of decoding, for each batch and context with the precisions below each other."""
    numbers = ("batch", "context", "tokens/s", "min–max", "limit", "of limit")
    rows = tables.table(*numbers[:2], "precision", *numbers[2:], right=numbers)
    for same in zip(*(one.decode for one in bench.precisions), strict=True):
        for one, row in zip(bench.precisions, same, strict=True):
            limit = f"{row.limit:,.0f}" if row.limit is not None else "–"
            share = f"{row.share_of_limit:.0%}" if row.share_of_limit is not None else "–"
            place = (str(row.batch_size), str(row.context), one.precision)
            rows.add_row(*place, *spread_cells(row.tokens_per_second), limit, share)
    return rows


def spread_cells(spread: Spread | None) -> tuple[str, str]:
    """Return the median and the extremes as texts."""
    if spread is None:
        return "–", ""
    digits = 3 if spread.median < 1 else 2 if spread.median < 10 else 1 if spread.median < 1000 else 0
    low, high = (f"{value:,.{digits}f}" for value in (spread.minimum, spread.maximum))
    return f"{spread.median:,.{digits}f}", f"{low}–{high}"
