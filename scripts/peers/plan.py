"""Say how much is measured: which batches, how many tokens, how many rounds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Shape:
    """A batch of prompts, each ``context`` tokens long."""

    batch: int
    context: int


SMALL = {Shape(1, 16): 1, Shape(1, 128): 64, Shape(1, 900): 64, Shape(8, 128): 32, Shape(32, 128): 16}  # new tokens
LARGE = {Shape(8, 900): 16, Shape(32, 900): 16}  # peers that return all logits need many gigabytes here


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    rounds: int = 5
    small: dict[Shape, int] = field(default_factory=lambda: SMALL)
    large: dict[Shape, int] = field(default_factory=lambda: LARGE)

    @property
    def few(self) -> int:
        """Return the rounds of what takes long: conversions and the largest batches."""
        return (self.rounds + 1) // 2

    @classmethod
    def quick(cls) -> Plan:
        """Return the plan of a trial run, which shows whether everything works."""
        small = {shape: min(tokens, 8) for shape, tokens in SMALL.items()}
        return cls(1, small, {Shape(8, 900): 4})
