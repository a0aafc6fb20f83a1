"""What the command line shows: lines and tables. In a terminal with colour, piped as plain text."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.answers import Answer, Choice, Embedding, Labels, Span, TokenLabels
from converter.checkpoint.config import dead_keys
from converter.errors import PromptError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from converter.checkpoint import Checkpoint
    from converter.export import Conversion
    from converter.parity.prove import Proof
    from converter.parity.report import Report
    from converter.parity.taps import Localisation, TapReport
    from converter.parity.verdict import LegReport
    from converter.runtime.benching import Bench, Spread
    from converter.runtime.generation import Generation
    from converter.runtime.scoring import Score
    from converter.runtime.speculation import Speculation
    from converter.weights import Ledger

PIPED_WIDTH = 250  # of a table that nobody wraps


def console(stderr: bool = False) -> Console:
    """rich's console; without a terminal it neither colours nor cuts."""
    from rich.console import Console

    class Printer(Console):
        """A console that leaves it to the command line what a closed pipe means; rich would exit with 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "the reader of the output is gone")

    return Printer(
        stderr=stderr,
        width=None if is_terminal(stderr) else PIPED_WIDTH,
        color_system=None if os.environ.get("NO_COLOR") else "auto",  # rich would leave bold and dim
        highlight=False,
        soft_wrap=True,
    )


def is_terminal(stderr: bool = False) -> bool:
    """Whether somebody looks at standard output, or standard error; either may be closed."""
    stream = sys.stderr if stderr else sys.stdout
    return stream is not None and stream.isatty()


def to_json(values: Any, indent: int | None = 2) -> str:
    """JSON that every parser takes: numbers that are not finite, which JSON does not have, become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(values), indent=indent, ensure_ascii=False, allow_nan=False)


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


def conversion_facts(done: Conversion, seconds: float) -> dict[str, Any]:
    """A conversion for JSON."""
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
    """A conversion in a line."""
    peak = peak_memory()
    memory = f", peak memory {size(peak)}" if peak is not None else ""
    written = f"{size(done.bytes_written)} written in {seconds:.2f} s"
    shares = "".join(f", {share:.1%} of them quantized to {name}" for name, share in done.quantized.items())
    return f"{done.out}: {done.ledger.parameters:,} parameters{shares}, {written}{memory}"


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


def fitting(out: Console, rows: Table, *dispensable: str) -> Table:
    """A table without as many of the ``dispensable`` columns, from the first, as there is no room for."""
    for name in dispensable:
        if out.measure(rows, options=out.options.update_width(PIPED_WIDTH)).maximum <= out.width:
            break
        kept = {str(column.header): column for column in rows.columns if column.header != name}
        rows = table(*kept, right=[header for header, column in kept.items() if column.justify == "right"])
        for cells in zip(*(column.cells for column in kept.values()), strict=True):
            rows.add_row(*cells)
    return rows


# Kinds of legs of which multiples of the noise floor say something.
FLOORED = ("numerics", "noise floor", "another file")

# Columns of the table of legs: its heading, and what stands there for a leg.
LEG_COLUMNS: dict[str, Callable[[LegReport], str]] = {
    "RMS error": lambda leg: f"{leg.rms:.1e}",
    "max error": lambda leg: f"{leg.maximum:.1e}",
    "RMS ÷ floor": lambda leg: f"{leg.rms_floors:.2f}" if leg.kind in FLOORED else "",
    "max ÷ floor": lambda leg: f"{leg.maximum_floors:.2f}" if leg.kind in FLOORED else "",
    "other top-1": lambda leg: str(leg.flips),
    "near ties": lambda leg: str(leg.near_ties),
    "top-5": lambda leg: f"{leg.top_k:.1%}",
    "KL mean": lambda leg: f"{leg.kl_mean:.0e}",
    "perplexity": lambda leg: f"{leg.perplexity_ratio:.5f}" if leg.scored else "–",
}
# As many as the terminal has room for, from the left.
FIXED_WIDTH, COLUMN_WIDTH = 58, 13
LEAST_COLUMNS = 2


