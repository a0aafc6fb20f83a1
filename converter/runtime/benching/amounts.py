"""What the measurements amount to: bytes read, limits, and the rows of the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from converter.runtime.benching.measuring import Key
from converter.runtime.benching.results import Decode, MeasuredPrecision, Prefill, Spread
from converter.runtime.benching.settings import Cell, Settings, cells_of
from converter.weights import write
from converter.weights.data_file import Spec
from converter.weights.precisions import PRECISIONS
from converter.weights.table import parameters
from reference.config import GPT2Config
from reference.head import LM


def weight_bytes(config: GPT2Config, precision: str, batch_size: int = 1) -> int:
    """Return the least bytes of weights that one step reads.

    All of the precision's weights, but of a table of embeddings only the rows that are looked up: one of positions, and
    one a row of the batch of tokens, unless the output head is that table and reads all of it.
    """
    row, config = PRECISIONS[precision], replace(config, head=LM)  # a second graph has no part in it
    looked_up = {"wpe": 1} if config.tie_word_embeddings else {"wpe": 1, "wte": batch_size}
    if row.scheme is not None:
        specs = write.specs(config, row.scheme)
    else:
        specs = {name: Spec(row.dtype, shape) for name, _, shape in parameters(config)}
    total = 0
    for name, spec in specs.items():
        rows = spec.shape[0]
        total += spec.nbytes // rows * min(rows, looked_up.get(name.partition(".")[0], rows))
    return total


def bytes_per_step(config: GPT2Config, precision: str, batch_size: int, cached: float) -> int:
    """Return the bytes that are read for one token of each row: all weights, and the cache of ``cached`` tokens a row.

    A step reads more than that, and writes: the limit that follows is one that nothing gets beyond, unless the weights
    fit into the processor's caches.
    """
    number = np.dtype(PRECISIONS[precision].dtype).itemsize
    cache = 2 * config.n_layer * config.n_embd * number * cached
    return weight_bytes(config, precision, batch_size) + round(batch_size * cache)


def summary(
    name: str, config: GPT2Config, settings: Settings, samples: Mapping[Key, list[float]], bandwidth: float | None
) -> MeasuredPrecision:
    """Return the medians of a precision's samples."""

    def of(*key: str | int, times: int = 1) -> Spread | None:
        return Spread.over([times * value for value in samples.get(key, [])])

    cells = sorted(cells_of(settings), key=lambda cell: (cell.batch_size, cell.tokens))
    return MeasuredPrecision(
        precision=name,
        weight_bytes=weight_bytes(config, name),
        load_seconds=of("load"),
        resident_bytes=of("resident"),
        peak_bytes=of("peak"),
        prefill=tuple(
            Prefill(cell.batch_size, cell.tokens, of("prefill", cell.batch_size, cell.tokens, times=1000))
            for cell in cells
            if cell.prefill
        ),
        decode=tuple(
            decoded(name, config, settings, cell, samples.get(("decode", cell.batch_size, cell.tokens), []), bandwidth)
            for cell in cells
            if cell.decode
        ),
    )


def decoded(
    name: str, config: GPT2Config, settings: Settings, cell: Cell, seconds: Sequence[float], bandwidth: float | None
) -> Decode:
    """Return a decode speed with its limit."""
    speed = Spread.over([cell.batch_size * settings.new_tokens / value for value in seconds])
    cached = cell.tokens + 1 + (settings.new_tokens - 1) / 2  # in the middle of what is timed
    read = bytes_per_step(config, name, cell.batch_size, cached)
    limit = cell.batch_size * bandwidth / read if bandwidth is not None else None
    share = speed.median / limit if speed is not None and limit is not None else None
    return Decode(cell.batch_size, cell.tokens, speed, read, limit, share)


def not_measured(measured: Sequence[MeasuredPrecision]) -> Iterator[str]:
    """Yield what has no sample."""
    for one in measured:
        for prefilled in one.prefill:
            if prefilled.milliseconds is None:
                yield f"{one.precision}: prefill, batch {prefilled.batch_size}, {prefilled.prompt_length} tokens"
        for grown in one.decode:
            if grown.tokens_per_second is None:
                yield f"{one.precision}: decode, batch {grown.batch_size}, context {grown.context}"
