"""How figures are drawn: as SVG that takes its colours and its typeface from the page around it."""

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

# Figures are drawn in colours that stand for a variable of the page's stylesheet, which knows light from dark.
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
# The graphs that the report is about keep their looks whatever else was run, and stand in front.
SHIPPED = {"linestyle": "-", "linewidth": 1.5, "zorder": 4}
WIDENED = {"color": PAINT["graph"], "linestyle": "-", "zorder": 3}
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: in the page's typeface, to be selected and read out
    "svg.hashsalt": "gpt2onnx",  # names of clip paths would be random
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

# Inches, of figures that stand side by side and of those that do not; the page shows both at one scale.
HALF_WIDTH, FULL_WIDTH = 5.4, 11.2

NAME_WIDTH = 36  # characters of a leg's name


@dataclass(frozen=True)
class Plot:
    """A figure of the page.

    Attributes:
        svg: as it is put into the page.
        label: what it shows, for those who do not see it.
        wide: whether it takes the whole width.
    """

    svg: Markup
    label: str
    wide: bool = False


def draw(name: str, label: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Plot:
    """A figure as SVG.

    Args:
        name: unique on the page.
        label: what it shows.
        size: in inches.
        paint: draws into the figure.
    """
    with matplotlib.style.context(["default", STYLE]), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a typeface that only measures text here
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Plot(_for_the_page(file.getvalue(), name, label), label, wide=size[0] > HALF_WIDTH)


def _for_the_page(svg: str, name: str, label: str) -> Markup:
    """Return the figure without what only a file needs, with ids of its own and the page's colours and typeface."""
    root = ElementTree.fromstring(svg)  # which drops comments
    for element in list(root.iter()):
        for child in [child for child in element if child.tag in ONLY_IN_FILES]:
            element.remove(child)
        element.tag = element.tag.removeprefix(SVG)  # a page knows an svg element without its namespace
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
    return Markup(re.sub(r"\n\s*", "\n", drawn).strip())


def _adapted(key: str, value: str, name: str) -> str:
    """Return an attribute's value with the names of ``name`` alone, and without a typeface."""
    if key == "id":
        return f"{name}-{value}"
    if key == "style":
        value = ";".join(part for part in value.split(";") if not part.strip().startswith("font-family:")).strip()
    if key == f"{XLINK}href":
        return value.replace("#", f"#{name}-", 1)
    return value.replace("url(#", f"url(#{name}-")


def power_of_ten(value: float, _position: int = 0) -> str:
    """A tick of a logarithmic axis: ``10⁻⁷``, ``5·10⁻⁷``."""
    digits, exponent = f"{value:.0e}".split("e")
    power = "10" + f"{int(exponent)}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if digits == "1" else f"{digits}·{power}"


def logarithmic(axes: Axes, x: bool = False, y: bool = False) -> None:
    """Powers of ten on one axis, or on both; where there are few of them, what is between too."""
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
    """A leg's name in the space of a legend; other files are called by their paths, which end in what tells."""
    name = "".join(c if c.isprintable() else "\ufffd" for c in leg.name)
    return name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"


def legend(figure: Figure) -> None:
    """Below the axes, two columns."""
    figure.legend(loc="outside lower center", ncols=2)


def leg_styles(legs: Sequence[MeasuredLeg]) -> dict[str, dict[str, Any]]:
    """The name of each leg → how its line is drawn, the same in every figure."""
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
