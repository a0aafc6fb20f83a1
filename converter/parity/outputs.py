"""Compare what the graphs of a folder return beside their answers: each output by its name.

The truth is the from-scratch reference in float64, with the numbers that a graph is shipped with. transformers' own
hidden states, attention and modules must agree with it in float64. So must the graph, widened. In float32 the graph may
be some times as far from the truth as transformers is.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from converter import onnx_file
from converter.folder import manifest
from converter.graph.outputs import names, select
from converter.parity.baseline import Baseline, short
from converter.parity.diagnosis.inside import Arrays, graph_inside, huggingface_inside, truth_inside
from converter.parity.diagnosis.taps import TAP_LIMIT, share
from converter.parity.legs import leg as legs
from converter.parity.legs.cases import Case
from converter.parity.legs.huggingface import HuggingFace
from converter.parity.legs.shipped import as_shipped
from converter.parity.legs.widen import OpenedGraph, threads_for, widened_session
from converter.parity.verdict.limits import Limits
from converter.parity.verdict.metrics import FLOAT32_EPSILON
from converter.runtime import heads, opening
from converter.runtime.decoder import CACHE_TYPES
from converter.weights.precisions import FULL, PRECISIONS
from reference.config import GPT2Config
from reference.head import LM

# In fewer bits an output may be this share of its size from what the graph's own numbers mean. Rounding costs 5e-4 in
# float16, and 2e-2 where ONNX Runtime rounds activations to 8 bits, in the bundled model. The mathematics is judged in
# float64; this limit is for a kernel that returns something else.
LOSSY_LIMIT = 0.5

Recorder = Callable[[Case], Arrays]


@dataclass(frozen=True)
class OutputReport:
    """One output of a graph. Its errors are RMS, as shares of the RMS of the truth, in the worst case.

    Attributes:
        name, precision, graph: the output, the precision of its graph, and the graph's file.
        onnx: the shipped graph's error in ONNX Runtime; infinite if the output has another shape or is not finite.
        onnx_float64: the shipped graph's when it is widened to float64.
        huggingface, huggingface_float64: that of transformers; NaN if the graph has other weights than the source.
        floors: the largest of ``onnx`` divided by ``huggingface`` in a case; NaN likewise.
        fault: why the output is wrong; empty if it is right.
    """

    name: str
    precision: str
    graph: str
    onnx: float = math.inf
    onnx_float64: float = math.inf
    huggingface: float = math.nan
    huggingface_float64: float = math.nan
    floors: float = math.nan
    fault: str = ""


@dataclass(frozen=True)
class Summary:
    """All outputs of a graph in one row.

    Attributes:
        name, proves: the row's name, and what it is for.
        rms, floors: the largest ``onnx`` and ``floors`` of the outputs.
        faults: their faults.
    """

    name: str
    proves: ClassVar = "as transformers'"
    rms: float
    floors: float
    faults: tuple[str, ...]


def summaries(outputs: Sequence[OutputReport]) -> list[Summary]:
    """Return one summary for each graph."""
    graphs: dict[str, list[OutputReport]] = defaultdict(list)
    for output in outputs:
        graphs[output.graph].append(output)
    return [
        Summary(
            f"{len(found)} outputs of {Path(graph).name}",
            max(output.onnx for output in found),
            max(output.floors for output in found),
            tuple(output.fault for output in found if output.fault),
        )
        for graph, found in graphs.items()
    ]


def returned(file: Path, config: GPT2Config) -> list[str]:
    """Return the names of what a graph returns beside answer and cache."""
    outputs = [value.name for value in onnx_file.read(file).graph.output]
    return [name for name in outputs if name not in config.head_spec.outputs and not name.startswith(legs.PRESENT)]


def compare_outputs(
    baseline: Baseline, out: Path, file: Path, precision: str, named: str | None, provider: str
) -> tuple[list[OutputReport], list[str]]:
    """Compare every output of a graph; returns the reports, and a sentence on each output that is not known.

    Args:
        file, precision: a graph of the folder ``out``.
        named: the precision, if the folder holds several.
        provider: of ONNX Runtime, for the shipped graph.
    """
    config = baseline.ledger.config
    there, known = returned(file, config), names(config)
    asked = select(manifest.outputs_of(out, precision), config)
    reports = [
        OutputReport(name, precision, os.fspath(file), fault=f"the output {name} of {file} is missing")
        for name in asked
        if name not in there
    ]
    if compared := [name for name in there if name in known]:
        shipped = _open(out, config, provider, named, threads_for(baseline.ledger.parameters))
        reports += _compare(baseline, file, precision, compared, shipped)
    return reports, [f"{file} also returns {name}, which was not compared" for name in there if name not in known]


def _open(out: Path, config: GPT2Config, provider: str, precision: str | None, threads: int | None) -> OpenedGraph:
    """Open a graph as it is shipped, as ``run`` opens it."""
    if config.head == LM:
        return OpenedGraph(opening.load(out, provider, threads, precision, in_place=False).session, [])
    return OpenedGraph(heads.load(out, provider, threads, precision).session, [])


def _compare(
    baseline: Baseline, file: Path, precision: str, compared: list[str], shipped: OpenedGraph
) -> Iterator[OutputReport]:
    """Yield a report on each of these outputs of a graph."""
    ledger, limits = baseline.ledger, baseline.limits
    huggingface = HuggingFace(baseline.checkpoint, ledger)
    cases = [case for case in baseline.cases if short(case)]
    truths = [truth_inside(as_shipped(ledger, file, PRECISIONS[precision]), case, compared) for case in cases]
    widened = widened_session(file, config=ledger.config)
    cache = next((CACHE_TYPES[v.type] for v in shipped.session.get_inputs() if v.name.startswith(legs.PAST)), None)

    def graph(opened: OpenedGraph, dtype: Any) -> Recorder:
        return lambda case: graph_inside(opened, ledger.config, case, compared, dtype)

    def theirs(dtype: torch.dtype) -> Recorder:
        return lambda case: huggingface_inside(huggingface, case, dtype, compared)

    recorders = {"onnx": graph(shipped, cache), "onnx_float64": graph(widened, np.float64)}
    if precision == FULL:
        recorders |= {"huggingface": theirs(torch.float32), "huggingface_float64": theirs(torch.float64)}
    errors = {who: _errors(cases, truths, record) for who, record in recorders.items()}
    wrong = any(not max(found) <= limits.graph_float64 for found in errors["onnx_float64"].values())
    first = recorders["onnx_float64"](cases[0]) if wrong else {}
    for name in compared:
        worst: dict[str, Any] = {who: max(found[name]) for who, found in errors.items()}
        if precision == FULL:
            pairs = zip(errors["onnx"][name], errors["huggingface"][name], strict=True)
            worst["floors"] = max(ours / max(floor, FLOAT32_EPSILON) for ours, floor in pairs)
        report = OutputReport(name, precision, os.fspath(file), **worst)
        same = _same(first[name], truths[0], cases[0], limits.graph_float64) if name in first else []
        yield replace(report, fault=fault(report, [] if name in same else same, limits))


def _errors(cases: Sequence[Case], truths: Sequence[Arrays], record: Recorder) -> dict[str, list[float]]:
    """Return the error of each output in each case."""
    errors: dict[str, list[float]] = defaultdict(list)
    for case, truth in zip(cases, truths, strict=True):
        found = record(case)
        for name, true in truth.items():
            errors[name].append(_error(case, true, found[name]) if name in found else math.inf)
    return errors


def _error(case: Case, true: np.ndarray, found: np.ndarray) -> float:
    """Return the RMS of the difference at real tokens, as a share of that of the truth."""
    real = case.real_of(true.shape[1])
    return share(true[real], real, found)


def _same(found: np.ndarray, truth: Arrays, case: Case, limit: float) -> list[str]:
    """Return the names of the outputs that an array is."""
    return [name for name, true in truth.items() if _error(case, true, found) <= limit]


def fault(report: OutputReport, others: Sequence[str], limits: Limits) -> str:
    """Return why an output is wrong; empty if it is right. ``others`` are the outputs whose numbers it has."""
    what = f"the output {report.name} of {report.graph}"
    if report.huggingface_float64 > limits.huggingface_float64:
        return (
            f"{what} cannot be proven: Hugging Face in float64 is {report.huggingface_float64:.1e} of its size from "
            f"the from-scratch reference"
        )
    if others:
        return f"{what} is {others[0]}"
    if not math.isfinite(max(report.onnx, report.onnx_float64)):
        return f"{what} has another shape than it should have, or numbers that are not finite"
    if report.onnx_float64 > limits.graph_float64:
        return (
            f"{what} is {report.onnx_float64:.1e} of its size from the truth in float64; at most "
            f"{limits.graph_float64:.0e} is rounding"
        )
    if report.floors > TAP_LIMIT:
        return (
            f"{what} is {report.floors:.1f} × as far from the truth as Hugging Face's float32; at most {TAP_LIMIT:g} × "
            f"is rounding"
        )
    if report.onnx > LOSSY_LIMIT:
        return f"{what} is {report.onnx:.1e} of its size from the truth; at most {LOSSY_LIMIT:g} is rounding"
    return ""
