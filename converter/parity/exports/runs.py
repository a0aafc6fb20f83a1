"""Run an export in the ways in which it is compared: as it is, and in float64 with the numbers that it has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from converter.parity.baseline import Baseline, LegSpec
from converter.parity.exports.asked import Asked
from converter.parity.exports.cases import not_taken
from converter.parity.exports.legs import Decided, Ran, measure, open_as_is, open_in_float64, said
from converter.parity.legs import leg as legs
from converter.parity.legs.cases import Case
from converter.parity.legs.identity import Identity, LegKind, Runner
from converter.parity.legs.steps import Steps
from converter.parity.legs.truth import truths
from converter.parity.legs.widen import OpenedGraph, graph_session, widened_session
from converter.parity.verdict.judge import MeasuredLeg
from converter.runtime.ort import OPEN_ERRORS
from converter.weights.ledger import Ledger
from converter.weights.precisions import FULL, PRECISIONS

# What ONNX Runtime and the protobuf library raise for a graph that cannot be run.
REFUSED = (*OPEN_ERRORS, DecodeError, legs.InterfaceError)


@dataclass(frozen=True)
class Runs:
    """An export, and what it is held against.

    Attributes:
        baseline, asked: the source, measured, and the export.
        precision: of its weights.
        numbers: the source's weights with the numbers that the export has for them.
        also: whether it is compared beside a folder.
        step: told of each case.
    """

    baseline: Baseline
    asked: Asked
    precision: str
    numbers: Ledger
    also: bool
    step: Steps

    def as_is(self, decided: Decided | None = None) -> Ran:
        """Run it in ONNX Runtime, with the provider that was asked for; see ``open_as_is``.

        Raises:
            Exception: one of ``REFUSED``.
        """
        asked, config = self.asked, self.baseline.ledger.config
        identity = self._identity()
        if not asked.interfaces:
            return self._head(identity, partial(graph_session, asked.files[0], provider=asked.provider), np.float32)
        opened = partial(open_as_is, asked.interfaces, config, asked.provider, decided)
        return measure(self.baseline, opened, asked.interfaces, identity, step=self.step)

    def in_float64(self, decided: Decided | None = None) -> Ran:
        """Run it in float64, against the truth of its own numbers; see ``open_in_float64``.

        Raises:
            Exception: one of ``REFUSED``.
        """
        asked, config, limit = self.asked, self.baseline.ledger.config, self.baseline.limits.graph_float64
        given: dict[str, Any] = {"runner": Runner.WIDENED, "graph": asked.name, "export": self._export}
        name = f"{asked.name} in float64" if self.also else "ONNX graph in float64"
        identity = Identity(name, LegKind.SEMANTICS, **given)
        own = self._truths if self.numbers is not self.baseline.ledger else None
        if not asked.interfaces:
            row = partial(widened_session, asked.files[0], config=config)
            return self._head(identity, row, np.float64, short=True, limit=limit, truths=own)
        opened = partial(open_in_float64, asked.interfaces, config, decided)
        return measure(self.baseline, opened, asked.interfaces, identity, limit, own, short=True, step=self.step)

    @property
    def _export(self) -> str:
        return self.asked.name if self.also else ""

    def _identity(self) -> Identity:
        """Return the identity of the leg that runs it as it is."""
        name, precision = self.asked.name, self.precision
        given: dict[str, Any] = {"graph": name, "precision": precision, "export": self._export}
        if precision == FULL:
            own = "ONNX Runtime float32"
            return Identity(name if self.also else own, LegKind.OTHER if self.also else LegKind.NUMERICS, **given)
        budget = PRECISIONS[precision].budget_name if precision in PRECISIONS else precision
        return Identity(name if self.also else f"ONNX Runtime {precision}", LegKind.LOSSY, budget=budget, **given)

    def _head(
        self, identity: Identity, opened: Callable[[], OpenedGraph], dtype: Any, short: bool = False, **row: Any
    ) -> Ran:
        """Run a graph of another head than the language model's, with Optimum's names.

        Args:
            short: whether long cases are left out.
        """
        baseline, skipped = self.baseline, dict[str, list[str]]()
        cases = [case for case in baseline.cases if not (short and case.long)]
        for case in cases:
            if why := not_taken(self.asked.inputs, case):
                skipped.setdefault(why, []).append(case.name)
        left = {case.name for case in cases}.difference(*skipped.values())
        if not left:
            return Ran(MeasuredLeg(**identity.identity(), distances={}, scored=(), seconds=0.0), skipped)

        def leg() -> legs.Leg:
            return legs.graph(opened(), baseline.ledger.config, dtype)

        spec = LegSpec(**identity.identity(), open=leg, cases=lambda case: case.name in left, **row)
        return Ran(baseline.measure(spec), skipped)

    def _truths(self, cases: list[Case]) -> Mapping[str, np.ndarray]:
        return truths(self.numbers.config, self.numbers.weights, cases)


def lacking(error: Exception) -> str:
    """Return which operator has no float64, if ONNX Runtime says so; else what it says."""
    operator = re.search(r"operator \((\w+)\)|implementation for (\w+)", str(error))
    if operator is None:
        return said(error)
    return f"ONNX Runtime has no {operator[1] or operator[2]} for it"
