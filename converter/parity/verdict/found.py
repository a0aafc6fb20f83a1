"""Hold what was found of a source's weights in the files of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SHOWN = 4  # names in a sentence


@dataclass(frozen=True)
class Weights:
    """What was found of a source's weights in the files of an export.

    Attributes:
        found: the name of each weight that was found bit for bit → the tensor, and how it lies.
        rounding: the type to which each of them was rounded, if it was.
        rounded: the name of each weight that is quantized to within a step → the tensor.
        partly: the name of each weight of which the files hold a part, bit for bit → which part.
        missing: the names of the weights that are not in the files as such.
        notes: sentences about multiples of weights.
        faults: a sentence for each tensor that is a weight with other numbers.
    """

    found: dict[str, str] = field(default_factory=dict)
    rounding: Mapping[str, str] = field(default_factory=dict)
    rounded: dict[str, str] = field(default_factory=dict)
    partly: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def compared(self) -> int:
        """Return the number of weights that were found."""
        return len(self.found | self.rounded)

    @property
    def total(self) -> int:
        """Return the number of the source's weights."""
        return self.compared + len(self.partly) + len(self.missing)

    @property
    def sentence(self) -> str:
        """Return what was found, in a few words."""
        kinds = sorted(set(self.rounding.values()))
        some = f"{len(self.rounding)} of them " if len(self.rounding) < len(self.found) else ""
        types = f" ({some}rounded to {' and '.join(kinds)})" if kinds else ""
        parts = [f"{len(self.found)} of {self.total} weights bit for bit{types}"] if self.found else []
        parts += [f"{len(self.rounded)} of {self.total} within a step of quantization"] if self.rounded else []
        parts += [f"{part} of {name}" for name, part in self.partly.items()]
        if self.missing:
            more = f" and {len(self.missing) - SHOWN} more" if len(self.missing) > SHOWN else ""
            parts.append(f"{', '.join(self.missing[:SHOWN])}{more} not compared")
        return ", ".join(parts)
