"""Draw the figures of the documentation from a real run of the model, as SVG in the colours of the page around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D
from run import inside, report, run, shown

from converter.graph.outputs import OPERATIONS
from converter.parity.diagnosis.taps import TapReport
from converter.parity.report.drawing import FULL_WIDTH, HALF_WIDTH, PAINT, Plot, draw, logarithmic
from converter.weights.precisions import PRECISIONS
from reference.activations import gelu, gelu_tanh
from reference.model import causal_mask

ATTENTION_LAYER = 1  # the layer whose heads are drawn
CELL = 0.92
SHADES = 10  # of a grid that is one of many
LIGHTER = 0.5  # of a cell with a text on it
TOKEN_WIDTH = 11  # characters


def cells(axes: Axes, strengths: np.ndarray, colour: str = "graph") -> None:
    """Draw a grid of squares. A stronger value gives a fuller square; the first row is on top."""
    rows, columns = strengths.shape
    for (row, column), strength in np.ndenumerate(strengths):
        place = (column + (1 - CELL) / 2, row + (1 - CELL) / 2), CELL, CELL
        axes.add_patch(Rectangle(*place, facecolor=PAINT["faint"], alpha=0.35, linewidth=0))
        if strength > 0.01:
            axes.add_patch(Rectangle(*place, facecolor=PAINT[colour], alpha=round(float(strength), 2), linewidth=0))
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)


def label(axes: Axes, queries: list[str], keys: list[str]) -> None:
    """Name the rows and columns of a grid."""
    axes.set_yticks(np.arange(len(queries)) + 0.5, queries)
    axes.set_xticks(np.arange(len(keys)) + 0.5, keys, rotation=90)
    axes.xaxis.tick_top()


def mask() -> Plot:
    """Draw who may look where: all tokens at once, with a cache, and beside padding."""
    full, padded = torch.ones(1, 6, dtype=torch.int64), torch.tensor([[0, 0, 1, 1, 1, 1]])
    panels = {
        "all six tokens at once": (full, 6),
        "the last two, four are cached": (full, 2),
        "two of padding, then four": (padded, 6),
    }

    def paint(figure: Figure) -> None:
        for axes, (title, (attention_mask, new)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            seen = causal_mask(attention_mask, new)[0, 0].numpy().astype(float)
            cells(axes, seen)
            label(axes, [str(6 - new + i) for i in range(new)], [str(i) for i in range(6)])
            axes.set_xlabel(title, labelpad=8)
            axes.set_ylabel("query" if axes.get_subplotspec().is_first_col() else "")

    return draw("mask", "The causal mask in three situations", (FULL_WIDTH, 3.6), paint)


def attention() -> Plot:
    """Draw the attention weights of every head of one layer."""
    weights = run().values[f"h.{ATTENTION_LAYER}.attn.sdpa.dropout"][0].numpy()
    tokens = run().tokens

    def paint(figure: Figure) -> None:
        grid = figure.subplots(2, 3)
        for head, (axes, heat) in enumerate(zip(grid.flat, weights, strict=True)):
            cells(axes, heat)
            label(axes, tokens if axes.get_subplotspec().is_first_col() else [""] * len(tokens), tokens)
            axes.tick_params(labelsize=7)
            axes.set_xlabel(f"head {head}", labelpad=6)

    what = f"Attention weights of the {len(weights)} heads of layer {ATTENTION_LAYER}, query by key"
    return draw("attention", what, (FULL_WIDTH, 8.6), paint)


def shade(axes: Axes, strengths: np.ndarray) -> None:
    """Draw a grid as ``cells`` does, in ten steps and with one path for each: many grids stay a small file."""
    rows, columns = strengths.shape
    axes.add_patch(Rectangle((0, 0), columns, rows, facecolor=PAINT["faint"], alpha=0.35, linewidth=0))
    steps = np.rint(strengths * SHADES).astype(int)
    for step in range(1, SHADES + 1):
        squares = [
            Outline.unit_rectangle().transformed(Affine2D().translate(x, y)) for y, x in np.argwhere(steps == step)
        ]
        if squares:
            path = Outline.make_compound_path(*squares)
            axes.add_patch(PathPatch(path, facecolor=PAINT["graph"], alpha=step / SHADES, linewidth=0))
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def heads() -> Plot:
    """Draw the attention of every head of every layer, as a graph returns it."""
    layers = [inside()[f"attentions.{i}"] for i in range(run().config.n_layer)]

    def paint(figure: Figure) -> None:
        for (layer, head), axes in np.ndenumerate(figure.subplots(len(layers), len(layers[0]))):
            shade(axes, layers[layer][head])
            axes.set_ylabel("" if head else f"layer {layer}")
            axes.set_xlabel(f"head {head}" if layer == len(layers) - 1 else "", labelpad=6)

    what = f"Attention of {len(layers)} layers with {len(layers[0])} heads each, query by key"
    return draw("heads", what, (FULL_WIDTH, 9.6), paint)


@torch.no_grad()
def lens() -> Plot:
    """Draw what the output head makes of each hidden state that a graph returns: the likeliest next token."""
    model = run().model
    *early, last = (torch.tensor(inside()[f"hidden_states.{i}"]).double() for i in range(run().config.n_layer + 1))
    chances = [model.lm_head(state).softmax(dim=-1) for state in (*map(model.ln_f, early), last)]
    sure, tokens = (torch.stack(parts).numpy() for parts in zip(*(each.max(dim=-1) for each in chances), strict=True))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        cells(axes, LIGHTER * sure)
        for (layer, at), token in np.ndenumerate(tokens):
            text = shown(int(token))
            short = text if len(text) <= TOKEN_WIDTH else f"{text[: TOKEN_WIDTH - 1]}…"
            axes.text(at + 0.5, layer + 0.5, short, ha="center", va="center", fontsize=6.5)
        label(axes, ["embeddings", *(f"layer {i}" for i in range(len(sure) - 1))], run().tokens)
        axes.set_aspect("auto")

    return draw("lens", "The likeliest next token at each position, after each layer", (FULL_WIDTH, 3.8), paint)


def gelus() -> Plot:
    """Draw the two GELUs, and their difference."""
    x = torch.linspace(-5, 5, 401, dtype=torch.float64)
    exact, tanh = gelu(x), gelu_tanh(x)

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(x, x.clamp(min=0), color=PAINT["noise"], linestyle=":", label="relu")
        left.plot(x, exact, color=PAINT["graph"], linewidth=2.6, label="gelu")
        left.plot(x, tanh, color=PAINT["ink"], linestyle="--", label="gelu_new")
        left.set(xlabel="x", ylim=(-0.5, 3), xlim=(-4, 3))
        left.legend(loc="upper left")
        right.axhline(0, color=PAINT["noise"], linewidth=0.6)
        right.plot(x, (tanh - exact) * 1e4, color=PAINT["bad"])
        right.set(xlabel="x", ylabel="(gelu_new − gelu) · 10⁴", xlim=(-5, 5))

    return draw("gelu", "gelu and gelu_new, and their difference", (FULL_WIDTH, 3.4), paint)


def stream() -> Plot:
    """Draw how large the residual stream is, and what each branch adds to it."""
    values, layers = run().values, range(run().config.n_layer)

    def size(path: str) -> float:
        return float(values[path].square().mean().sqrt())

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        at = np.arange(len(layers))
        axes.bar(
            at - 0.16, [size(f"h.{i}.attn.c_proj") for i in layers], 0.3, color=PAINT["graph"], label="attention adds"
        )
        axes.bar(
            at + 0.16, [size(f"h.{i}.mlp.c_proj") for i in layers], 0.3, color=PAINT["half-1"], label="the MLP adds"
        )
        sizes = [size("drop"), *(size(f"h.{i}.mlp_residual") for i in layers)]
        axes.plot([-0.5, *(at + 0.5)], sizes, "o-", color=PAINT["ink"], label="the stream", markersize=4)
        axes.set(xlabel="layer", ylabel="RMS", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper left")

    return draw(
        "stream", "RMS of the residual stream and of what each branch adds, layer by layer", (HALF_WIDTH, 3.4), paint
    )


def errors() -> Plot:
    """Draw how the error grows from operation to operation."""
    located = report().localisation
    assert located is not None
    taps = located.taps
    drawn: dict[str, tuple[Callable[[TapReport], float], dict[str, Any]]] = {
        "Hugging Face, float32": (lambda tap: tap.huggingface, {"color": PAINT["noise"], "linewidth": 2.4}),
        "the graph in ONNX Runtime, float32": (lambda tap: tap.onnx, {"color": PAINT["ink"]}),
        "the graph widened to float64": (lambda tap: tap.onnx_float64, {"color": PAINT["graph"]}),
    }

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (error, style) in drawn.items():
            axes.plot([error(tap) or np.nan for tap in taps], marker=".", markersize=3, label=name, **style)
        logarithmic(axes, y=True)
        first = [at for at, tap in enumerate(taps) if tap.name.endswith(OPERATIONS[0]) and tap.layer is not None]
        for at in (*first, first[-1] + len(OPERATIONS)):
            axes.axvline(at - 0.5, color=PAINT["noise"], linewidth=0.6)
        middles = [at - 0.5 + len(OPERATIONS) / 2 for at in first]
        axes.set_xticks(middles, [f"layer {i}" for i in range(len(first))])
        axes.tick_params(axis="x", length=0)
        axes.set(ylabel="RMS error ÷ RMS of the value", xlim=(-1, len(taps)))
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=3)

    return draw(
        "errors",
        "Error of every operation against the float64 truth, in the order of the data",
        (FULL_WIDTH, 4.2),
        paint,
    )


def divergence() -> Plot:
    """Draw how the divergence of each precision is spread over the text."""
    details = report().details
    assert details is not None
    found = {leg.precision: leg for leg in details.measured if leg.ships(leg.precision)}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, leg in found.items():
            kl = np.sort(leg.total.kl)
            kl = kl[kl > 0]
            axes.plot(kl, np.linspace(0, 1, len(kl)), color=PAINT[PRECISIONS[name].colour], label=name)
            axes.plot(leg.total.kl.mean(), 0.0, "^", color=PAINT[PRECISIONS[name].colour], clip_on=False, zorder=5)
        logarithmic(axes, x=True)
        axes.set(xlabel="KL(truth ‖ precision) at a position, nats", ylabel="share of positions below", ylim=(0, 1))
        axes.legend(loc="upper left")

    return draw(
        "divergence", "Distribution over positions of the KL divergence of each precision", (HALF_WIDTH, 3.6), paint
    )


FIGURES: dict[str, Callable[[], Plot]] = {
    "mask": mask,
    "attention": attention,
    "heads": heads,
    "lens": lens,
    "gelu": gelus,
    "stream": stream,
    "errors": errors,
    "divergence": divergence,
}
