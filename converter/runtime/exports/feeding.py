"""Feed the ONNX files of an export, step by step, whatever they take: with a cache or without, padded or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import ModelFolderError, PromptError
from converter.runtime.cache import Cache
from converter.runtime.exports.interface import JOINED, Interface
from converter.runtime.ort import CPU, InferenceSession, device_of, on_cpu, run_values
from reference.config import GPT2Config

# Types of values that numpy lacks.
NOT_NUMPYS = ("tensor(bfloat16)", "tensor(int4)", "tensor(uint4)", "tensor(float8e4m3fn)", "tensor(float8e5m2)")


@dataclass(frozen=True)
class Part:
    """An ONNX file of an export, opened.

    Attributes:
        interface: what its inputs and outputs mean.
        session: the ONNX Runtime session.
        cache_type: the element type of its cache, numpy's. A widened graph has another than its file.
        extra: more values to compute at each step; see ``ExportCache.seen``.
    """

    interface: Interface
    session: InferenceSession
    cache_type: Any = np.float32
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Export:
    """An export, opened: one file, or one for prompts and one for the tokens after them.

    Attributes:
        config: the architecture.
        parts: the files. The first takes prompts; the last has the cache, if any has one.
        device: where caches are kept, ``cpu`` or ``cuda``.
    """

    config: GPT2Config
    parts: tuple[Part, ...]
    device: str = "cpu"

    @property
    def first(self) -> Interface:
        """Return the interface of the file that takes prompts."""
        return self.parts[0].interface

    @cached_property
    def later(self) -> Part | None:
        """Return the file that takes a cache; None if none does, so that each step runs all tokens again."""
        return next((part for part in reversed(self.parts) if part.interface.pasts), None)

    @property
    def pads(self) -> bool:
        """Tell whether rows of different lengths can be fed side by side."""
        return all(part.interface.pads for part in self.parts)

    def empty_cache(self, batch: int) -> Cache:
        """Return a cache of ``batch`` rows. Rows that cannot be padded are run one by one."""
        alone = self.first.rows == 1 or not self.pads
        if batch > 1 and alone:
            return RowByRow([ExportCache(self) for _ in range(batch)], self.config.vocab_size)
        return ExportCache(self)


class ExportCache(Cache):
    """What an export has seen of several rows side by side: its cache, or the tokens themselves if it has none.

    Attributes:
        seen: the values of ``extra`` in the last run, by name, as far as numpy has their types.
        by: the file of the last run.
    """

    def __init__(self, export: Export) -> None:
        self.export = export
        self.ids = self.mask = self.positions = np.zeros((0, 0), np.int64)
        self.values: list[Any] = []
        self.seen: dict[str, np.ndarray] = {}
        self.by: Path | None = None

    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        part = self.export.later if self.used or self.export.later is None else self.export.parts[0]
        one_by_one = part is not None and part.interface.tokens == 1
        if ids.shape[1] > 1 and (one_by_one or (self.export.first.last_only and keep != 1)):
            return self._one_by_one(ids, mask, positions, keep)
        self._remember(ids, mask, positions)
        if part is None:
            logits = self._again(ids.shape[1], keep)
        else:
            logits, self.values = self._run(part, ids, mask, positions, keep)
        self.used += ids.shape[1]
        return logits[:, -keep:]

    def _remember(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> None:
        before = self.used > 0
        self.ids = np.concatenate([self.ids, ids], axis=1) if before else np.array(ids)
        self.positions = np.concatenate([self.positions, positions], axis=1) if before else np.array(positions)
        self.mask = np.array(mask)

    def _one_by_one(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        """Run a step for each token: the file takes only one, or gives the logits of the last only."""
        begin, parts = mask.shape[1] - ids.shape[1], []
        for at in range(ids.shape[1]):
            fed = ids[:, at : at + 1], mask[:, : begin + at + 1], positions[:, at : at + 1]
            parts.append(self.step(*fed, 1))
        return np.concatenate(parts, axis=1)[:, -keep:]

    def _again(self, new: int, keep: int) -> np.ndarray:
        """Run all tokens again; return the logits of the new ones, or of the last ``keep``. There is no cache."""
        part, length = self.export.parts[0], self.ids.shape[1]
        size = part.interface.tokens
        if size is not None and length > size:
            raise PromptError(f"{part.interface.file} takes {size} tokens at most; there are {length}")
        room = ((0, 0), (0, (size or length) - length))
        fed = np.pad(self.ids, room), np.pad(self.mask, room), np.pad(self.positions, room)
        logits, _ = self._run(part, *fed, keep if size is None else 0)
        few = logits.shape[1] < fed[0].shape[1]  # the last ones, as all that it gives or as asked for
        return logits if few else logits[:, length - new : length]

    def _run(
        self, part: Part, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int
    ) -> tuple[np.ndarray, list[Any]]:
        """Run a file once; returns the logits ``[batch, tokens, vocab_size]`` and its cache.

        Args:
            keep: the number of last logits to ask for, if the file can be asked; 0 for all.
        """
        refuse_size(part.interface, *ids.shape)
        feeds = feeds_of(part, ids, mask, positions, keep)
        feeds |= self._cached(part, len(ids))
        cache = [value.name for value in part.interface.presents] if self.export.later is not None else []
        names = [part.interface.logits.name, *part.extra, *cache]
        held = device_of(self.export.device)
        values = run_values(
            part.session,
            {name: on_cpu(value) if isinstance(value, np.ndarray) else value for name, value in feeds.items()},
            names,
            [CPU] * (len(names) - len(cache)) + [held] * len(cache),
        )
        self.by = part.interface.file
        extra = zip(part.extra, values[1:], strict=False)
        self.seen = {name: value.numpy() for name, value in extra if value.data_type() not in NOT_NUMPYS}
        logits = values[0].numpy()
        if logits.ndim == 2:
            logits = logits[:, None]
        asked = min(keep, ids.shape[1]) if keep and part.interface.asks else ids.shape[1]
        given = [len(ids), 1 if part.interface.last_only else asked, self.export.config.vocab_size]
        if list(logits.shape) != given:
            raise ModelFolderError(f"{part.interface.file} gives logits {list(logits.shape)}; expected {given}")
        return logits, values[1 + len(part.extra) :]

    def _cached(self, part: Part, rows: int) -> dict[str, Any]:
        """Return what is fed for the cache: what the last step gave, or nothing yet."""
        interface = part.interface
        if not interface.pasts:
            return {}
        values = self.values or [empty(interface, rows, self.export.config, part.cache_type)] * len(interface.pasts)
        return dict(zip((value.name for value in interface.pasts), values, strict=True))

    def keep_rows(self, rows: np.ndarray) -> None:
        self.ids, self.mask, self.positions = self.ids[rows], self.mask[rows], self.positions[rows]
        self._take(rows, 0)

    def keep_slots(self, slots: np.ndarray) -> None:
        self.ids, self.positions = self.ids[:, slots], self.positions[:, slots]
        self.mask, self.used = self.mask[:, slots], len(slots)
        self._take(slots, 2)

    def _take(self, indices: np.ndarray, axis: int) -> None:
        """Take rows (axis 0) or slots (axis 2) of the cache. They go through the memory of the CPU."""
        if not self.values or self.export.later is None:
            return
        interface = self.export.later.interface
        axis = interface.slots if axis else interface.batch_axis
        self.values = [np.ascontiguousarray(array.take(indices, axis)) for array in self.arrays()]

    def arrays(self) -> list[np.ndarray]:
        return [value if isinstance(value, np.ndarray) else value.numpy() for value in self.values]


def refuse_size(interface: Interface, rows: int, tokens: int) -> None:
    """Refuse a batch that a file of fixed dimensions does not take.

    Raises:
        PromptError: it takes other numbers of rows or tokens.
    """
    for what, found, expected in (("rows", rows, interface.rows), ("tokens", tokens, interface.tokens)):
        if expected not in (None, found):
            raise PromptError(
                f"{interface.file} takes exactly {expected} {what} at a time, not {found}; "
                f"export it with dimensions of any size"
            )


def feeds_of(part: Part, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> dict[str, np.ndarray]:
    """Return what is fed to a file besides the cache, in the types that it takes; for ``keep`` see ``ExportCache``."""
    interface = part.interface
    total = mask.shape[1]
    given = {interface.ids: ids, interface.mask: mask, interface.positions: positions}
    given |= {interface.branch: np.array([total > ids.shape[1]])}
    feeds = {value.name: np.ascontiguousarray(array.astype(value.type)) for value, array in given.items() if value}
    if interface.branch is not None and interface.branch.rank == 0:
        feeds[interface.branch.name] = feeds[interface.branch.name].reshape(())
    if interface.keep is not None and interface.asks:
        feeds[interface.keep.name] = np.full((1,) * interface.keep.rank, keep, interface.keep.type)
    return feeds


def empty(interface: Interface, rows: int, config: GPT2Config, cache_type: Any) -> np.ndarray:
    """Return an input of the cache that holds no token.

    Raises:
        ModelFolderError: the cache cannot be empty.
    """
    if interface.cached:
        raise ModelFolderError(
            f"{interface.file} takes a cache of {interface.cached} tokens, no more and no fewer; "
            f"export it with dimensions of any size"
        )
    shape = [rows, config.n_head, config.n_head, config.head_dim]
    shape[interface.slots - interface.batch_axis] = 0
    return np.empty([2, *shape] if interface.pasts[0].rank == JOINED else shape, cache_type)


class RowByRow(Cache):
    """Rows that are run one by one, each without its padding."""

    def __init__(self, rows: Sequence[Cache], vocab_size: int) -> None:
        self.rows, self.vocab_size = list(rows), vocab_size
        self.mask = np.zeros((len(self.rows), 0), bool)  # the slots of each row that are tokens

    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        new = mask[:, -ids.shape[1] :] > 0
        logits: list[np.ndarray] = []
        for row, real, row_ids, row_positions in zip(self.rows, new, ids, positions, strict=True):
            logits.append(np.zeros((len(real), self.vocab_size), np.float32))
            if real.any():
                total = row.used + int(real.sum())
                fed = row_ids[real][None], np.ones((1, total), np.int64), row_positions[real][None]
                logits[-1][real] = row.step(*fed, 0)[0]
        self.mask = np.concatenate([self.mask, new], axis=1)
        self.used += ids.shape[1]
        return np.stack(logits)[:, -keep:]

    def keep_rows(self, rows: np.ndarray) -> None:
        self.rows = [self._copy(self.rows[row]) for row in rows]
        self.mask = self.mask[rows]

    @staticmethod
    def _copy(row: Cache) -> Cache:
        """Return a copy of a row. What it holds is never written to, so that it can be shared."""
        assert isinstance(row, ExportCache)
        copy = ExportCache(row.export)
        vars(copy).update(vars(row))
        return copy

    def keep_slots(self, slots: np.ndarray) -> None:
        for row, real in zip(self.rows, self.mask, strict=True):
            number = np.cumsum(real) - 1  # of each token in its row
            row.keep_slots(number[slots[real[slots]]])
        self.mask, self.used = self.mask[:, slots], len(slots)

    def arrays(self) -> list[np.ndarray]:
        return [array for row in self.rows for array in row.arrays()]
