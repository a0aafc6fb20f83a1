"""What the command line shows: lines, tables, progress. In a terminal with colour, piped as plain text."""

from __future__ import annotations

import errno
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.errors import PromptError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from converter.checkpoint import Checkpoint
    from converter.export import Conversion
    from converter.parity.report import Report
    from converter.parity.verdict import LegReport
    from converter.runtime.generation import Generation
    from converter.weights import Ledger

PIPED_WIDTH = 250  # of a table that nobody wraps


def console(stderr: bool = False) -> Console:
    """rich's console; without a terminal it neither colours nor cuts."""
    from rich.console import Console

    class Printer(Console):
        """A console that leaves it to the command line what a closed pipe means; rich would exit with 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "the reader of the output is gone")

    return Printer(stderr=stderr, width=None if is_terminal(stderr) else PIPED_WIDTH, highlight=False, soft_wrap=True)


def is_terminal(stderr: bool = False) -> bool:
    """Whether somebody looks at standard output, or standard error; either may be closed."""
    stream = sys.stderr if stderr else sys.stdout
    return stream is not None and stream.isatty()


def to_json(values: Any) -> str:
    """JSON that every parser takes: numbers that are not finite, which JSON does not have, become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(values), indent=2, ensure_ascii=False, allow_nan=False)


