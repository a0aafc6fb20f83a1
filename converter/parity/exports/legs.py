"""Run an export on every case that its interface can express: as it is, and widened to float64."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import ModelFolderError
from converter.parity.baseline import Baseline
from converter.parity.exports.branches import read_model, take_branches, watch
from converter.parity.exports.cases import Conditions, Expressed, express
from converter.parity.legs.cases import Case
from converter.parity.legs.identity import Identity
from converter.parity.legs.steps import Steps
from converter.parity.legs.widen import OpenedGraph, open_graph, open_widened
from converter.parity.verdict import metrics
from converter.parity.verdict.judge import MeasuredLeg
from converter.runtime.exports.feeding import Export, Part
from converter.runtime.exports.interface import Interface
from converter.runtime.ort import CPU_PROVIDER, OPEN_ERRORS, device_for
from reference.config import GPT2Config


@dataclass
class Ran:
    """What was seen while an export ran.

    Attributes:
        leg: its distances from the truth.
        skipped: why some cases cannot be expressed → the names of these cases.
        failed: the cases that ONNX Runtime refuses → why.
        by_column: whether it counts positions by column, padding included; None if no case tells.
        conditions: what each condition of a branch was.
    """

    leg: MeasuredLeg
    skipped: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    by_column: bool | None = None
    conditions: Conditions = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """An export, opened, and what its sessions use but do not own."""

    export: Export
    graphs: tuple[OpenedGraph, ...]


Decided = Mapping[Path, Mapping[str, bool]]  # file → which branches are taken, by the name of the condition


def open_as_is(
    interfaces: Sequence[Interface], config: GPT2Config, provider: str = CPU_PROVIDER, decided: Decided | None = None
) -> Opened:
    """Open an export as it is, but with the conditions of its branches as outputs.

    Args:
        decided: branches that are taken whatever their conditions are.
    """
    opening = partial(open_graph, provider=provider)
    return _opened(interfaces, config, decided, opening, as_run=True, device=device_for(provider))


def open_in_float64(interfaces: Sequence[Interface], config: GPT2Config, decided: Decided | None = None) -> Opened:
    """Open an export on the CPU with every operation in float64; see ``open_as_is``."""
    return _opened(interfaces, config, decided, partial(open_widened, config=config), np.float64)


def _opened(
    interfaces: Sequence[Interface],
    config: GPT2Config,
    decided: Decided | None,
    opening: Callable[[Any, Path], OpenedGraph],
    cache_type: Any = None,
    as_run: bool = False,
    device: str = "cpu",
) -> Opened:
    parts, graphs = [], []
    for each in interfaces:
        model = read_model(each.file, as_run)
        take_branches(model.graph, (decided or {}).get(each.file, {}))
        watched = watch(model.graph)
        graphs.append(opening(model, each.file))
        kept = cache_type or (each.pasts[0].type if each.pasts else np.float32)
        parts.append(Part(each, graphs[-1].session, kept, watched))
    return Opened(Export(config, tuple(parts), device), tuple(graphs))


def measure(
    baseline: Baseline,
    opened: Callable[[], Opened],
    interfaces: Sequence[Interface],
    identity: Identity,
    limit: float = 0.0,
    truths: Callable[[list[Case]], Mapping[str, np.ndarray]] | None = None,
    short: bool = False,
    step: Steps | None = None,
) -> Ran:
    """Run an export on the cases of a baseline that it can express; returns what was seen.

    Args:
        opened: opens the export.
        limit: see ``MeasuredLeg``.
        truths: computes the logits to compare with; None means those of the source's own weights.
        short: whether long cases are left out.
        step: told of each case.
    """
    began = time.monotonic()
    ran = Ran(MeasuredLeg(**identity.identity(), distances={}, scored=(), seconds=0.0))
    expressed = list(_expressed(baseline, interfaces, ran, short))
    true = baseline.truths if truths is None else truths(_needed(baseline, expressed))
    held = opened()  # it must live as long as its sessions are used
    found: dict[str, list[metrics.Distance]] = {}
    for done, (one, following, real) in enumerate(expressed):
        if step is not None and done:
            step.within(done, len(expressed))
        try:
            logits = one.run(held.export, ran.conditions)
        except (*OPEN_ERRORS, ModelFolderError) as error:
            ran.failed[one.name] = said(error)
            continue
        columns = real[:, one.columns], following[:, one.columns]
        found[one.name] = [metrics.compare(true[name][:, one.columns], logits, *columns) for name in one.truths]
    ran.by_column = _counts_columns(found)
    distances = {name: each[-1 if ran.by_column else 0] for name, each in found.items()}
    scored = tuple(case.name for case in baseline.cases if case.scored and case.name in distances)
    seconds = time.monotonic() - began
    ran.leg = MeasuredLeg(**identity.identity(), distances=distances, scored=scored, seconds=seconds, limit=limit)
    return ran


def _expressed(
    baseline: Baseline, interfaces: Sequence[Interface], ran: Ran, short: bool
) -> Iterator[tuple[Expressed, np.ndarray, np.ndarray]]:
    """Yield each case as the export takes it, the tokens that follow, and the mask of its real tokens."""
    for case in baseline.cases:
        if short and case.long:
            continue
        how = express(interfaces, case)
        if isinstance(how, str):
            ran.skipped.setdefault(how, []).append(case.name)
        else:
            yield how, case.following, case.real


def _counts_columns(found: Mapping[str, Sequence[metrics.Distance]]) -> bool | None:
    """Tell whether the logits are those of positions by column, in the cases that have either; None if none has."""
    either = [each for each in found.values() if len(each) > 1]
    if not either:
        return None
    usual, by_column = (sum(each[at].total_rms for each in either) for at in (0, 1))
    return by_column < usual


def _needed(baseline: Baseline, expressed: Iterable[tuple[Expressed, Any, Any]]) -> list[Case]:
    """Return the cases whose truths are needed."""
    names = {name for one, *_ in expressed for name in one.truths}
    return [case for case in (*baseline.cases, *baseline.by_column) if case.name in names]


def said(error: Exception) -> str:
    """Return what ONNX Runtime says is wrong, in one line and without its codes."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
