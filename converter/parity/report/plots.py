"""Draw the figures of the HTML report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from converter.graph.outputs import OPERATIONS
from converter.parity.diagnosis.taps import TAP_FLOAT64_LIMIT, TAP_LIMIT, Localisation, TapReport
from converter.parity.legs.cases import Case
from converter.parity.legs.half import FLOAT16_MAXIMUM
from converter.parity.legs.identity import LegKind
from converter.parity.report.drawing import (
    FULL_WIDTH,
    HALF_WIDTH,
    PAINT,
    Plot,
    draw,
    leg_name,
    leg_styles,
    legend,
    logarithmic,
)
from converter.parity.report.report import Details
from converter.parity.verdict.judge import MeasuredLeg
from converter.parity.verdict.metrics import BIN_SHIFT, FLOAT32_EPSILON, TOP_K, Distance, bin_edges, joined

# An operation that is rounded once is off by about this share, in RMS. Anything below counts as exact.
ROUNDED_ONCE = FLOAT32_EPSILON / 4

# Bins an octave in a histogram; those of ``metrics`` are finer than the eye needs.
BINS_PER_OCTAVE, FINE_BINS_PER_OCTAVE = 4, 2 ** (23 - BIN_SHIFT)  # float32 has 23 bits of mantissa


def ratio(tap: TapReport) -> float:
    """Return the graph's error in float32 as a multiple of Hugging Face's."""
    return max(tap.onnx, ROUNDED_ONCE) / max(tap.huggingface, ROUNDED_ONCE)


def shows_float64(localisation: Localisation, passed: bool) -> bool:
    """Tell whether the map shows the error in float64: on a mismatch, unless only float32 is wrong or was run."""
    if any(math.isnan(tap.onnx_float64) for tap in localisation.taps):
        return False
    wrong = any(tap.onnx_float64 > TAP_FLOAT64_LIMIT for tap in localisation.taps)
    return not passed and (wrong or not any(tap.diverges for tap in localisation.taps))


def operations(localisation: Localisation, passed: bool) -> Plot:
    """Draw the error of each operation in each layer as a map."""
    float64 = shows_float64(localisation, passed)
    layers = 1 + max((tap.layer for tap in localisation.taps if tap.layer is not None), default=0)
    what = "the graph's error in float64" if float64 else "the graph's float32 error ÷ Hugging Face's"
    label = f"Map of {what}, by layer and operation"
    return draw(
        "operations", label, (FULL_WIDTH, 1.1 + 0.27 * layers), lambda figure: _map(figure, localisation, float64)
    )


def _map(figure: Figure, localisation: Localisation, float64: bool) -> None:
    """Draw the cells of the map. The colour tells on which side of the expected value an error is, and how far."""
    axes = figure.subplots()
    taps = [tap for tap in localisation.taps if tap.layer is not None]
    for tap in taps:
        assert tap.layer is not None
        column = OPERATIONS.index(tap.name.split(".", 2)[2])
        value = tap.onnx_float64 if float64 else ratio(tap)
        off = _decades(value / TAP_FLOAT64_LIMIT) / 4 if float64 else _decades(value) / math.log10(TAP_LIMIT)
        first = tap.name == localisation.first
        _cell(axes, column, tap.layer, off, _short(value) if float64 else f"{value:.2f}", marked=first)
    layers = 1 + max((tap.layer or 0 for tap in taps), default=0)
    _grid_axes(axes, [str(i) for i in range(layers)], OPERATIONS)
    axes.set_ylabel("layer")


def _decades(value: float) -> float:
    """Return the decimal logarithm, limited to ±30; NaN gives 30."""
    return math.log10(min(max(value, 1e-30), 1e30)) if not math.isnan(value) else 30.0


def _short(value: float) -> str:
    """Return an error as a text that fits into a cell: ``3e-9``."""
    if not math.isfinite(value):
        return "∞"
    return re.sub(r"e-0?", "e-", f"{value:.0e}") if value else "0"


def _cell(axes: Axes, column: int, row: int, off: float, text: str, marked: bool = False) -> None:
    """Draw a cell: blue if ``off`` is below 0, orange if it is above. The colour is full at ±1, and absent at 0."""
    colour = PAINT["bad" if off > 0 else "good"]
    strength = 0.75 * min(1.0, abs(off))
    place = (column + 0.03, row + 0.06), 0.94, 0.88
    axes.add_patch(Rectangle(*place, facecolor=PAINT["faint"], alpha=0.3, linewidth=0))
    axes.add_patch(Rectangle(*place, facecolor=colour, alpha=round(strength, 3), linewidth=0))
    if marked:
        axes.add_patch(Rectangle(*place, fill=False, edgecolor=PAINT["ink"], linewidth=1.2))
    axes.text(column + 0.5, row + 0.52, text, ha="center", va="center", fontsize=7.5)


def _grid_axes(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Set up a grid of cells, with the first row on top."""
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    tilted = max(map(len, columns)) > 6
    turn: dict[str, Any] = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if tilted else {}
    axes.set_xticks(np.arange(len(columns)) + (0.3 if tilted else 0.5), columns, **turn)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)