def print_report(report: Report, layers: bool = False) -> None:
    """The verdict on a model folder, with the table of legs it rests on and, on a mismatch, why."""
    out = console()
    room = max(LEAST_COLUMNS, (out.width - FIXED_WIDTH) // COLUMN_WIDTH)
    numbers = tuple(LEG_COLUMNS)[:room]
    wide = room > LEAST_COLUMNS
    legs = table("leg", *(["proves"] if wide else []), *numbers, "verdict", right=numbers)

    def row(name: str, proves: str, values: list[str], verdict: str) -> None:
        legs.add_row(name, *([proves] if wide else []), *values, verdict)

    blank = [""] * len(numbers)
    if report.exactness:
        row(f"{report.initializers} initializers", "bit for bit", blank, mark(bool(report.exactness_faults)))
        row("config and tokenizer", "as the source's", blank, mark(bool(report.beside_faults)))
    for leg in report.legs:
        row(leg.name, leg.kind, [LEG_COLUMNS[number](leg) for number in numbers], leg_mark(leg))
    out.print(legs)
    out.print(
        f"Errors are shares of the logits' scale, {report.scale:.3g}; noise floor {report.floor_rms:.1e} RMS, "
        f"{report.floor_maximum:.1e} max. {max(leg.positions for leg in report.legs)} positions of {report.text}; "
        f"{report.settings['provider']}; {report.seconds:.1f} s."
    )
    if report.localisation is not None and layers:
        print_layers(out, report.localisation, report.passed)
    for note in report.notes:
        out.print(f"note: {note}", markup=False)
    print_diagnosis(out, report)
    for fault in report.other_faults:
        out.print(f"note: {fault}", markup=False)
    out.print(f"[{'green' if report.passed else 'red'} bold]{'MATCH' if report.passed else 'MISMATCH'}[/]: ", end="")
    out.print(report.verdict, markup=False)


def mark(fault: bool) -> str:
    """Pass or fail."""
    return "[red]FAIL[/]" if fault else "[green]pass[/]"


def leg_mark(leg: LegReport) -> str:
    """What is said of a leg in a word; those that measure are not judged but for a fault of their own."""
    if leg.kind == "half precision":
        return "in budget" if leg.within_budget else "over budget"
    return "–" if leg.kind == "noise floor" and not leg.fault else mark(bool(leg.fault))


def print_diagnosis(out: Console, report: Report) -> None:
    """Where the error arises and what explains it."""
    located, diagnosis = report.localisation, report.diagnosis
    if located is not None and located.first:
        out.print(f"first divergence: {located.first}, in the case {located.case!r}", markup=False)
    for finding in diagnosis.findings[:FINDINGS_SHOWN] if diagnosis is not None else ():
        out.print(f"cause ({finding.cause}): {finding.sentence} [{finding.evidence}]", markup=False)
    if diagnosis is not None and len(diagnosis.findings) > FINDINGS_SHOWN:
        out.print(f"and {len(diagnosis.findings) - FINDINGS_SHOWN} more; --json lists them all")


FINDINGS_SHOWN = 5


def print_layers(out: Console, located: Localisation, passed: bool) -> None:
    """The error of every operation, a layer a line: of ONNX Runtime ÷ of Hugging Face, or on a mismatch in float64."""
    operations = list(dict.fromkeys(tap.name.split(".", 2)[2] for tap in located.taps if tap.layer is not None))
    rows = table("layer", *operations, "largest value", right=(*operations, "largest value"))

    def cell(tap: TapReport) -> str:
        if not passed:
            return f"{tap.onnx_float64:.0e}"
        return f"{tap.onnx / max(tap.huggingface, FLOAT32_STEP):.1f}"

    layers: dict[int, list[TapReport]] = {}
    for tap in located.taps:
        if tap.layer is not None:
            layers.setdefault(tap.layer, []).append(tap)
    for layer, taps in layers.items():
        rows.add_row(f"h.{layer}", *map(cell, taps), f"{max(tap.largest for tap in taps):.4g}")
    out.print(rows)
    others = ", ".join(f"{tap.name} {cell(tap)}" for tap in located.taps if tap.layer is None)
    what = "ONNX Runtime's error as a multiple of Hugging Face's" if passed else "error in float64"
    out.print(f"{what}, on {located.case!r}; {others}. float16 holds values up to 65504.", markup=False)


FLOAT32_STEP = 2.0**-23


def print_proof(proof: Proof) -> None:
    """The matrix of seeded defects."""
    out = console()
    rows = table("seeded defect", "with files", "logits alone", "named", "what the diagnosis said of the logits")
    for trial in proof.trials:
        rows.add_row(
            trial.defect,
            "[green]caught[/]" if trial.caught else "[red]MISSED[/]",
            "[green]caught[/]" if trial.caught_by_logits else "[red]MISSED[/]",
            "[green]yes[/]" if trial.named and trial.named_by_logits else "[red]NO[/]",
            trial.said.replace("[", "\\["),
        )
    out.print(rows)
    for name in proof.skipped:
        out.print(f"note: {name}: not possible in this model", markup=False)
    out.print(
        f"{proof.matrix} times 1 + {proof.smallest:.1e} is still noticed by the logits alone; {proof.seconds:.0f} s.",
        markup=False,
    )
    missed = sum(not trial.passed for trial in proof.trials)
    if not proof.sound:
        out.print("[red bold]MISSED[/]: the sound conversion did not pass")
    elif missed:
        out.print(f"[red bold]MISSED[/]: {missed} of {len(proof.trials)} defects were not caught or not named")
    else:
        out.print(f"[green bold]PROVEN[/]: all {len(proof.trials)} defects were caught and named")


def print_ledger(checkpoint: Checkpoint, ledger: Ledger) -> None:
    """A source's config and what becomes of each tensor."""
    out = console()
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
    out.print(fitting(out, rows, "file", "canonical name", "bytes", "layout", "role"))


def ledger_facts(checkpoint: Checkpoint, ledger: Ledger) -> dict[str, Any]:
    """A source for JSON."""
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
    """Several continuations, one after the other; of several for one prompt, beams' with their scores."""
    for number, (old, new, text) in enumerate(zip(done.prompt_ids, done.new_ids, done.texts, strict=True)):
        if len(done.texts) > 1:
            score = f" ({done.scores[number]:.4f})" if done.scores else ""
            click.echo(f"--- {number + 1} of {len(done.texts)}{score}")
        click.echo(" ".join(map(str, old + new)) if ids else prompts[number // done.best] + text)


def print_answers(texts: Sequence[str], answers: Sequence[Answer], top: int) -> None:
    """What a head says of each text, one after the other."""
    for number, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        if len(texts) > 1 and not isinstance(answer, Choice):
            click.echo(f"--- {number + 1} of {len(texts)}")
        for line in answer_lines(text, answer, top):
            click.echo(line)


def answer_lines(text: str, answer: Answer, top: int) -> Iterator[str]:
    """An answer for people; an embedding is its numbers, for whatever it is piped to."""
    match answer:
        case Labels(scores, probabilities):
            for label, score in list(scores.items())[:top]:
                yield f"{score:7.2%}  {label}" if probabilities else f"{score:12.6g}  {label}"
        case TokenLabels(tokens):
            width = max(len(repr(token)) for _, _, token, _, _ in tokens)
            for start, end, token, label, p in tokens:
                yield f"{start:5}–{end:<5} {token!r:{width}}  {label}  {p:.2%}"
        case Span(found, start, end, p):
            yield f"{found.strip()}  ({p:.2%}, characters {start} to {end})"
        case Choice(p, _):
            yield f"{p:7.2%}  {text}"
        case Embedding():
            yield " ".join(f"{value:.6g}" for value in answer.mean)


def answer_facts(answer: Answer) -> dict[str, Any]:
    """An answer for JSON."""
    match answer:
        case Labels(scores):
            return {"labels": scores}
        case TokenLabels(tokens):
            return {
                "tokens": [dict(zip(("start", "end", "text", "label", "probability"), t, strict=True)) for t in tokens]
            }
        case Embedding(tokens):
            return {"mean": answer.mean.tolist(), "tokens": tokens.tolist()}
        case _:
            return asdict(answer)


def score_facts(score: Score) -> dict[str, Any]:
    """A scored text for JSON."""
    return {
        "tokens": len(score.token_ids),
        "log_probability": score.total,
        "perplexity": score.perplexity,
        "token_ids": score.token_ids,
        "log_probs": score.log_probs,
    }


def score_line(scores: Sequence[Score]) -> str:
    """All texts in a line."""
    from converter.runtime.scoring import perplexity

    tokens = sum(len(score.token_ids) for score in scores)
    texts = "1 text" if len(scores) == 1 else f"{len(scores)} texts"
    return f"{texts}, {tokens:,} tokens, perplexity {perplexity(scores):.4f}"


def generation_facts(prompts: Sequence[str], done: Generation) -> dict[str, Any]:
    """A generation for JSON."""
    rows: list[dict[str, Any]] = [
        {"prompt": prompts[number // done.best], "text": text, "prompt_ids": old, "new_ids": new, "ended": ended}
        for number, (text, old, new, ended) in enumerate(
            zip(done.texts, done.prompt_ids, done.new_ids, done.ended, strict=True)
        )
    ]
    for row, score in zip(rows, done.scores, strict=False):
        row["score"] = score
    facts = {
        "rows": rows,
        "prefill_seconds": round(done.prefill_seconds, 4),
        "decode_seconds": round(done.decode_seconds, 4),
        "tokens_per_second": round(done.tokens_per_second, 1),
    }
    return facts if done.speculation is None else facts | {"speculation": speculation_facts(done.speculation)}


def speculation_facts(found: Speculation) -> dict[str, Any]:
    """What was proposed and what of it was right, for JSON."""
    return {
        "runs": found.runs,
        "proposed": found.proposed,
        "accepted": found.accepted,
        "acceptance": round(found.acceptance, 4),
        "tokens_per_run": round(found.tokens_per_run, 3),
    }


def generation_line(done: Generation, n_positions: int) -> str:
    """A generation's figures in a line, and whether the model's positions ended it."""
    new = sum(map(len, done.new_ids))
    full = sum(ended == "n_positions" for ended in done.ended)
    line = f"{new} tokens, {done.tokens_per_second:.0f} tokens/s after {done.prefill_seconds * 1000:.0f} ms of prefill"
    if (found := done.speculation) is not None:
        line += f"; {found.accepted} of {found.proposed} proposals right, {found.tokens_per_run:.2f} tokens a run"
    return line + (f"; stopped at the model's {n_positions} positions" if full else "")


def print_bench(bench: Bench) -> None:
    """How fast a model folder runs, precision by precision, and what a limit was computed from."""
    out = console()
    for title, rows in (("", bench_loads), ("Prefill", bench_prefills), ("Decoding", bench_decodes)):
        if title:
            out.print(f"[bold]{title}[/]")
        out.print(fitting(out, rows(bench), "min–max", "peak", "limit"))
    rounds = "1 round" if bench.rounds == 1 else f"{bench.rounds} rounds"
    threads = "1 thread a core" if bench.settings.threads is None else f"{bench.settings.threads} threads"
    read = f"memory is read at {size(bench.bandwidth)}/s; " if bench.bandwidth is not None else ""
    runtime = f"ONNX Runtime {bench.environment['onnxruntime']}, {bench.settings.provider}, {threads}"
    out.print(f"Medians and extremes of {rounds}; {read}{runtime}; {bench.seconds:.0f} s.")
    if any(row.share_of_limit is not None and row.share_of_limit > 1 for one in bench.precisions for row in one.decode):
        out.print("note: above 100 % of the limit, weights come out of the processor's caches, not out of memory")
    if bench.missing:
        minutes = f"{bench.settings.max_minutes:g} minutes"
        out.print(f"note: not measured within {minutes}: {'; '.join(bench.missing)}", markup=False)


def bench_loads(bench: Bench) -> Table:
    """What it takes to have each precision open, and to run it."""
    numbers = ("load s", "min–max", "memory", "peak", "weights read")
    rows = table("precision", *numbers, right=numbers)
    for one in bench.precisions:
        memory = [size(spread.median) if spread else "–" for spread in (one.resident_bytes, one.peak_bytes)]
        rows.add_row(one.precision, *spread_cells(one.load_seconds), *memory, size(one.weight_bytes))
    return rows


def bench_prefills(bench: Bench) -> Table:
    """The precisions below each other, for each batch and length of prompts."""
    numbers = ("batch", "prompt", "ms", "min–max", "tokens/s")
    rows = table(*numbers[:2], "precision", *numbers[2:], right=numbers)
    for same in zip(*(one.prefill for one in bench.precisions), strict=True):
        for one, row in zip(bench.precisions, same, strict=True):
            took = row.milliseconds
            speed = f"{1000 * row.batch_size * row.prompt_length / took.median:,.0f}" if took else "–"
            place = (str(row.batch_size), str(row.prompt_length), one.precision)
            rows.add_row(*place, *spread_cells(took), speed)
    return rows


def bench_decodes(bench: Bench) -> Table:
    """Likewise for each batch and context."""
    numbers = ("batch", "context", "tokens/s", "min–max", "limit", "of limit")
    rows = table(*numbers[:2], "precision", *numbers[2:], right=numbers)
    for same in zip(*(one.decode for one in bench.precisions), strict=True):
        for one, row in zip(bench.precisions, same, strict=True):
            limit = f"{row.limit:,.0f}" if row.limit is not None else "–"
            share = f"{row.share_of_limit:.0%}" if row.share_of_limit is not None else "–"
            place = (str(row.batch_size), str(row.context), one.precision)
            rows.add_row(*place, *spread_cells(row.tokens_per_second), limit, share)
    return rows


def spread_cells(spread: Spread | None) -> tuple[str, str]:
    """A median, and the extremes."""
    if spread is None:
        return "–", ""
    digits = 3 if spread.median < 1 else 2 if spread.median < 10 else 1 if spread.median < 1000 else 0
    low, high = (f"{value:,.{digits}f}" for value in (spread.minimum, spread.maximum))
    return f"{spread.median:,.{digits}f}", f"{low}–{high}"
