"""Keys and values of the tokens that have been run, kept from step to step where the runtime computes with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from converter.runtime.decoder import Decoder, scale_name
from converter.runtime.ort import CPU, device_of, empty_on, on_cpu, run_values

FED = ("input_ids", "attention_mask")  # what every graph takes
STEP_FED = (*FED, "position_ids", "num_logits_to_keep")  # and beside the cache that of a language model
IN_PLACE_FED = (
    "input_ids",
    "position_ids",
    "num_logits_to_keep",
    "attention_bias",
    "seqlens_k",
    "total_sequence_length",
)

# Added to the score of a padding token: no probability is left of it beside any real token, and a row of nothing but
# padding stays finite, as it would not with minus infinity or, once a score is added, with float32's lowest number.
MASKED = -1e30

# Slots are made a quarter more than are needed, so that few steps copy the cache, and in multiples of 64.
SPARE_SHARE, SLOT_MULTIPLE = 4, 64

# Tokens of one row that run at once. ONNX Runtime computes the score of every token with every later one, too, and
# throws it away: in chunks there are fewer of these, and the scores stay in the caches of the processor.
CHUNK = 256

NO_LOGITS = -(1 << 31)  # in place of a number of logits to keep: none, as the last of the graph's slice is cut off


class Cache(ABC):
    """The cache of several rows side by side.

    Attributes:
        used: its slots, the same of every row; one a token or padding.
    """

    used = 0

    @abstractmethod
    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        """Run new tokens and add them to the cache; see ``Model.step``."""

    def likeliest(self, _ids: np.ndarray, _positions: np.ndarray) -> np.ndarray | None:
        """Run a token of each row, ``[batch, 1]``, and return the likeliest next of each, ``[batch]`` int64.

        None, and nothing is run, where only logits can be had.
        """
        return None

    @abstractmethod
    def keep_rows(self, rows: np.ndarray) -> None:
        """Keep these rows, in this order; a row may be kept several times."""

    @abstractmethod
    def keep_slots(self, slots: np.ndarray) -> None:
        """Keep these slots of every row, in ascending order."""

    def cut(self, used: int) -> None:
        """Keep the first slots only."""
        self.keep_slots(np.arange(used))

    @abstractmethod
    def arrays(self) -> list[np.ndarray]:
        """Return keys and values of each layer in turn, ``[batch, n_head, used, head_dim]``."""


class GrowingCache(Cache):
    """The cache of the shipped graph: every step returns a new cache, longer by the new tokens."""

    def __init__(self, model: Decoder, batch: int) -> None:
        self.model, self.devices = model, [device_of(model.device)] * (2 * model.config.n_layer)
        shape = [batch, model.config.n_head, 0, model.config.head_dim]
        # ONNX Runtime 1.23 takes a tensor without an address for none at all, and numpy gives even an empty array one.
        self.nothing = np.empty(shape, model.cache_type)
        on_device = self.devices[0]
        empty = on_cpu(self.nothing) if model.device == "cpu" else empty_on(on_device, shape, model.cache_type)
        self.values = [empty] * len(self.devices)

    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        return self.run(ids, mask, positions, keep, ["logits"])[0]

    def run(
        self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int, names: Sequence[str]
    ) -> list[np.ndarray]:
        """Run new tokens as ``step`` does; return the outputs of these names."""
        fed = *(np.ascontiguousarray(array, np.int64) for array in (ids, mask, positions)), np.array(keep, np.int64)
        pasts, presents = self.model.cache_names
        feeds = dict(zip([*STEP_FED, *pasts], [*map(on_cpu, fed), *self.values], strict=True))
        devices = [*[CPU] * len(names), *self.devices]
        found = run_values(self.model.session, feeds, [*names, *presents], devices)
        self.values = found[len(names) :]
        self.used += ids.shape[1]
        return [value.numpy() for value in found[: len(names)]]

    def keep_rows(self, rows: np.ndarray) -> None:
        self._take(rows, 0)

    def keep_slots(self, slots: np.ndarray) -> None:
        self._take(slots, 2)
        self.used = len(slots)

    def _take(self, indices: np.ndarray, axis: int) -> None:
        """Gather rows or slots where the cache lies."""
        indices = np.ascontiguousarray(indices, np.int64)
        pasts, presents = self.model.cache_names
        feeds = dict(zip(["indices", *pasts], [on_cpu(indices), *self.values], strict=True))
        self.values = run_values(self.model.gather(axis), feeds, presents, self.devices)

    def arrays(self) -> list[np.ndarray]:
        return [value.numpy() for value in self.values]


class InPlaceCache(Cache):
    """Buffers with slots to spare. The graph of ``converter.runtime.in_place`` writes new keys and values into them.

    Nothing is copied but when they are full, and when rows leave or change places.
    """

    dtype: Any = np.float32
    scales: np.ndarray | None = None  # of buffers of 8 bits, ``[n_layer, 2, n_embd]`` float32

    def __init__(self, model: Decoder, batch: int) -> None:
        self.model, self.batch = model, batch
        self.buffers = [self._buffer(batch, 0) for _ in range(model.config.n_layer)]
        self.values: list[Any] = []

    def _buffer(self, batch: int, slots: int) -> np.ndarray:
        """Return the buffer of one layer, keys and values: ``[2, batch, n_head, slots, head_dim]``."""
        return empty_buffer(self.model, batch, slots, self.dtype)

    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        new = ids.shape[1]
        self._make_room(self.used + new)
        logits = self._run_all(ids, mask, positions, keep)
        self.used += new
        return logits

    def _run_all(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        """Run new tokens for which there is room; see ``step``."""
        new = ids.shape[1]
        # The operator takes several new tokens on top of a cache one row at a time.
        if new <= CHUNK and (new == 1 or not self.used or len(ids) == 1):
            return self._run(ids, mask, positions, keep, self.values)
        rows = [slice(row, row + 1) for row in range(len(ids))]
        return np.concatenate([self._run_row(row, ids[row], mask[row], positions[row], keep) for row in rows])

    def _run_row(self, row: slice, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        """Run new tokens of one row in chunks; see ``step``."""
        values, new = [on_cpu(half[row]) for layer in self.buffers for half in layer], ids.shape[1]
        first = new - keep if keep else 0  # the first token whose logits are wanted
        parts = []
        for begin in range(0, new, CHUNK):
            end = min(begin + CHUNK, new)
            seen, wanted = mask[:, : self.used + end], end - max(begin, first)
            chunk = ids[:, begin:end], seen, positions[:, begin:end], wanted if wanted > 0 else NO_LOGITS
            parts.append(self._run(*chunk, values))
        return np.concatenate(parts, axis=1)

    def _run(
        self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int, values: list[Any]
    ) -> np.ndarray:
        last = np.full(len(ids), mask.shape[1] - 1)
        bias = attention_bias(mask, ids.shape[1])
        return run_in_place(self.model, ids, positions, bias, last, keep, values, self.scales)

    def _make_room(self, slots: int) -> None:
        if slots > self.buffers[0].shape[3]:
            whole = slots + slots // SPARE_SHARE
            self._move(range(self.batch), whole + -whole % SLOT_MULTIPLE)

    def _move(self, rows: Sequence[int] | np.ndarray, slots: int) -> None:
        """Move rows into new buffers, one layer at a time, so that only one layer is in memory twice."""
        self.values.clear()
        for i, old in enumerate(self.buffers):
            self.buffers[i] = self._buffer(len(rows), slots)
            for to, row in enumerate(rows):
                self.buffers[i][:, to, :, : self.used] = old[:, row, :, : self.used]
        self.batch = len(rows)
        self.values = [on_cpu(half) for layer in self.buffers for half in layer]

    def fill(self, layers: Sequence[np.ndarray]) -> None:
        """Hold these keys and values, ``[2, batch, n_head, slots, head_dim]`` of each layer, and nothing else."""
        self._make_room(layers[0].shape[3])
        self.used = layers[0].shape[3]
        for buffer, layer in zip(self.buffers, layers, strict=True):
            buffer[:, :, :, : self.used] = layer

    def keep_rows(self, rows: np.ndarray) -> None:
        if len(rows) != self.batch:
            self._move(rows, self.buffers[0].shape[3])
            return
        moved = np.flatnonzero(rows != np.arange(self.batch))
        for layer in self.buffers:
            layer[:, moved, :, : self.used] = layer[:, rows[moved], :, : self.used]

    def keep_slots(self, slots: np.ndarray) -> None:
        for layer in self.buffers:
            layer[:, :, :, : len(slots)] = layer[:, :, :, slots]
        self.used = len(slots)

    def cut(self, used: int) -> None:
        self.used = used

    def layers(self) -> list[np.ndarray]:
        """Return keys and values of each layer, ``[2, batch, n_head, used, head_dim]`` float32."""
        return [buffer[:, :, :, : self.used] for buffer in self.buffers]

    def arrays(self) -> list[np.ndarray]:
        return [half for layer in self.layers() for half in layer]


def empty_buffer(model: Decoder, rows: int, slots: int, dtype: Any = np.float32) -> np.ndarray:
    """Return the buffer of one layer, keys and values: ``[2, rows, n_head, slots, head_dim]``."""
    return np.empty((2, rows, model.config.n_head, slots, model.config.head_dim), dtype)


def run_in_place(
    model: Decoder,
    ids: np.ndarray,
    positions: np.ndarray,
    bias: np.ndarray,
    last: np.ndarray,
    keep: int,
    values: Sequence[Any],
    scales: np.ndarray | None = None,
) -> np.ndarray:
    """Run new tokens. Their keys and values are written into the buffers.

    Args:
        model: whose graph works in place.
        ids: ``[rows, new]`` int64.
        positions: ``[rows, new]`` int64.
        bias: see ``attention_bias``; as wide as the longest row is with the new tokens.
        last: the slot of each row's last new token, ``[rows]``. What lies behind it does not count.
        keep: the logits of how many last positions are wanted; 0 for all; ``NO_LOGITS``.
        values: the buffers, keys and values of each layer in turn.
        scales: of a cache of 8 bits, ``[n_layer, 2, n_embd]`` float32.

    Returns:
        Logits ``[rows, keep or new, vocab_size]`` float32.
    """
    rows, new = ids.shape
    fed = (
        np.ascontiguousarray(ids, np.int64),
        np.ascontiguousarray(positions, np.int64),
        np.array(keep, np.int64),
        bias,
        last.astype(np.int32),
        np.array(bias.shape[-1], np.int32),
    )
    logits = np.empty((rows, max(0, min(keep or new, new)), model.config.vocab_size), np.float32)
    pasts, presents = model.cache_names
    feeds = dict(zip([*IN_PLACE_FED, *pasts], [*map(on_cpu, fed), *values], strict=True))
    if scales is not None:
        halves = [half for layer in scales for half in layer]
        feeds |= {scale_name(past): on_cpu(half) for past, half in zip(pasts, halves, strict=True)}
    given = [on_cpu(logits), *values]
    session = model.session_for(rows, new, eight_bits=scales is not None)
    run_values(session, feeds, ["logits", *presents], [CPU] * len(given), given)
    return logits


def attention_bias(mask: np.ndarray, new: int) -> np.ndarray:
    """Return what is added to the scores of ``new`` tokens: 0, or ``MASKED`` at padding.

    Args:
        mask: ``[batch, total]``, 0 for padding.
        new: how many of the last slots are asked for; who comes after whom is the operator's own business.

    Returns:
        ``[batch, 1, new, total]`` float32, of one row where there is no padding.
    """
    if mask.all():
        return np.zeros((1, 1, new, mask.shape[1]), np.float32)
    bias = np.where(mask, np.float32(0), np.float32(MASKED))
    return np.ascontiguousarray(np.broadcast_to(bias[:, None, None], (len(mask), 1, new, mask.shape[1])))
