"""Draw the flow of the data: Mermaid, as GitHub shows it, becomes SVG here, which needs no script in the browser.

Only as much of Mermaid's flowcharts is read as that drawing uses: ``a --> b``, ``a -.-> b``, ``a["name<br>what it
does"]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 158, 46  # of a box
ACROSS, DOWN = 172, 72  # from one box to the next
NODE = r"(\w+)(?:\(?\[\"(.+?)\"\]\)?)?"
EDGE = re.compile(rf"^\s*{NODE} (-->|-\.->) {NODE}$", re.MULTILINE)


@dataclass
class Drawing:
    """A flowchart.

    Attributes:
        labels: box → the lines in it, in the order of the text.
        edges: pairs of boxes.
        dotted: the edges that are dotted.
    """

    labels: dict[str, list[str]] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    dotted: set[tuple[str, str]] = field(default_factory=set)

    def row(self, box: str) -> int:
        """Return the length of the longest way to a box, in edges."""
        return max((self.row(a) + 1 for a, b in self.edges if b == box), default=0)

    def spine(self) -> list[str]:
        """Return the longest way through the drawing."""
        way = [max(self.labels, key=self.row)]
        while before := [a for a, b in self.edges if b == way[0]]:
            way.insert(0, max(before, key=self.row))
        return way


def parse(mermaid: str) -> Drawing:
    """Return the boxes and edges of a flowchart.

    Raises:
        ValueError: a line is not an edge.
    """
    drawing = Drawing()
    for line in mermaid.strip().splitlines()[1:]:
        match = EDGE.match(line)
        if match is None:
            raise ValueError(f"not understood in the drawing: {line!r}")
        first, first_label, arrow, second, second_label = match.groups()
        for box, label in ((first, first_label), (second, second_label)):
            drawing.labels[box] = label.split("<br>") if label else drawing.labels.get(box, [box])
        drawing.edges.append((first, second))
        if arrow != "-->":
            drawing.dotted.add((first, second))
    return drawing


def svg(mermaid: str) -> str:
    """Return a flowchart as SVG. The longest way is in the middle; other boxes are on the left and right in turn."""
    drawing = parse(mermaid)
    spine = drawing.spine()
    beside = [box for box in drawing.labels if box not in spine]
    columns = dict.fromkeys(spine, 1) | {box: (0, 2)[at % 2] for at, box in enumerate(beside)}
    places = {box: (columns[box] * ACROSS + ACROSS // 2, drawing.row(box) * DOWN + DOWN // 2) for box in drawing.labels}
    width, height = 3 * ACROSS, len(spine) * DOWN
    parts = [_line(places, edge, edge in drawing.dotted) for edge in drawing.edges]
    parts += [_box(*places[box], lines, framed=box in (spine[0], spine[-1])) for box, lines in drawing.labels.items()]
    head = '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    head += '<path d="M0 0 8 4 0 8z" fill="currentColor"/></marker>'
    named = f'role="img" aria-label="{escape("; ".join(f"{a} to {b}" for a, b in drawing.edges))}"'
    return f'<svg {named} viewBox="0 0 {width} {height}"><defs>{head}</defs>{"".join(parts)}</svg>'


def _line(places: dict[str, tuple[int, int]], edge: tuple[str, str], dotted: bool) -> str:
    """Return an edge as SVG: down within a column; out of the middle across, then down; into it down, then across."""
    (x, y), (to_x, to_y) = places[edge[0]], places[edge[1]]
    side = WIDTH // 2 if to_x > x else -WIDTH // 2
    if x == to_x:
        path = f"M{x} {y + HEIGHT // 2}V{to_y - HEIGHT // 2}"
    elif x == ACROSS + ACROSS // 2:
        path = f"M{x + side} {y}H{to_x}V{to_y - HEIGHT // 2}"
    else:
        path = f"M{x} {y + HEIGHT // 2}V{to_y}H{to_x - side}"
    dashes = ' stroke-dasharray="4 4"' if dotted else ""
    return f'<path d="{path}" fill="none" stroke="currentColor"{dashes} marker-end="url(#head)"/>'


def _box(x: int, y: int, lines: list[str], framed: bool) -> str:
    """Return a box with its name, and below that what it does. The first and last boxes are round."""
    corner = HEIGHT // 2 if framed else 4
    at = f'x="{x - WIDTH // 2}" y="{y - HEIGHT // 2}" width="{WIDTH}" height="{HEIGHT}" rx="{corner}"'
    name, *rest = map(escape, lines)
    said = f'<text x="{x}" y="{y + 13}" font-size="12">{" ".join(rest)}</text>'
    box = f'<rect {at} fill="var(--md-default-bg-color)" stroke="var(--graph)" stroke-width="1.5"/>'
    text = f'<text x="{x}" y="{y - 4}" font-size="14" font-weight="bold">{name}</text>{said}'
    return f'{box}<g fill="currentColor" text-anchor="middle">{text}</g>'