def maxima(localisation: Localisation) -> Plot:
    """Draw the largest values of each layer, which float16 must hold."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        inside = [(tap.layer, tap.largest) for tap in localisation.taps if tap.layer is not None]
        layers = sorted({layer for layer, _ in inside})
        largest = [max(value for at, value in inside if at == layer) for layer in layers]
        axes.plot(*zip(*inside, strict=True), ".", color=PAINT["noise"], markersize=3, label="each operation")
        axes.plot(layers, largest, "o-", color=PAINT["ink"], markersize=3.5, label="the largest")
        axes.axhline(FLOAT16_MAXIMUM, color=PAINT["bad"], linestyle="--", label=f"float16 holds {FLOAT16_MAXIMUM:.0f}")
        logarithmic(axes, y=True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="layer", ylabel="largest absolute value")
        legend(figure)

    label = f"Largest absolute value of every operation by layer, against float16's maximum of {FLOAT16_MAXIMUM:.0f}"
    return draw("maxima", label, (HALF_WIDTH, 3.4), paint)


# --- Along the text ---


def positions(case: Case) -> np.ndarray:
    """Return the positions that are compared, in the order of a ``Distance``, ``[positions]``."""
    if case.last is not None:
        return case.position_ids[np.arange(len(case.last)), case.last]
    return case.kept(case.position_ids)[case.real]


def usable(leg: MeasuredLeg, cases: Sequence[Case]) -> list[tuple[Case, Distance]]:
    """Return the cases in which a leg has a distance at every position, with these distances."""
    return [
        (case, leg.distances[case.name])
        for case in cases
        if case.name in leg.distances and not leg.distances[case.name].misshapen
    ]


def _by_position(
    leg: MeasuredLeg, cases: Sequence[Case], value: Callable[[Distance], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions, and the mean over all cases of the finite values there.

    A NaN stands between stretches of positions.
    """
    parts = [(positions(case), value(distance)) for case, distance in usable(leg, cases)]
    if not parts:
        return np.empty(0), np.empty(0)
    at, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    at, values = at[np.isfinite(values)], values[np.isfinite(values)]
    if not len(at):
        return np.empty(0), np.empty(0)
    means = np.full(int(at.max()) + 1, math.nan)
    places, index = np.unique(at, return_inverse=True)
    means[places] = np.bincount(index, values) / np.bincount(index)
    known = ~np.isnan(means)
    shown = known | np.roll(known, 1)  # one NaN after each stretch is enough to interrupt the line
    return np.flatnonzero(shown), means[shown]


def error_by_position(details: Details) -> Plot:
    """Draw the RMS error of each leg along the text."""
    limits, floor = details.judge.limits, _floor(details)[0]

    def squares(distance: Distance) -> np.ndarray:
        return (distance.rms / details.baseline.scale) ** 2

    def paint(figure: Figure) -> None:
        upper, lower = _along(figure, details, squares, np.sqrt)
        label = f"{limits.rms:g} × the noise floor"
        upper.axhline(limits.rms * floor, color=PAINT["bad"], linestyle="--", label=label)
        for axes in (upper, lower):
            axes.set_ylabel("RMS error ÷ scale")
        legend(figure)

    label = "RMS error of every leg by position in the text, as a share of the logits' scale"
    return draw("error-by-position", label, (HALF_WIDTH, 4.8), paint)


