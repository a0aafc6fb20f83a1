"""The precisions that a model folder can hold: what each is called, which files it lies in, how weights become it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from converter.checkpoint.tensor import LazyTensor
from converter.errors import ConfigError
from converter.weights import data_file
from converter.weights.data_file import Plan, Progress, Spec
from converter.weights.ledger import Ledger
from converter.weights.quantize import Blocks, Rows, quantize_rows, row_pieces
from converter.weights.table import Layout, parameters
from reference.config import GPT2Config

QUANTIZE_THREADS = 2
PIECES_AHEAD = 4  # of a weight, on their way through the threads

HEADS = ("wte.weight", "lm_head.weight")  # one matrix where they are tied


@dataclass(frozen=True)
class Scheme:
    """How the projections of a model are quantized, and how embedding and output head are."""

    linear: Blocks
    head: Blocks


@dataclass(frozen=True)
class Precision:
    """One precision.

    Attributes:
        name: as ``--precision`` has it.
        suffix: of the graph's file, as transformers.js wants it.
        dtype: of the weights that are not quantized, and of the cache.
        scheme: of those that are.
        js_dtype: what transformers.js calls it.
        said: in a sentence.
        effort: how long it takes to make, as a multiple of float32.
    """

    name: str
    suffix: str
    dtype: str
    scheme: Scheme | None
    js_dtype: str
    said: str
    effort: int

    @property
    def model(self) -> str:
        """The graph's file in a model folder."""
        return f"onnx/model{self.suffix}.onnx"

    @property
    def data(self) -> str:
        """The file of its weights."""
        return f"{self.model}_data"


# Sizes of blocks and symmetry are the fastest at the quality asked for: docs/precisions.md has the figures.
INT8 = Scheme(Blocks(8, 128, symmetric=True), Blocks(8, 128, symmetric=True))
INT4 = Scheme(Blocks(4, 32, symmetric=False), Blocks(8, 128, symmetric=True))

PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", "", "float32", None, "fp32", "float32, bit for bit the source's", 1),
        Precision("fp16", "_fp16", "float16", None, "fp16", "float16; logits and softmax in float32", 2),
        Precision("int8", "_int8", "float32", INT8, "int8", "whole numbers of 8 bits", 3),
        Precision("int4", "_q4", "float32", INT4, "q4", "whole numbers of 4 bits, embedding and head of 8", 4),
    )
}


def parse(names: str | Iterable[str]) -> tuple[Precision, ...]:
    """``"fp32,int8"`` or a list of names, in the table's order.

    Raises:
        ConfigError: there is no such precision.
    """
    asked = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for name in asked:
        if name not in PRECISIONS:
            raise ConfigError(f"there is no precision {name!r}; expected some of {', '.join(PRECISIONS)}")
    if not asked:
        raise ConfigError(f"no precision is named; expected some of {', '.join(PRECISIONS)}")
    return tuple(precision for precision in PRECISIONS.values() if precision.name in asked)


def blocks_of(name: str, layout: Layout, scheme: Scheme) -> Blocks | None:
    """How a weight is quantized, if it is: projections and what turns tokens into vectors and back."""
    return scheme.linear if layout is Layout.CONV1D else scheme.head if name in HEADS else None


def parts_of(name: str, blocks: Blocks) -> tuple[str, ...]:
    """The tensors that a quantized weight becomes: numbers, scales and, if it has any, zero points."""
    stem = name.removesuffix(".weight")
    return (name, f"{stem}.scales") if blocks.symmetric else (name, f"{stem}.scales", f"{stem}.zero_points")


def plan(ledger: Ledger, precision: Precision) -> Plan:
    """The layout of a precision's data file."""
    if precision.scheme is None:
        return data_file.plan(ledger.weights, dtype=precision.dtype)
    return data_file.lay_out(specs(ledger.config, precision.scheme))


def specs(config: GPT2Config, scheme: Scheme) -> dict[str, Spec]:
    """The tensors of a quantized model."""
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
    """How much of a model's parameters is quantized."""
    sizes = {name: (np.prod(shape), blocks_of(name, layout, scheme)) for name, layout, shape in parameters(config)}
    return float(sum(size for size, blocks in sizes.values() if blocks) / sum(size for size, _ in sizes.values()))


def write(
    file: Path, layout: Plan, ledger: Ledger, precision: Precision, scan: Progress | None, progress: Progress
) -> None:
    """Write a precision's data file; see ``data_file.write``."""
    if precision.scheme is None:
        data_file.write(file, layout, ledger.weights, scan, progress)
        return
    if scan is not None:
        data_file.scan_all(ledger.weights, scan)
    data_file.write_pieces(file, layout, pieces(ledger, precision.scheme), progress)


def pieces(ledger: Ledger, scheme: Scheme) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a quantized model, a few rows at a time."""
    layouts = {name: layout for name, layout, _ in parameters(ledger.config)}
    with ThreadPoolExecutor(QUANTIZE_THREADS) as pool:
        for name, weight in ledger.weights.items():
            blocks = blocks_of(name, layouts[name], scheme)
            if blocks is None:
                for chunk in weight.chunks():
                    yield name, data_file.converted(chunk, weight, "float32")
                continue
            for rows in _quantized(pool, weight.transposed() if layouts[name] is Layout.CONV1D else weight, blocks):
                arrays = rows.numbers, rows.scales, rows.zero_points
                yield from (
                    (part, array)
                    for part, array in zip(parts_of(name, blocks), arrays, strict=False)
                    if array is not None
                )


def _quantized(pool: ThreadPoolExecutor, weight: LazyTensor, blocks: Blocks) -> Iterator[Rows]:
    """A weight, quantized by several threads; no more than a few pieces are in memory."""
    ahead: deque[Future[Rows]] = deque()
    for rows in row_pieces(weight):
        ahead.append(pool.submit(quantize_rows, rows, blocks))
        if len(ahead) > PIECES_AHEAD:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def places(layout: Plan, precision: Precision) -> dict[str, tuple[str, int, int]]:
    """Where a graph finds its initializers."""
    file = PurePosixPath(precision.data).name
    return {name: (file, *place) for name, place in layout.places.items()}
