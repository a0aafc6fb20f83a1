"""Draw figures as SVG that takes its colours and its typeface from the page around it."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from converter.parity.legs.identity import LegKind, Runner
from converter.parity.verdict.judge import MeasuredLeg
from converter.weights.precisions import PRECISIONS

# Each colour stands for a variable of the page's stylesheet, which has a value for light and one for dark.
VARIABLES = (
    "ink", "faint", "bad", "good", "noise",
    "numerics", "semantics", "graph", "half-1", "half-2", "lossy-1", "lossy-2", "other-1", "other-2",
)  # fmt: skip
PAINT = {name: f"#0101{number:02x}" for number, name in enumerate(VARIABLES, 1)}

COLOURS = {
    LegKind.NUMERICS: ("numerics",),
    LegKind.SEMANTICS: ("semantics",),
    LegKind.NOISE: ("noise",),
    LegKind.HALF: ("half-1", "half-2"),
    LegKind.LOSSY: ("lossy-1", "lossy-2"),
    LegKind.OTHER: ("other-1", "other-2"),
}
# The folder's own graphs look the same whatever else was run, and are drawn in front.
SHIPPED = {"linestyle": "-", "linewidth": 1.5, "zorder": 4}
WIDENED = {"color": PAINT["graph"], "linestyle": "-", "zorder": 3}
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's typeface: it can be selected and read out
    "svg.hashsalt": "gpt2onnx",  # else the names of clip paths are random
    "text.parse_math": False,  # a $ in a file's name is a $
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PAINT["faint"],
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.0,
    "lines.linewidth": 1.1,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), PAINT["ink"])

# How ElementTree writes the namespaces of SVG, and the elements that only a file needs.
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
ONLY_IN_FILES = (f"{SVG}metadata", f"{SVG}style")

# Widths in inches, of figures side by side and of wide ones; the page shows both at one scale.
HALF_WIDTH, FULL_WIDTH = 5.4, 11.2

NAME_WIDTH = 36  # the most characters of a leg's name


@dataclass(frozen=True)
class Plot:
    """A figure of the page.

    Attributes:
        svg: the markup for the page.
        label: what it shows, in words.
        wide: whether it takes the whole width.
    """

    svg: Markup
    label: str
    wide: bool = False


def draw(name: str, label: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Plot:
    """Draw a figure; returns it as SVG.

    Args:
        name: unique on the page.
        label: what it shows, in words.
        size: in inches.
        paint: draws into the figure.
    """
    with matplotlib.style.context(["default", STYLE]), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # this typeface only measures text
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Plot(_for_the_page(file.getvalue(), name, label), label, wide=size[0] > HALF_WIDTH)


def _for_the_page(svg: str, name: str, label: str) -> Markup:
    """Return the SVG for the page, without what only a file needs.

    Its ids are unique, and its colours and typeface are the page's.
    """
    root = ElementTree.fromstring(svg)  # noqa: S314 - matplotlib wrote it; this drops comments
    for element in list(root.iter()):
        for child in [child for child in element if child.tag in ONLY_IN_FILES]:
            element.remove(child)
        element.tag = element.tag.removeprefix(SVG)  # in HTML svg elements have no namespace
        element.attrib = {key.removeprefix(XLINK): _adapted(key, value, name) for key, value in element.items()}
    width, height = (math.ceil(float(side)) for side in root.attrib["viewBox"].split()[2:])
    size = {"viewBox": f"0 0 {width} {height}", "width": str(width)}
    root.attrib = {"role": "img", "aria-label": label, **size}
    title = ElementTree.Element("title")
    title.text = label
    root.insert(0, title)
    drawn = ElementTree.tostring(root, encoding="unicode")
    for variable, colour in PAINT.items():
        drawn = drawn.replace(colour, f"var(--{variable})")
    return Markup(re.sub(r"\n\s*", "\n", drawn).strip())  # noqa: S704 - ElementTree has escaped all texts


def _adapted(key: str, value: str, name: str) -> str:
    """Return the value of an attribute, with ids that begin with ``name`` and without a typeface."""
    if key == "id":
        return f"{name}-{value}"
    if key == "style":
        value = ";".join(part for part in value.split(";") if not part.strip().startswith("font-family:")).strip()
    if key == f"{XLINK}href":
        return value.replace("#", f"#{name}-", 1)
    return value.replace("url(#", f"url(#{name}-")


def power_of_ten(value: float, _position: int = 0) -> str:
    """Format a tick of a logarithmic axis: ``10⁻⁷``, ``5·10⁻⁷``."""
    digits, exponent = f"{value:.0e}".split("e")
    power = "10" + f"{int(exponent)}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if digits == "1" else f"{digits}·{power}"


def logarithmic(axes: Axes, x: bool = False, y: bool = False) -> None:
    """Make one axis or both logarithmic, with a tick at each power of ten. If there are few, ticks stand between them
    too.
    """
    for axis, set_scale in ((axes.xaxis, axes.set_xscale),) * x + ((axes.yaxis, axes.set_yscale),) * y:
        if not math.isfinite(axis.get_minpos()):
            axes.text(0.5, 0.5, "nothing above 0", transform=axes.transAxes, ha="center", va="center")
            axis.set_ticks([])
            continue
        set_scale("log")
        low, high = sorted(axis.get_view_interval())
        if low > 0 and high / low < 100:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(power_of_ten))
        axis.set_minor_locator(NullLocator())


def leg_name(leg: MeasuredLeg) -> str:
    """Return a leg's name, cut to fit a legend. Other files are named by their paths, whose end is kept."""
    name = "".join(c if c.isprintable() else "\ufffd" for c in leg.name)
    return name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"


def legend(figure: Figure) -> None:
    """Add a legend below the axes, in two columns."""
    figure.legend(loc="outside lower center", ncols=2)


def leg_styles(legs: Sequence[MeasuredLeg]) -> dict[str, dict[str, Any]]:
    """Return how the line of each leg is drawn, by the leg's name; the same in every figure."""
    seen: defaultdict[LegKind, int] = defaultdict(int)
    styles: dict[str, dict[str, Any]] = {}
    for leg in legs:
        if leg.runner is Runner.WIDENED:
            styles[leg.name] = WIDENED
            continue
        if leg.ships(leg.precision) and leg.precision in PRECISIONS:
            styles[leg.name] = SHIPPED | {"color": PAINT[PRECISIONS[leg.precision].colour]}
            continue
        colours, number = COLOURS[leg.kind], seen[leg.kind]
        seen[leg.kind] += 1
        dash = DASHES[number // len(colours) % len(DASHES)]
        styles[leg.name] = {"color": PAINT[colours[number % len(colours)]], "linestyle": dash}
    return styles