def kl_by_position(details: Details) -> Plot:
    """Draw the KL divergence of each leg along the text."""

    def paint(figure: Figure) -> None:
        for axes in _along(figure, details, lambda distance: distance.kl, np.asarray):
            axes.set_ylabel("KL(truth‖leg), nats")
        legend(figure)

    label = "Kullback-Leibler divergence of every leg's distribution from the truth's, by position in the text"
    return draw("kl-by-position", label, (HALF_WIDTH, 4.8), paint)


def _along(
    figure: Figure,
    details: Details,
    value: Callable[[Distance], np.ndarray],
    shown: Callable[[np.ndarray], np.ndarray],
) -> tuple[Axes, Axes]:
    """Draw every leg along the text; returns the upper and the lower axes.

    The legs in float64 stand below, because one scale for all would flatten the others.
    """
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    styles = leg_styles(details.measured)
    for leg in details.measured:
        at, means = _by_position(leg, details.baseline.cases, value)
        values = np.where(means > 0, shown(means), math.nan)  # 0 has no place on a logarithmic axis
        marker = "." if np.isfinite(values).sum() < 4 else ""
        axes = lower if leg.kind is LegKind.SEMANTICS else upper
        axes.plot(at, values, label=leg_name(leg), marker=marker, **styles[leg.name])
    for axes in (upper, lower):
        logarithmic(axes, y=True)
    lower.set_xlabel("position in the text")
    return upper, lower


def _floor(details: Details) -> tuple[float, float]:
    """Return RMS and maximum of the noise, as shares of the scale, over the cases of the leg that has most."""
    longest = max(details.measured, key=lambda leg: len(leg.distances))
    rms, maximum = details.judge.floor(longest.distances)
    return rms / details.baseline.scale, maximum / details.baseline.scale


# --- Distributions ---


def histogram(details: Details) -> Plot:
    """Draw how the errors of all logits are distributed."""
    scale, maximum = details.baseline.scale, details.judge.limits.maximum * _floor(details)[1]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        styles = leg_styles(details.measured)
        for leg in details.measured:
            density, edges, exact = _density(leg.total)
            note = f" ({exact:.0%} exact)" if exact >= 0.005 else ""
            style = dict(styles[leg.name])
            if leg.kind is LegKind.NOISE:
                axes.stairs(density, edges / scale, fill=True, color=style["color"], alpha=0.15, linewidth=0)
            axes.stairs(density, edges / scale, label=leg_name(leg) + note, **style)
        axes.axvline(maximum, color=PAINT["bad"], linestyle="--", label="limit of the largest error")
        logarithmic(axes, x=True)
        axes.set(xlabel="absolute error of a logit ÷ scale", ylabel="share of logits per octave")
        legend(figure)

    return draw("histogram", "Histogram of the errors of all logits, for every leg", (HALF_WIDTH, 4.8), paint)


