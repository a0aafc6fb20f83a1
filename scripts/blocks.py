"""Measure ways to cut weights into blocks: quality on the bundled checkpoint, speed on a random one of 124 M
parameters.

    python scripts/blocks.py                  # both; the choice is in converter/weights/precisions.py
    python scripts/blocks.py --no-speed

Quality is compared with float32 on the held-out text. Speed is that of decoding: the candidates are measured in turn,
and the figures are medians of --rounds.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from benchmark import checkpoint
from quality import quality, windows

from converter import convert, load
from converter.data import CHECKPOINT
from converter.runtime.session import Model
from converter.weights import precisions
from converter.weights.precisions import Blocks, Scheme

NEW_TOKENS, PROMPT = 64, 128


def candidates() -> dict[str, Scheme]:
    """Return the schemes that are worth a trial, by name."""
    found = {}
    for size in (32, 64, 128):
        eight = Blocks(8, size, symmetric=True)
        found[f"8 bit, {size} symmetric"] = Scheme(eight, eight)
    head = Blocks(8, 128, symmetric=True)
    for size in (16, 32, 64, 128):
        for symmetric in (True, False):
            four = Blocks(4, size, symmetric)
            kind = "symmetric" if symmetric else "asymmetric"
            found[f"4 bit, {size} {kind}, head 8 bit"] = Scheme(four, head)
            found[f"4 bit, {size} {kind}, head too"] = Scheme(four, four)
    return found


def decode(model: Model) -> float:
    """Return the tokens a second after a prompt."""
    ids = np.arange(1, PROMPT + 1)[None] % model.config.vocab_size
    done = model.generate(ids.tolist(), max_new_tokens=NEW_TOKENS)
    return done.tokens_per_second


def folder(source: Path, out: Path, scheme: Scheme) -> Path:
    """Convert into a model folder with one precision, cut as ``scheme`` says; return the folder."""
    precisions.PRECISIONS["int8"] = replace(precisions.PRECISIONS["int8"], scheme=scheme)
    convert(source, out, precision="int8", force=True, scan=False)
    return out


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/gpt2onnx-benchmark"), show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--speed/--no-speed", default=True)
@click.option("--only", default="", help="Only candidates whose name contains this.")
def main(work: Path, rounds: int, speed: bool, only: str) -> None:
    schemes = {name: scheme for name, scheme in candidates().items() if only in name}
    convert(CHECKPOINT, work / "blocks-exact", force=True)
    exact = load(work / "blocks-exact")
    ids = windows(exact)
    true = exact.logits(ids)
    speeds: dict[str, list[float]] = {name: [] for name in schemes}
    if speed:
        source = checkpoint(work, "gpt2")
        models = {name: load(folder(source, work / f"blocks-{i}", s)) for i, (name, s) in enumerate(schemes.items())}
        for _ in range(rounds):
            for name, model in models.items():
                speeds[name].append(decode(model))
                time.sleep(0.1)
        models.clear()
    click.echo(f"{'':34} perplexity ratio   mean KL   same top-1   tokens/s")
    for name, scheme in schemes.items():
        found = quality(true, load(folder(CHECKPOINT, work / "blocks-trial", scheme)).logits(ids), ids)
        fast = f"{statistics.median(speeds[name]):8.0f}" if speeds[name] else ""
        click.echo(f"{name:34} {found.ratio:16.4f} {found.kl:9.1e} {found.top_1:12.3f} {fast}")


if __name__ == "__main__":
    main()
