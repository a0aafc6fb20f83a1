"""Find the first wrong operation of a graph whose names tell nothing.

Every value of the graph is computed. The taps of the truth are looked for among them by their numbers, in any layout.
The first tap that no value equals, after the last one that some value does, is where the graph goes wrong. What is
wrong there is found as for our own graphs: a hypothesis about the operation gives the graph's value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import onnx
from onnx import helper

from converter.onnx_file import nodes_of
from converter.parity.diagnosis.diagnose import FLOAT64_LIMIT, Diagnosis, diagnose
from converter.parity.diagnosis.operations import Operations
from converter.parity.diagnosis.taps import (
    TAP_LIMIT,
    Localisation,
    TapReport,
    Taps,
    layer_of,
    tap_names,
    truth_taps,
)
from converter.parity.exports.branches import read_model, seen_in, take_branches
from converter.parity.exports.cases import Expressed
from converter.parity.exports.legs import open_as_is, open_in_float64
from converter.parity.exports.suspects import TELLS_SIZE
from converter.parity.legs.cases import Case
from converter.parity.legs.widen import expose, open_graph, open_widened
from converter.parity.verdict.metrics import FLOAT32_EPSILON
from converter.runtime.exports.feeding import Export, ExportCache
from converter.runtime.exports.interface import Interface
from converter.weights.ledger import Ledger

VALUES_BYTES = 2**30  # the most bytes of a graph's values at a time; the step is run again for the rest

LOGITS = "logits"  # the tap that only the output of that role can be: others may be right, and not be what is given

# The RMS error of a right operation in float64, at most. Constants that were rounded to float32 give less; one epsilon
# that is left out gives little more.
FOUND_FLOAT64 = 1e-7

CANDIDATES = 16  # values that are tried as the output of one operation
AFTER = 3  # operations after the last right one that are tried: exporters join some of them

# In float32 the largest error of a right operation may be this many times the RMS error of the values before it.
# Errors of gelu for gelu_new are thousands of times larger.
SPREAD = 256.0

# Operators that add a bias, some of them before they do something else.
ADDS = ("Add", "BiasGelu", "FastGelu", "SkipLayerNormalization")

# Operations before the first block: a graph may compute them in any order.
EMBEDDINGS = ("wte", "wpe", "drop")


@dataclass(frozen=True)
class Located:
    """Where a graph goes wrong, and why.

    Attributes:
        localisation: the taps that were found, and the first that was not.
        nearest: the value of the graph that was taken for the wrong output; empty if none was.
        diagnosis: what explains it; None if nothing was tried.
    """

    localisation: Localisation
    nearest: str
    diagnosis: Diagnosis | None


def locate(
    ledger: Ledger, interfaces: Sequence[Interface], expressed: Expressed, case: Case, float64: bool
) -> Located | None:
    """Find the first wrong operation in a case; None if every step of the case is right.

    Args:
        ledger: the weights that the graph computes with.
        expressed: how the graph takes the case.
        case: the case, with the positions that the graph counts.
        float64: whether the graph is widened.
    """
    begin = 0
    for at, size in enumerate(expressed.case.chunks):
        end = begin + size
        step = _until(case, expressed.case.chunks[: at + 1])
        values = _Values(ledger, interfaces, expressed.case, at, float64)
        found = _locate_in(ledger, step, values, float64)
        if found is not None:
            return found
        begin = end
    return None


def _until(case: Case, chunks: tuple[int, ...]) -> Case:
    """Return the case up to the end of a step. What is compared is that step, or of a long one its last positions."""
    end, kept = sum(chunks), case.keep or chunks[-1]
    return replace(
        case,
        input_ids=case.input_ids[:, :end],
        attention_mask=case.attention_mask[:, :end],
        positions=case.position_ids[:, :end],
        chunks=chunks,
        keep=min(kept, chunks[-1]),
    )


class _Values:
    """The values of a graph in one step of a case, computed a few at a time."""

    def __init__(self, ledger: Ledger, interfaces: Sequence[Interface], case: Case, step: int, float64: bool) -> None:
        self.config, self.case, self.step, self.float64 = ledger.config, case, step, float64
        held = (open_in_float64 if float64 else open_as_is)(interfaces, self.config)
        cache = ExportCache(held.export)
        for earlier in range(step):
            self._feed(cache, earlier)
        self.before = dict(vars(cache))  # what it has seen is never written to
        self._feed(cache, step)
        part = next(part for part in held.export.parts if part.interface.file == cache.by)
        self.part, self.logits = part, part.interface.logits.name
        self.model = read_model(part.interface.file)
        take_branches(self.model.graph, seen_in(cache.seen))
        self.biased = _biased(self.model.graph)

    def _feed(self, cache: ExportCache, step: int) -> None:
        case, end = self.case, sum(self.case.chunks[: step + 1])
        window = slice(end - case.chunks[step], end)
        cache.step(case.input_ids[:, window], case.attention_mask[:, :end], case.position_ids[:, window], case.keep)

    def groups(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the values by name, in the order of the graph."""
        names = _used(self.model.graph)
        config = self.config
        widest = max(config.inner_dim, 3 * config.n_embd, config.n_head * self.case.input_ids.shape[1])
        count = max(1, VALUES_BYTES // (8 * self.case.input_ids.size * widest))
        for at in range(0, len(names), count):
            yield self._run(tuple(names[at : at + count]))

    def _run(self, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Run the step; returns some of its values."""
        model, interface = onnx.ModelProto(), self.part.interface
        model.CopyFrom(self.model)
        expose(names, model.graph)
        graph = open_widened(model, interface.file, self.config) if self.float64 else open_graph(model, interface.file)
        part = replace(self.part, session=graph.session, extra=names)
        cache = ExportCache(Export(self.config, (part,)))
        vars(cache).update(self.before | {"export": cache.export})
        self._feed(cache, self.step)
        return cache.seen


def _used(graph: onnx.GraphProto) -> list[str]:
    """Return the values on whose numbers an output depends, in order. Others may be right, but they are not given."""
    wanted = {value.name for value in graph.output}
    used: list[str] = []
    for node in reversed(graph.node):
        given = [name for name in node.output if name in wanted]
        if given:
            inside = nodes_of([helper.make_graph([node], "", [], [])])
            wanted.update(name for each in inside if each.op_type not in TELLS_SIZE for name in each.input if name)
            used += reversed(given) if node.op_type != "Constant" else []
    return used[::-1]


def _biased(graph: onnx.GraphProto) -> set[str]:
    """Return the values to which a bias is added. They are half of an operation."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    return {
        name
        for node in graph.node
        if node.op_type in ADDS and not constants.isdisjoint(node.input)
        for name in node.input
        if name not in constants
    }


def _locate_in(ledger: Ledger, step: Case, values: _Values, float64: bool) -> Located | None:
    """Find the first wrong operation in one step."""
    order = tap_names(ledger.config)
    truth = truth_taps(ledger, step)
    limit = FOUND_FLOAT64 if float64 else TAP_LIMIT * FLOAT32_EPSILON * math.sqrt(ledger.config.n_layer)
    found: dict[str, float] = {}
    unlike: list[tuple[str, np.ndarray]] = []
    sizes = {math.prod(_whole(tap, step)) for tap in truth.values()}
    for group in values.groups():
        for name, value in group.items():
            if value.dtype.kind != "f" or not _may_be(value, truth, sizes):
                continue
            taps = [(tap, _nearest(value, truth[tap], step)) for tap in order if tap != LOGITS or name == values.logits]
            same = [(tap, error) for tap, error in taps if error <= limit]
            for tap, error in same:
                found[tap] = min(error, found.get(tap, math.inf))
            if not same and name not in values.biased:
                unlike.append((name, value))
    first = _first_missing(order, found)
    if not first:
        return None
    localisation = Localisation(
        step.name,
        first,
        tuple(tap for tap in order if tap not in found),
        tuple(_report(tap, found[tap], truth[tap], float64) for tap in order if tap in found),
    )
    rounding = SPREAD * max([FLOAT32_EPSILON, *found.values()])
    return _explained(ledger, step, truth, unlike, localisation, FLOAT64_LIMIT if float64 else rounding)


def _report(tap: str, error: float, true: np.ndarray, float64: bool) -> TapReport:
    """Return the report on a tap that was found."""
    return TapReport(tap, layer_of(tap), error, error if float64 else math.nan, 0.0, float(np.abs(true).max()))


def _may_be(value: np.ndarray, truth: Taps, sizes: set[int]) -> bool:
    """Tell whether a value has the size of some tap, or of one row of it."""
    rows = next(iter(truth.values())).shape[0]
    return value.size in sizes or value.size * rows in sizes


def _first_missing(order: Sequence[str], found: Mapping[str, float]) -> str:
    """Return the first tap after the last that was found; empty if that is the last of all.

    Exporters join operations, so that a tap may be no value at all although all is right after it.
    """
    blocks = [tap for tap in order if tap not in EMBEDDINGS]
    last = max((at for at, tap in enumerate(blocks) if tap in found), default=-1)
    if last >= 0:
        return "" if last == len(blocks) - 1 else blocks[last + 1]
    return next((tap for tap in EMBEDDINGS if tap not in found), blocks[0])


def _explained(
    ledger: Ledger,
    step: Case,
    truth: Taps,
    unlike: Sequence[tuple[str, np.ndarray]],
    localisation: Localisation,
    limit: float,
) -> Located:
    """Try the values that are no tap as the output of the first missing operations, the last value first.

    Before it comes to its output an operation has values of the same size, and other functions may give one of these.
    """
    order = tap_names(ledger.config)
    at = order.index(localisation.first)
    given = Operations(ledger, step, truth)
    unexplained = Located(localisation, "", None)
    for tap in order[at : at + AFTER]:
        inputs = {name: truth[name] for name in given.inputs_of(tap)}
        for name, value in reversed(_candidates(unlike, _whole(truth[tap], step))):
            for form in _forms(value, _whole(truth[tap], step)):
                tried = Operations(ledger, step, {**inputs, tap: _slots(form, truth[tap])})
                diagnosis = diagnose(tried, limit, localisation)
                if any(finding.explains for finding in diagnosis.findings):
                    return Located(replace(localisation, first=tap), name, diagnosis)
                if tap == localisation.first and diagnosis.findings:
                    unexplained = min(unexplained, Located(localisation, name, diagnosis), key=_error)
    return unexplained


def _error(located: Located) -> float:
    """Return the error of the value that was taken for the wrong output."""
    return located.diagnosis.findings[0].error if located.diagnosis is not None else math.inf


def _candidates(unlike: Sequence[tuple[str, np.ndarray]], shape: tuple[int, ...]) -> list[tuple[str, np.ndarray]]:
    """Return the first values that have the size of a tap. What comes later follows from what is wrong."""
    sizes = (math.prod(shape), math.prod(shape[1:]))
    return [(name, value) for name, value in unlike if value.size in sizes][:CANDIDATES]


def _whole(true: np.ndarray, step: Case) -> tuple[int, ...]:
    """Return the shape of a tap before its last positions are taken."""
    return true.shape[0], max(true.shape[1], step.chunks[-1]), true.shape[2]


def _nearest(value: np.ndarray, true: np.ndarray, step: Case) -> float:
    """Return the RMS error of a value as a tap, in the layout that fits best, as a share of the RMS of the tap."""
    real = step.real_of(true.shape[1])
    rows, size = true[real], math.sqrt(float((true[real] ** 2).mean())) or 1.0
    nearest = math.inf
    for form in _forms(value, _whole(true, step)):
        given = _slots(form, true)[real]
        first = float(np.abs(given[0] - rows[0]).max())  # most values differ in the first row already
        if math.isfinite(first) and first <= size:
            nearest = min(nearest, math.sqrt(float(((given - rows) ** 2).mean())) / size)
    return nearest


def _slots(form: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return as many last positions of a value as the tap has."""
    return form[:, form.shape[1] - true.shape[1] :].astype(np.float64)


def _forms(value: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield a value as ``[batch, tokens, width]``, in every order of its axes that gives this shape.

    A value of one row, such as positions, stands for all rows.
    """
    rows = [shape, (1, *shape[1:])] if shape[0] > 1 else [shape]
    squeezed = value.reshape([size for size in value.shape if size != 1])
    for wanted in rows:
        if squeezed.size != math.prod(wanted):
            continue
        for axes in permutations(range(squeezed.ndim)):
            if _splits([squeezed.shape[axis] for axis in axes], wanted):
                yield np.broadcast_to(squeezed.transpose(axes).reshape(wanted), shape)


def _splits(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    """Tell whether axes of these sizes, in this order, can be joined to a shape."""
    products = {math.prod(sizes[:count]) for count in range(len(sizes) + 1)}
    return all(math.prod(shape[:count]) in products for count in range(1, len(shape)))
