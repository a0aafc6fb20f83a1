"""What ``bench`` measured, as a drawing."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from converter.errors import OutputError
from converter.files import reason
from converter.runtime.benching.results import Bench, Spread

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gpt2onnx",  # names of clip paths would be random
    "text.parse_math": False,  # a $ in a folder's name is a $
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "xtick.labelsize": 8,
    "ytick.minor.size": 0,
}
COLOURS = {"fp32": "#4878a8", "fp16": "#7fb2d0", "int8": "#d9803f", "int4": "#e8b36a"}
INK, FAINT = "#333333", "#aaaaaa"
LIMIT = "limit of the memory"
SIZE, MEMORY_WIDTH = (12.0, 4.2), 4  # inches; groups of bars
GROUP_WIDTH = 0.8  # of the space that is there for a group of bars


def write(bench: Bench, file: Path) -> None:
    """Draw decoding, prefill and memory into an SVG file; the same figures give the same bytes.

    Raises:
        OutputError: it cannot be written.
    """
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=SIZE, layout="constrained")
        paint(figure, bench)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Title": f"gpt2onnx bench {bench.out}"})
    try:
        file.write_text(drawn.getvalue(), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {reason(error)}") from error


def paint(figure: Figure, bench: Bench) -> None:
    """Three diagrams side by side."""
    first = bench.precisions[0]
    ratios = (len(first.decode) + 1, len(first.prefill) + 1, MEMORY_WIDTH)
    left, middle, right = figure.subplots(1, 3, width_ratios=ratios)
    _bars(left, {one.precision: [row.tokens_per_second for row in one.decode] for one in bench.precisions})
    _limits(left, bench)
    groups = [f"{row.batch_size} × {row.context}" for row in first.decode]
    left.set_xticks(range(len(groups)), groups)
    left.set(title="Decoding", xlabel="batch × context", ylabel="tokens/s")
    _bars(middle, {one.precision: [row.milliseconds for row in one.prefill] for one in bench.precisions})
    groups = [f"{row.batch_size} × {row.prompt_length}" for row in first.prefill]
    middle.set_xticks(range(len(groups)), groups)
    middle.set(title="Prefill", xlabel="batch × prompt", ylabel="ms")
    if any(row.milliseconds for one in bench.precisions for row in one.prefill):
        middle.set_yscale("log")
        middle.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _memory(right, bench)
    shown = sorted(zip(*left.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] == LIMIT)
    figure.legend(*zip(*shown, strict=True), loc="outside lower center", ncols=5)


def _places(groups: int, number: int, of: int) -> np.ndarray:
    """The middle of bar ``number`` of ``of`` in each group."""
    return np.arange(groups) + GROUP_WIDTH * ((number + 0.5) / of - 0.5)


def _bars(axes: Axes, table: Mapping[str, Sequence[Spread | None]]) -> None:
    """Groups of bars, one of each precision, with their extremes; none for what was not measured."""
    nothing = Spread(np.nan, np.nan, np.nan)
    for number, (precision, spreads) in enumerate(table.items()):
        found = [spread or nothing for spread in spreads]
        middle = np.array([spread.median for spread in found])
        extremes = [middle - [spread.minimum for spread in found], [spread.maximum for spread in found] - middle]
        places = _places(len(found), number, len(table))
        axes.bar(places, middle, GROUP_WIDTH / len(table), color=COLOURS[precision], label=precision)
        axes.errorbar(places, middle, extremes, fmt="none", ecolor=INK, elinewidth=0.8)


def _limits(axes: Axes, bench: Bench) -> None:
    """What memory allows, as a line above each bar."""
    if bench.bandwidth is None:
        return
    count = len(bench.precisions)
    half = GROUP_WIDTH / count / 2
    for number, one in enumerate(bench.precisions):
        places = _places(len(one.decode), number, count)
        limits = [np.nan if row.limit is None else row.limit for row in one.decode]
        axes.hlines(limits, places - half, places + half, colors=INK, linewidth=1.2, label="" if number else LIMIT)


def _memory(axes: Axes, bench: Bench) -> None:
    """After loading, and the most."""
    for number, one in enumerate(bench.precisions):
        for spread, colour in ((one.peak_bytes, FAINT), (one.resident_bytes, COLOURS[one.precision])):
            if spread is not None:
                axes.bar(number, spread.median / 1e6, GROUP_WIDTH, color=colour)
    axes.set_xticks(range(len(bench.precisions)), [one.precision for one in bench.precisions])
    axes.set(title="Memory", xlabel="once loaded; grey: at most", ylabel="MB")
