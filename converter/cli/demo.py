"""``gpt2onnx demo``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from converter.cli import terminal
from converter.cli.check import run_check
from converter.cli.check_tables import print_report
from converter.cli.convert import conversion_line
from converter.cli.generation import Stream, line
from converter.cli.group import MISMATCH, cli
from converter.cli.options import OUTPUT_GROUP, complete_paths, debug_option

DEMO_PROMPT = "The following"
DEMO_TOKENS = 120


@cli.command(
    short_help="The whole way, on a small model that ships with the tool.",
    examples=["gpt2onnx demo", "gpt2onnx demo tiny-onnx"],
    groups=OUTPUT_GROUP,
)
@click.argument(
    "out",
    required=False,
    type=click.Path(path_type=Path),
    shell_complete=complete_paths("dir"),
    help="Keep the model folder there; by default it is removed again.",
)
@click.option("--force", is_flag=True, help="Replace an OUT that gpt2onnx wrote.")
@debug_option
def demo(out: Path | None, force: bool) -> None:
    """Convert, check and run the small GPT-2 that ships with gpt2onnx.

    It was trained on Python's own language reference.
    """
    import tempfile

    if out is not None:
        _demo(out, force)
        return
    with tempfile.TemporaryDirectory(prefix="gpt2onnx-") as folder:
        _demo(Path(folder) / "tiny-onnx", force)


def _demo(out: Path, force: bool) -> None:
    from converter.data import CHECKPOINT
    from converter.folder.convert import convert as run_convert
    from converter.parity import check as parity
    from converter.runtime.opening import load

    source = terminal.short(CHECKPOINT)
    click.echo(f"$ gpt2onnx convert {source} {out}")
    began = time.monotonic()
    done = run_convert(source, out, force=force)
    click.echo(conversion_line(done, time.monotonic() - began))

    click.echo(f"\n$ gpt2onnx check {source} {out}")
    passed = True
    if parity.available():
        report = run_check(str(source), out, show=True)
        print_report(report)
        passed = report.passed
    else:
        click.echo("skipped: it needs torch and transformers (pip install 'gpt2onnx[check]')")

    click.echo(f"\n$ gpt2onnx generate {out} '{DEMO_PROMPT}' -n {DEMO_TOKENS} --temperature 0.7 --top-k 20 --seed 11")
    model, stream = load(out, large_pages=True), Stream(DEMO_PROMPT)
    generation = model.generate(
        [DEMO_PROMPT], max_new_tokens=DEMO_TOKENS, temperature=0.7, top_k=20, seed=11,
        on_text=stream.show,
    )  # fmt: skip
    stream.end()
    terminal.say(line(generation, model.config.n_positions))
    if not passed:
        sys.exit(MISMATCH)
