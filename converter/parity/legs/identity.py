"""Identify a leg: what computes it, in which precision, and what it is for."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any


class LegKind(StrEnum):
    """What a leg is for."""

    SEMANTICS = "semantics"  # float64 against float64: is the mathematics the same
    NUMERICS = "numerics"  # a float32 leg: is it as close as rounding allows
    NOISE = "noise floor"  # Hugging Face in float32: how large the error of rounding alone is
    HALF = "half precision"  # Hugging Face in 16 bits: the error that its users accept
    LOSSY = "precision"  # a graph of the folder with fewer bits: does it keep its budget
    OTHER = "another file"  # a graph of another exporter, judged as a float32 leg


# Legs that are compared with the noise floor.
FLOAT32 = (LegKind.NUMERICS, LegKind.OTHER)

# Legs that have a budget.
LOSSY = (LegKind.HALF, LegKind.LOSSY)

# Legs for which multiples of the noise floor mean something.
FLOORED = (*FLOAT32, LegKind.NOISE)


class Runner(StrEnum):
    """What computes a leg."""

    REFERENCE = "reference"  # the from-scratch GPT-2
    ROUNDED = "rounded reference"  # the same, with the result of every operation rounded to float16
    HUGGING_FACE = "Hugging Face"
    WIDENED = "widened graph"  # the shipped graph in float64, in ONNX Runtime
    RUNTIME = "ONNX Runtime"  # a graph as it is shipped


@dataclass(frozen=True)
class Identity:
    """The identity of a leg.

    Attributes:
        name: the name that is shown; no code reads anything from it.
        kind: what the leg is for.
        runner: what computes it.
        precision: for a graph of the folder its precision, such as ``fp32``; else the dtype, such as ``float64``.
        in_place: whether the graph runs with its cache in place, as ``generate`` runs it.
        graph: the graph's file, if the leg runs a graph.
        budget: the name of a row of ``Limits.budgets``, if the leg has a budget.
        export: the name of the export of another program that it runs; empty for a leg of source or folder.
    """

    name: str
    kind: LegKind
    runner: Runner = field(default=Runner.RUNTIME, kw_only=True)
    precision: str = field(default="float32", kw_only=True)
    in_place: bool = field(default=False, kw_only=True)
    graph: str = field(default="", kw_only=True)
    budget: str = field(default="", kw_only=True)
    export: str = field(default="", kw_only=True)

    @property
    def has_floors(self) -> bool:
        """Tell whether multiples of the noise floor mean something; they do not in float64 or in half precision."""
        return self.kind in FLOORED

    def identity(self) -> dict[str, Any]:
        """Return these fields, to be passed on to another form of the same leg."""
        return {each.name: getattr(self, each.name) for each in fields(Identity)}

    def ships(self, precision: str) -> bool:
        """Tell whether this leg is the folder's graph in this precision, run as other clients run it."""
        shipped = self.runner is Runner.RUNTIME and self.precision == precision
        return shipped and not self.in_place and not self.export
