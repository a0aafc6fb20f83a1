"""A cache whose rows have lengths of their own: a row is filled, grows, is copied or left while the others go on.

The graph of ``converter.runtime.in_place`` takes for each row how many slots count (``seqlens_k``), and writes what is
new behind them. So rows stand side by side without padding. Each row's slots are of one size and lie together, which
makes a prompt's own run possible: it is given the views of its row alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.runtime.cache import NO_LOGITS, InPlaceCache, empty_buffer, run_in_place
from converter.runtime.eight_bits import Scales
from converter.runtime.gpu.buffers import Pool, Steps
from converter.runtime.ort import on_cpu

if TYPE_CHECKING:
    from converter.runtime.session import Model

RANDOM_TOKENS, SEED = 128, 0  # of the text that the scales of 8 bits begin with


class Slots(ABC):
    """The caches of several rows, and which tokens they hold.

    Args:
        model: what runs them.
        rows: how many rows there are.
        slots: how many tokens a row has room for.

    Attributes:
        held: the tokens whose keys and values a row holds, ``[rows, slots]`` int64, of which the first ``used`` count.
        used: how many tokens each row holds, ``[rows]`` int64.
    """

    def __init__(self, model: Model, rows: int, slots: int) -> None:
        self.model = model
        self.held, self.used = np.full((rows, slots), model.pad_id, np.int64), np.zeros(rows, np.int64)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the caches when all rows are full."""
        export, (rows, slots) = self.model.export, self.held.shape
        element = np.dtype(self.model.cache_type if export is None else export.parts[-1].cache_type)
        return 2 * self.model.config.n_layer * rows * slots * self.model.config.n_embd * element.itemsize

    def run(self, row: int, ids: Sequence[int], wanted: bool = True) -> np.ndarray | None:
        """Run more tokens of one row; return the logits after the last, if wanted, ``[vocab_size]`` float32."""
        logits = self._run_one(row, np.array(ids, np.int64), wanted)
        begin = self.used[row]
        self.held[row, begin : begin + len(ids)] = ids
        self.used[row] += len(ids)
        return logits

    def step(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        """Run one more token of several rows; return the logits after each, ``[vocab_size]`` float32."""
        logits = self._run_each(tokens)
        self._note(tokens)
        return logits

    def likeliest(self, tokens: Mapping[int, int]) -> Mapping[int, int] | None:
        """Run one more token of several rows; return the likeliest next of each.

        None, and nothing is run, where only logits can be had.
        """
        chosen = self._choose_each(tokens)
        if chosen is not None:
            self._note(tokens)
        return chosen

    def _note(self, tokens: Mapping[int, int]) -> None:
        for row, token in tokens.items():
            self.held[row, self.used[row]] = token
            self.used[row] += 1

    def copy(self, source: int, row: int, count: int) -> None:
        """Make a row hold the first ``count`` tokens of another row, or of its own, and nothing else."""
        self._copy(source, row, count)
        self.held[row, :count] = self.held[source, :count]
        self.used[row] = count

    def longest_prefix(self, ids: Sequence[int]) -> tuple[int, int]:
        """Return the row that holds most of the first tokens of ``ids``, and how many it holds."""
        same = (self.held[:, : len(ids)] == ids) & (np.arange(len(ids)) < self.used[:, None])
        counts = same.cumprod(axis=1).sum(axis=1)
        return int(counts.argmax()), int(counts.max())

    @abstractmethod
    def _run_one(self, row: int, ids: np.ndarray, wanted: bool) -> np.ndarray | None:
        """Run tokens ``[new]`` of one row; see ``run``."""

    @abstractmethod
    def _run_each(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        """Run one token of several rows; see ``step``."""

    def _choose_each(self, _: Mapping[int, int]) -> Mapping[int, int] | None:
        """Run one token of several rows; see ``likeliest``."""
        return None

    @abstractmethod
    def _copy(self, source: int, row: int, count: int) -> None:
        """Copy the first keys and values of one row into another."""


class SharedSlots(Slots):
    """Slots of one buffer a layer, for a graph whose cache is in place. All rows run at once.

    Memory is given by the system as slots are written to.
    """

    dtype: Any = np.float32
    rounding: Scales | None = None  # of buffers of 8 bits

    def __init__(self, model: Model, rows: int, slots: int) -> None:
        super().__init__(model, rows, slots)
        self.buffers = [empty_buffer(model, rows, slots, self.dtype) for _ in range(model.config.n_layer)]
        self._views = dict[tuple[int, int], list[Any]]()

    def _run_one(self, row: int, ids: np.ndarray, wanted: bool) -> np.ndarray | None:
        positions = np.arange(self.used[row], self.used[row] + len(ids))
        logits = self._run(row, row + 1, ids[None], positions[None], 1 if wanted else NO_LOGITS)
        return logits[0, 0] if wanted else None

    def _run_each(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        """Rows between those that are asked for run along, as the operator knows no gaps. They run their first token
        once more, which changes nothing.
        """
        end = max(tokens) + 1
        ids, positions = self.held[:end, :1].copy(), np.zeros((end, 1), np.int64)
        for row, token in tokens.items():
            ids[row], positions[row] = token, self.used[row]
        return dict(enumerate(self._run(0, end, ids, positions, 1)[:, 0]))

    def _copy(self, source: int, row: int, count: int) -> None:
        if source != row:
            for layer in self.buffers:
                layer[:, row, :, :count] = layer[:, source, :, :count]

    def _run(self, begin: int, end: int, ids: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        """Run tokens of the rows from ``begin`` to ``end`` at their positions, both ``[rows, new]``.

        Returns:
            The logits of the last ``keep`` positions, ``[rows, keep, vocab_size]`` float32.
        """
        if self.model.mover is not None:
            self.model.mover.step()
        last = positions[:, -1]
        bias = np.zeros((1, 1, ids.shape[1], int(last.max()) + 1), np.float32)
        scales = None if self.rounding is None else self.rounding.values
        return run_in_place(self.model, ids, positions, bias, last, keep, self._values(begin, end), scales)

    def _values(self, begin: int, end: int) -> list[Any]:
        """Return keys and values of some rows as ONNX Runtime takes them."""
        if (begin, end) not in self._views:
            self._views[begin, end] = [on_cpu(half[begin:end]) for layer in self.buffers for half in layer]
        return self._views[begin, end]


class RoundedSlots(SharedSlots):
    """Slots of 8 bits: see ``converter.runtime.eight_bits``.

    A prompt runs with a cache of float32, which lasts until its row is stepped or another prompt runs. The scales begin
    with what a text of random tokens needs, as the first prompt may be too short to tell.
    """

    dtype = np.int8

    def __init__(self, model: Model, rows: int, slots: int) -> None:
        super().__init__(model, rows, slots)
        self.rounding: Scales = Scales(model.config)
        self._row, self._exact = -1, InPlaceCache(model, 1)
        tokens = np.random.default_rng(SEED).integers(model.config.vocab_size, size=min(slots, RANDOM_TOKENS))
        self._run_one(0, tokens, wanted=False)
        self._row = -1

    @property
    def nbytes(self) -> int:
        """Return the bytes of the caches when all rows are full."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def _run_one(self, row: int, ids: np.ndarray, wanted: bool) -> np.ndarray | None:
        begin = int(self.used[row])
        end = begin + len(ids)
        if row != self._row or self._exact.used != begin:
            self._row, self._exact = row, self._read(row, begin)
        positions, keep = np.arange(begin, end)[None], 1 if wanted else NO_LOGITS
        logits = self._exact.step(ids[None], np.ones((1, end), np.int64), positions, keep)
        for layer, held in enumerate(self._exact.layers()):
            place = slice(row, row + 1), slice(begin, end)
            self.rounding.write(layer, self.buffers[layer], place, held[:, :, :, begin:], self.held.shape[1])
        return logits[0, 0] if wanted else None

    def _copy(self, source: int, row: int, count: int) -> None:
        super()._copy(source, row, count)
        self._row = -1

    def _read(self, row: int, used: int) -> InPlaceCache:
        """Return what a row holds in float32."""
        cache, rows = InPlaceCache(self.model, 1), slice(row, row + 1)
        cache.fill([self.rounding.read(layer, buffer[:, rows, :, :used]) for layer, buffer in enumerate(self.buffers)])
        return cache

    def _run_each(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        logits = super()._run_each(tokens)
        rows = list(tokens)
        for layer, buffer in enumerate(self.buffers):
            newest = buffer[:, rows, :, self.used[rows]].transpose(1, 0, 2, 3)[:, :, :, None]
            self.rounding.widen_full(layer, buffer, newest, self.held.shape[1])
        return logits


class GpuSlots(Slots):
    """Slots of buffers on a GPU. All rows run at once."""

    def __init__(self, model: Model, pool: Pool, rows: int, slots: int) -> None:
        super().__init__(model, rows, slots)
        self.pool, self.buffers = pool, pool.lend(model, rows)

    def __del__(self) -> None:
        if hasattr(self, "buffers"):
            self.pool.take_back(self.buffers)

    def _run_one(self, row: int, ids: np.ndarray, wanted: bool) -> np.ndarray | None:
        begin, new = int(self.used[row]), len(ids)
        positions = np.arange(begin, begin + new)
        kept = np.array([new - 1])
        logits = self.buffers.run(row, ids[None], positions[None], positions[-1:], kept)
        return logits[0] if wanted else None

    def _run_each(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        steps = self._fed(tokens)
        steps.run()
        return dict(enumerate(steps.logits()))

    def _choose_each(self, tokens: Mapping[int, int]) -> Mapping[int, int]:
        return dict(enumerate(self._fed(tokens).run().tolist()))

    def _fed(self, tokens: Mapping[int, int]) -> Steps:
        """Return the steps that will run these tokens. Rows between them run their first token once more."""
        steps = self.buffers.steps(max(tokens) + 1)
        ids, last = np.zeros(steps.rows, np.int64), np.zeros(steps.rows, np.int64)
        there = min(steps.rows, len(self.held))
        ids[:there] = self.held[:there, 0]
        for row, token in tokens.items():
            ids[row], last[row] = token, self.used[row]
        self.buffers.refuse_beyond(last)
        steps.feed(ids, last, last)
        return steps

    def _copy(self, source: int, row: int, count: int) -> None:
        if source != row and count:
            self.buffers.take(self.buffers, [source], row)


class SeparateSlots(Slots):
    """A cache for each row, for a graph that returns a new cache at every step. Rows run one after another."""

    def __init__(self, model: Model, rows: int, slots: int) -> None:
        super().__init__(model, rows, slots)
        self.caches = [model.empty_cache(1) for _ in range(rows)]

    def _run_one(self, row: int, ids: np.ndarray, wanted: bool) -> np.ndarray | None:
        logits = self._run(row, ids)
        return logits if wanted else None

    def _run_each(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        return {row: self._run(row, np.array([token], np.int64)) for row, token in tokens.items()}

    def _run(self, row: int, ids: np.ndarray) -> np.ndarray:
        end = int(self.used[row]) + len(ids)
        positions = np.arange(self.used[row], end)
        return self.model.step(ids[None], np.ones((1, end), np.int64), positions[None], self.caches[row], keep=1)[0, -1]

    def _copy(self, source: int, row: int, count: int) -> None:
        self.caches[row] = copy(self.caches[source]) if count else self.model.empty_cache(1)
        if count < self.caches[row].used:
            self.caches[row].cut(count)


def slots_of(model: Model, rows: int, slots: int) -> Slots:
    """Return empty slots of the kind that the model's graph can run with."""
    if model.pool is not None:
        return GpuSlots(model, model.pool, rows, slots)
    if model.cache == "int8":
        return RoundedSlots(model, rows, slots)
    return (SharedSlots if model.in_place else SeparateSlots)(model, rows, slots)
