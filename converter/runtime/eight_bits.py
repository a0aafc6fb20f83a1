"""A cache of 8 bits for texts side by side: a quarter of the memory, and of what each step reads of it.

ONNX Runtime's GroupQueryAttention takes keys and values as int8, with a scale for each channel of a head, and rounds
what is new itself. Prompts run with a cache of float32, which is faster and more exact for many tokens at once; their
keys and values are rounded when they are done. The scales follow what has been seen: a channel that comes to its end
gets a larger one, and what it holds is rounded again. Of a value that was beyond the end, the excess is lost.

https://github.com/microsoft/onnxruntime, ContribOperators.md.
"""

from __future__ import annotations

import numpy as np

from converter.runtime.cache import InPlaceCache
from converter.runtime.decoder import Decoder
from converter.runtime.in_place import ATTENTION_IN_PLACE, EIGHT_BITS
from converter.runtime.ort import attributes_of
from reference.config import GPT2Config

MOST = 127  # of the numbers, on either side of 0

# How many times what has been seen a scale has room for: 1.25 lost the outliers of single texts (2 to 3e-4 nats of mean
# KL on the bundled checkpoint), 4 wasted steps (5e-5); 2 costs 1 to 2e-5.
MARGIN = 2.0

GROWTH = 1.5  # of the scale of a channel that comes to its end all the same

# Before a row has so many tokens, padding included, the range of a channel is not known. For single texts of the
# bundled checkpoint, rounding from token 1, 16, 64 or 128 on cost a mean KL of 1e-3, 6e-5, 3e-5 and 1e-5 nats.
SEEN_TOKENS = 64

# A channel that has held nothing but 0; what comes first makes it larger.
LEAST_SCALE = 1e-6

# Tokens of several short prompts that run at once, with a cache of float32 that lasts until they are done.
PROMPT_TOKENS = 2048


def is_offered() -> bool:
    """Tell whether ONNX Runtime's attention takes a cache of int8: older versions do not."""
    return EIGHT_BITS.keys() <= attributes_of(ATTENTION_IN_PLACE)


class Scales:
    """The scales of buffers of int8 ``[2, rows, n_head, slots, head_dim]``, one of each layer.

    Attributes:
        values: of keys and values, ``[n_layer, 2, n_embd]`` float32.
    """

    def __init__(self, config: GPT2Config) -> None:
        self.values = np.full((config.n_layer, 2, config.n_embd), LEAST_SCALE, np.float32)
        self._shape = (2, 1, config.n_head, 1, config.head_dim)

    def write(self, layer: int, buffer: np.ndarray, place: tuple[slice, slice], exact: np.ndarray, used: int) -> None:
        """Round keys and values and keep them.

        Args:
            layer: whose they are.
            buffer: of the layer.
            place: the rows and slots that they are written to.
            exact: ``[2, rows, n_head, slots, head_dim]`` float32.
            used: how many slots of the buffer hold something.
        """
        needed = np.abs(exact).max(axis=(1, 3)).reshape(2, -1) / MOST
        self.widen(layer, buffer, np.where(needed > self.values[layer], needed * MARGIN, 0), used)
        steps = exact * (1 / self.along(layer))
        rows, slots = place
        buffer[:, rows, :, slots] = np.rint(steps, out=steps)

    def read(self, layer: int, held: np.ndarray) -> np.ndarray:
        """Return what numbers of a buffer stand for, in float32."""
        return held * self.along(layer)

    def along(self, layer: int) -> np.ndarray:
        """Return the scales of a layer so that they broadcast to its buffer."""
        return self.values[layer].reshape(self._shape)

    def widen(self, layer: int, buffer: np.ndarray, wanted: np.ndarray, used: int) -> None:
        """Make scales as large as is wanted, if they are not; what is there is rounded again."""
        scales = self.values[layer]
        wider = np.maximum(scales, wanted).astype(np.float32)
        if (wider > scales).any():
            there = buffer[:, :, :, :used]
            there[:] = np.rint(there * (scales / wider).reshape(self._shape))
            self.values[layer] = wider

    def widen_full(self, layer: int, buffer: np.ndarray, newest: np.ndarray, used: int) -> None:
        """Make the scales of channels larger that the newest tokens, a part of the buffer, have brought to an end."""
        full = (np.abs(newest, dtype=np.int16) >= MOST).any(axis=(1, 3)).reshape(2, -1)
        if full.any():
            self.widen(layer, buffer, np.where(full, self.values[layer] * GROWTH, 0), used)


class EightBitCache(InPlaceCache):
    """Buffers of int8, and their scales."""

    dtype = np.int8

    def __init__(self, model: Decoder, batch: int) -> None:
        super().__init__(model, batch)
        self.rounding = Scales(model.config)
        self._exact: InPlaceCache | None = InPlaceCache(model, batch)  # until enough tokens have been seen

    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        new = ids.shape[1]
        if self._exact is not None and self.used + new < SEEN_TOKENS:
            logits = self._exact.step(ids, mask, positions, keep)
            self.used += new
            return logits
        self._leave_exact(self.used + new)
        self._make_room(self.used + new)
        run = self._run_all if self.used else self._run_prompts
        logits = run(ids, mask, positions, keep)
        begin, self.used = self.used, self.used + new
        for layer, buffer in enumerate(self.buffers):
            self.rounding.widen_full(layer, buffer, buffer[:, :, :, begin : self.used], self.used)
        return logits

    def _leave_exact(self, slots: int) -> None:
        """Round what has been kept in float32 so far, into buffers that have room for so many slots."""
        exact, self._exact = self._exact, None
        if exact is not None and self.used:
            used, self.used = self.used, 0  # the buffers hold nothing yet
            self._make_room(slots)
            self._keep(slice(None), exact)
            self.used = used

    @property
    def scales(self) -> np.ndarray:  # type: ignore[override] # the buffers here always have some
        return self.rounding.values

    def _run_prompts(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        """Run prompts with a cache of float32, a few rows at a time, and keep what it holds in 8 bits."""
        rows, parts = max(1, PROMPT_TOKENS // ids.shape[1]), []
        for begin in range(0, len(ids), rows):
            some = slice(begin, begin + rows)
            exact = InPlaceCache(self.model, len(ids[some]))
            parts.append(exact.step(ids[some], mask[some], positions[some], keep))
            self._keep(some, exact)
        return np.concatenate(parts)

    def _keep(self, rows: slice, exact: InPlaceCache) -> None:
        """Round what a cache of float32 holds of some rows."""
        for layer, held in enumerate(exact.layers()):
            place = rows, slice(exact.used)
            self.rounding.write(layer, self.buffers[layer], place, held, exact.used)

    def keep_rows(self, rows: np.ndarray) -> None:
        if self._exact is None:
            super().keep_rows(rows)
        else:
            self._exact.keep_rows(rows)
            self.batch = len(rows)
            self.buffers = [self._buffer(self.batch, 0) for _ in self.buffers]

    def keep_slots(self, slots: np.ndarray) -> None:
        if self._exact is not None:
            self._exact.keep_slots(slots)
            self.used = len(slots)
        else:
            super().keep_slots(slots)

    def cut(self, used: int) -> None:
        if self._exact is not None:
            self._exact.cut(used)
        super().cut(used)

    def layers(self) -> list[np.ndarray]:
        if self._exact is not None:
            return self._exact.layers()
        return [self.rounding.read(layer, held) for layer, held in enumerate(super().layers())]