def _density(total: Distance) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the share of errors per octave, the edges of the bins in units of the logits, and the share that is 0.

    The first octave of bins has zeros and what float32 hardly tells from 0. The last has what is not finite.
    """
    merged = FINE_BINS_PER_OCTAVE // BINS_PER_OCTAVE
    counts = total.histogram.reshape(-1, merged).sum(axis=1)[BINS_PER_OCTAVE:-BINS_PER_OCTAVE]
    edges = bin_edges()[::merged][BINS_PER_OCTAVE:-BINS_PER_OCTAVE]
    everything = max(1, int(total.histogram.sum()))
    exact = float(total.histogram[:FINE_BINS_PER_OCTAVE].sum()) / everything
    filled = np.flatnonzero(counts)
    if not len(filled):
        return np.zeros(1), np.array([1.0, 2.0]), exact
    kept = slice(filled[0], filled[-1] + 1)
    bounds = edges[filled[0] : filled[-1] + 2]
    return counts[kept] / everything / np.diff(np.log2(bounds)), bounds, exact


def agreement(details: Details) -> Plot:
    """Draw the share of the truth's k likeliest tokens that are among the leg's k likeliest, for every leg and k."""
    truths = {case.name: likeliest(details.baseline.truths[case.name][case.real]) for case in details.baseline.cases}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, leg in enumerate(details.measured):
            pairs = [(truths[case.name], distance.likeliest) for case, distance in usable(leg, details.baseline.cases)]
            for k in range(1, TOP_K + 1):
                share = _shared(pairs, k)
                off = 0.0 if share == 1 else 1 + max(-4.0, _decades(1 - share)) / 4
                _cell(axes, k - 1, row, off, f"{100 * share:.4g} %")
        _grid_axes(axes, [leg_name(leg) for leg in details.measured], [f"top {k}" for k in range(1, TOP_K + 1)])

    label = f"Share of the truth's likeliest tokens that are among each leg's, for the top 1 to {TOP_K}"
    return draw("agreement", label, (HALF_WIDTH, 0.5 + 0.32 * len(details.measured)), paint)


def likeliest(logits: np.ndarray) -> np.ndarray:
    """Return the ``TOP_K`` likeliest tokens of each position, ``[positions, at most TOP_K]``."""
    few = min(TOP_K, logits.shape[-1])
    candidates = np.argpartition(-logits, few - 1, axis=-1)[:, :few]
    order = np.argsort(-np.take_along_axis(logits, candidates, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(candidates, order, axis=-1)


def _shared(pairs: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> float:
    """Return the share of the first ``k`` tokens that are among the other's first ``k``, over all positions.

    It is 0 if there are none.
    """
    found = [(ours[:, :k, None] == theirs[:, None, :k]).any(axis=-1) for ours, theirs in pairs]
    hits, of = sum(int(part.sum()) for part in found), sum(part.size for part in found)
    return hits / of if of else 0.0


def probabilities(leg: MeasuredLeg) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities that truth and leg give to the tokens that follow in the text; each token once."""
    scored = [distance for name, distance in leg.distances.items() if name in leg.scored]
    total = joined(scored)
    true, found = np.exp(total.log_p_true), np.exp(total.log_p)
    known = np.isfinite(true) & np.isfinite(found)
    return true[known], found[known]


def calibration(details: Details, leg: MeasuredLeg) -> Plot:
    """Draw the leg's probability of the token that follows against the truth's, and by how much they differ."""

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        true, found = probabilities(leg)
        dots: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 3, "markeredgewidth": 0, "alpha": 0.6}
        hollow = dots | {"markerfacecolor": "none", "markeredgewidth": 0.7, "alpha": 1}
        shown = found > 0
        left.axline((1, 1), (0.1, 0.1), color=PAINT["noise"], linewidth=0.8)
        left.plot(true[shown], found[shown], color=PAINT["ink"], **dots)
        left.set(xlabel="p of the truth", ylabel=f"p of {leg_name(leg)}")
        for other in _yardsticks(details, leg):
            true, found = probabilities(other)
            change = np.abs(found / true - 1)
            looks = dots | {"color": PAINT["ink"]} if other is leg else hollow | {"color": PAINT["noise"]}
            right.plot(true[change > 0], change[change > 0], label=leg_name(other), **looks)
        right.set(xlabel="p of the truth", ylabel="|p of the leg ÷ p of the truth − 1|")
        for axes in (left, right):
            logarithmic(axes, x=True, y=True)
        legend(figure)

    whose = leg_name(leg)
    label = f"Probability of the token that follows, of {whose} against the truth's, and their relative difference"
    return draw("calibration", label, (FULL_WIDTH, 3.7), paint)


def _yardsticks(details: Details, leg: MeasuredLeg) -> list[MeasuredLeg]:
    """Return a leg, and before it the noise leg that was run on most cases."""
    noise = [other for other in details.measured if other.kind is LegKind.NOISE and other is not leg]
    return [*sorted(noise, key=lambda other: len(other.distances))[-1:], leg]
