"""Turns the weights of a source into those of a precision, and lays them out in its data file."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from converter.checkpoint.tensor import LazyTensor
from converter.weights import data_file
from converter.weights.data_file import Plan, Progress, Spec
from converter.weights.ledger import Ledger
from converter.weights.precisions import Blocks, Precision, Scheme
from converter.weights.quantize import Rows, quantize_rows, row_pieces
from converter.weights.table import VOCABULARY, Layout, parameters
from reference.config import GPT2Config

QUANTIZE_THREADS = 2
PIECES_AHEAD = 4  # of a weight, on their way through the threads


def blocks_of(name: str, layout: Layout, scheme: Scheme) -> Blocks | None:
    """Return how a weight is quantized; None if it is not. Projections and the vocabulary's matrices are."""
    return scheme.linear if layout is Layout.CONV1D else scheme.head if name in VOCABULARY else None


def rows_of_outputs(weight: LazyTensor, layout: Layout) -> LazyTensor:
    """Return a weight with a row for each output, as ``nn.Linear`` and MatMulNBits have it."""
    return weight.transposed() if layout is Layout.CONV1D else weight


def parts_of(name: str, blocks: Blocks) -> tuple[str, ...]:
    """Return the names of a quantized weight's tensors: numbers, scales and, unless symmetric, zero points."""
    stem = name.removesuffix(".weight")
    return (name, f"{stem}.scales") if blocks.symmetric else (name, f"{stem}.scales", f"{stem}.zero_points")


def plan(ledger: Ledger, precision: Precision) -> Plan:
    """Lay out the data file of a precision."""
    if precision.scheme is None:
        return data_file.plan(ledger.weights, dtype=precision.dtype)
    return data_file.lay_out(specs(ledger.config, precision.scheme))


def specs(config: GPT2Config, scheme: Scheme) -> dict[str, Spec]:
    """Return the type and shape of each tensor of a quantized model."""
    found: dict[str, Spec] = {}
    for name, layout, shape in parameters(config):
        blocks = blocks_of(name, layout, scheme)
        if blocks is None:
            found[name] = Spec("float32", shape)
            continue
        outputs, inputs = shape[::-1] if layout is Layout.CONV1D else shape
        count = blocks.count(inputs)
        packed = count, blocks.row_bytes(inputs) // count
        shapes = ("uint8", packed), ("float32", (count,)), ("uint8", (blocks.zero_point_bytes(inputs),))
        for part, (dtype, rest) in zip(parts_of(name, blocks), shapes, strict=False):
            found[part] = Spec(dtype, (outputs, *rest))
    return found


def quantized_share(config: GPT2Config, scheme: Scheme) -> float:
    """Return the share of a model's parameters that is quantized."""
    sizes = {name: (np.prod(shape), blocks_of(name, layout, scheme)) for name, layout, shape in parameters(config)}
    return float(sum(size for size, blocks in sizes.values() if blocks) / sum(size for size, _ in sizes.values()))


def write(
    file: Path, layout: Plan, ledger: Ledger, precision: Precision, scan: Progress | None, progress: Progress
) -> None:
    """Write the data file of a precision; see ``data_file.write``."""
    if precision.scheme is None:
        data_file.write(file, layout, ledger.weights, scan, progress)
        return
    if scan is not None:
        data_file.scan_all(ledger.weights, scan)
    data_file.write_pieces(file, layout, pieces(ledger, precision.scheme), progress)


def pieces(ledger: Ledger, scheme: Scheme) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a quantized model, a few rows at a time."""
    layouts = {name: layout for name, layout, _ in parameters(ledger.config)}
    with ThreadPoolExecutor(QUANTIZE_THREADS) as pool:
        for name, weight in ledger.weights.items():
            blocks = blocks_of(name, layouts[name], scheme)
            if blocks is None:
                for chunk in weight.chunks():
                    yield name, data_file.converted(chunk, weight, "float32")
                continue
            for rows in _quantized(pool, rows_of_outputs(weight, layouts[name]), blocks):
                arrays = rows.numbers, rows.scales, rows.zero_points
                yield from (
                    (part, array)
                    for part, array in zip(parts_of(name, blocks), arrays, strict=False)
                    if array is not None
                )


def _quantized(pool: ThreadPoolExecutor, weight: LazyTensor, blocks: Blocks) -> Iterator[Rows]:
    """Quantize a weight in several threads; only a few pieces are in memory at a time."""
    ahead: deque[Future[Rows]] = deque()
    for rows in row_pieces(weight):
        ahead.append(pool.submit(quantize_rows, rows, blocks))
        if len(ahead) > PIECES_AHEAD:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def places(layout: Plan, precision: Precision) -> dict[str, tuple[str, int, int]]:
    """Return where a graph finds its initializers: name → file, offset, length."""
    file = PurePosixPath(precision.data).name
    return {name: (file, *place) for name, place in layout.places.items()}