def short(path: Path) -> Path:
    """A path from here if it lies below, else as it is."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def size(nbytes: float) -> str:
    """A number of bytes for people: ``497.8 MB``."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def peak_memory() -> int | None:
    """The most memory this process has held, mapped files included, in bytes; None where nobody counts."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def byte_progress(title: str, show: bool = True) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error that counts bytes; nothing without a terminal, nothing left behind."""
    if not (show and is_terminal(stderr=True)):
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def steps(show: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error that says what is being computed and what time is left; nothing without a terminal."""
    if not (show and is_terminal(stderr=True)):
        yield lambda step, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda step, done, total: bar.update(task, description=step, completed=done, total=total)


def conversion_facts(done: Conversion, seconds: float) -> dict[str, Any]:
    """A conversion for JSON."""
    return {
        "out": str(done.out),
        "parameters": done.ledger.parameters,
        "bytes_written": done.bytes_written,
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory(),
        "warnings": list(done.warnings),
    }


def conversion_line(done: Conversion, seconds: float) -> str:
    """A conversion in a line."""
    peak = peak_memory()
    memory = f", peak memory {size(peak)}" if peak is not None else ""
    written = f"{size(done.bytes_written)} written in {seconds:.2f} s"
    return f"{done.out}: {done.ledger.parameters:,} parameters, {written}{memory}"


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; ``right`` names the columns of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", no_wrap=column in right, overflow="fold"
        )
    return made


# Columns of the table of legs: its heading, and what stands there for a leg.
LEG_COLUMNS: dict[str, Callable[[LegReport], str]] = {
    "RMS error": lambda leg: f"{leg.rms:.1e}",
    "max error": lambda leg: f"{leg.maximum:.1e}",
    "RMS ÷ floor": lambda leg: f"{leg.rms_floors:.2f}" if leg.kind != "semantics" else "",
    "max ÷ floor": lambda leg: f"{leg.maximum_floors:.2f}" if leg.kind != "semantics" else "",
    "other top-1": lambda leg: str(leg.flips),
    "near ties": lambda leg: str(leg.near_ties),
}
NARROW = 115  # columns of a terminal that cannot hold them all
NARROW_COLUMNS = ("RMS error", "max error")


def print_report(report: Report) -> None:
    """The verdict on a model folder, with the table of legs it rests on."""
    out = console()
    wide = out.width >= NARROW
    numbers = tuple(LEG_COLUMNS) if wide else NARROW_COLUMNS
    legs = table("leg", *(["proves"] if wide else []), *numbers, "verdict", right=numbers)

    def row(name: str, proves: str, values: list[str], fault: bool, judged: bool = True) -> None:
        verdict = "[red]FAIL[/]" if fault else "[green]pass[/]" if judged else "–"
        legs.add_row(name, *([proves] if wide else []), *values, verdict)

    blank = [""] * len(numbers)
    row(f"{report.initializers} initializers", "bit for bit", blank, bool(report.exactness_faults))
    row("config and tokenizer", "as the source's", blank, bool(report.beside_faults))
    for leg in report.legs:
        values = [LEG_COLUMNS[number](leg) for number in numbers]
        row(leg.name, leg.kind, values, bool(leg.fault), judged=leg.kind != "noise floor")
    out.print(legs)
    out.print(
        f"Errors are shares of the logits' scale, {report.scale:.3g}; noise floor {report.floor_rms:.1e} RMS, "
        f"{report.floor_maximum:.1e} max. {max(leg.positions for leg in report.legs)} positions of {report.text}; "
        f"{report.settings['provider']}."
    )
    for note in report.notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"[{'green' if report.passed else 'red'} bold]{'MATCH' if report.passed else 'MISMATCH'}[/]: ", end="")
    out.print(report.verdict, markup=False)


def print_ledger(checkpoint: Checkpoint, ledger: Ledger) -> None:
    """A source's config and what becomes of each tensor."""
    out = console()
    out.print(
        f"{checkpoint.name}: GPT-2 with {ledger.parameters:,} parameters, "
        f"{len(ledger.entries)} tensors in {checkpoint.weight_file}",
        markup=False,
    )
    out.print(
        ", ".join(f"{key} {value}" for key, value in asdict(ledger.config).items() if value is not None), markup=False
    )
    numbers = ("shape", "bytes")
    rows = table("source name", "canonical name", "role", "layout", "dtype", *numbers, "file", right=numbers)
    for entry in ledger.entries:
        tensor = entry.tensor
        rows.add_row(
            tensor.name,
            entry.name,
            entry.role,
            entry.layout or "–",
            tensor.dtype,
            " × ".join(map(str, tensor.shape)) or "scalar",
            f"{tensor.nbytes:,}",
            tensor.file.name,
        )
    out.print(rows)


def ledger_facts(checkpoint: Checkpoint, ledger: Ledger) -> dict[str, Any]:
    """A source for JSON."""
    return {
        "name": checkpoint.name,
        "weight_file": checkpoint.weight_file,
        "config": asdict(ledger.config),
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


def parse_ids(text: str) -> list[int]:
    """``'464 3290'`` or ``'464,3290'`` as token ids.

    Raises:
        PromptError: something else is among them.
    """
    parts = text.replace(",", " ").split()
    if not all(re.fullmatch(r"-?[0-9]{1,18}", part) for part in parts):
        raise PromptError(f"{text!r} is not a list of token ids; expected numbers, such as '464 3290'")
    return [int(part) for part in parts]


class Stream:
    """One prompt and its continuation as it grows; nothing before the first token, as a prompt may be refused."""

    def __init__(self, prompt: str) -> None:
        self.pending = prompt

    def show(self, _row: int, text: str) -> None:
        """Show the next piece of text."""
        click.echo(self.pending + text, nl=False)
        self.pending = ""

    def end(self) -> None:
        """End the line."""
        click.echo(self.pending)


def print_rows(prompts: Sequence[str], done: Generation, ids: bool) -> None:
    """Several continuations, one after the other."""
    for number, prompt in enumerate(prompts):
        if len(prompts) > 1:
            click.echo(f"--- {number + 1} of {len(prompts)}")
        click.echo(
            " ".join(map(str, done.prompt_ids[number] + done.new_ids[number])) if ids else prompt + done.texts[number]
        )


def generation_facts(prompts: Sequence[str], done: Generation) -> dict[str, Any]:
    """A generation for JSON."""
    return {
        "rows": [
            {"prompt": prompt, "text": text, "prompt_ids": old, "new_ids": new, "ended": ended}
            for prompt, text, old, new, ended in zip(
                prompts, done.texts, done.prompt_ids, done.new_ids, done.ended, strict=True
            )
        ],
        "prefill_seconds": round(done.prefill_seconds, 4),
        "decode_seconds": round(done.decode_seconds, 4),
        "tokens_per_second": round(done.tokens_per_second, 1),
    }


def generation_line(done: Generation, n_positions: int) -> str:
    """A generation's figures in a line, and whether the model's positions ended it."""
    new = sum(map(len, done.new_ids))
    full = sum(ended == "n_positions" for ended in done.ended)
    line = f"{new} tokens, {done.tokens_per_second:.0f} tokens/s after {done.prefill_seconds * 1000:.0f} ms of prefill"
    return line + (f"; stopped at the model's {n_positions} positions" if full else "")
