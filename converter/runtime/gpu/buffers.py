"""Keys and values of several rows in the memory of a GPU, and the steps that are captured over them.

A CUDA graph is launched at once and reads and writes where it did when it was captured. So buffers are as long as the
model has positions, are lent to one cache after another (``Pool``), and a step is captured for each power of two of
rows.

Nothing else may run on the device while a graph is captured, and what was captured belongs to its thread. So one thread
runs at a time; each that runs steps captures them for itself.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from converter.errors import PromptError
from converter.runtime.decoder import Decoder
from converter.runtime.gpu.graph import KEPT, NEXT, STATE
from converter.runtime.ort import Binding, Tensor, device_of

# Held by the thread that runs. All models share it, as any of them would disturb another's capture.
DEVICE = threading.RLock()


def power_of_two(count: int) -> int:
    """Return the least power of two that is not below ``count``."""
    return 1 << (count - 1).bit_length()


class Buffers:
    """Keys and values of several rows.

    Args:
        model: what runs them.
        rows: how many rows there are, a power of two.
        numbers: of CUDA graphs that there are not yet.

    Attributes:
        slots: how many tokens a row has room for.
    """

    def __init__(self, model: Decoder, rows: int, numbers: itertools.count[int]) -> None:
        self.model, self.rows, self.slots = model, rows, model.config.n_positions
        self.device = device_of(model.device)
        shape = (rows, model.config.n_head, self.slots, model.config.head_dim)
        self.values = [Tensor.empty(self.device, shape, model.cache_type) for _ in model.cache_names[0]]
        self._numbers, self._steps = numbers, dict[int, Steps]()

    def steps(self, rows: int) -> Steps:
        """Return the steps of the first rows, of at least so many."""
        rows = power_of_two(rows)
        with DEVICE:
            if rows not in self._steps:
                self._steps[rows] = Steps(self, rows, [next(self._numbers) for _ in range(2)])
            return self._steps[rows]

    def refuse_beyond(self, last: np.ndarray) -> None:
        """Refuse tokens for which there is no slot; on a GPU nothing else would.

        Raises:
            PromptError: the slot of a row's last token is none.
        """
        if len(last) and last.max() >= self.slots:
            raise PromptError(f"a row would have {last.max() + 1} tokens, more than the model's {self.slots} positions")

    def run(self, begin: int, ids: np.ndarray, positions: np.ndarray, last: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Run new tokens of some rows: prompts, or several tokens of one row on top of others.

        Args:
            begin: the first of the rows.
            ids: ``[rows, new]``; rows that are shorter have padding behind.
            positions: likewise.
            last: the slot of each row's last token, ``[rows]``.
            kept: the tokens whose logits are wanted, counted over all rows, ``[kept]``.

        Returns:
            Logits ``[kept, vocab_size]`` float32.

        Raises:
            PromptError: a row would have more tokens than there are slots.
        """
        self.refuse_beyond(last)
        pasts, presents = self.model.cache_names
        held = [value.rows(begin, begin + len(ids)) for value in self.values]
        fed: dict[str, Any] = {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            "position_ids": np.ascontiguousarray(positions, np.int64),
            "seqlens_k": np.ascontiguousarray(last, np.int32),
            "total_sequence_length": np.array(last.max() + 1, np.int32),
            KEPT: np.ascontiguousarray(kept, np.int64),
        }
        fetched = {"logits": None} | dict(zip(presents, held, strict=True))
        with DEVICE:
            run = Binding(self.model.session, self.device, fed | dict(zip(pasts, held, strict=True)), fetched)
            run.run()
            logits: np.ndarray = run.outputs()[0].numpy()
        return logits

    def take(self, source: Buffers, rows: Sequence[int] | np.ndarray, begin: int = 0) -> None:
        """Make rows from ``begin`` on hold what rows of ``source`` hold, which may be these buffers, too."""
        names, presents = self.model.cache_names
        gather = self.model.gather(0)

        def gathered(indices: Sequence[int] | np.ndarray, values: Sequence[Any], into: Sequence[Any]) -> list[Any]:
            fed = {"indices": np.array(indices, np.int64)} | dict(zip(names, values, strict=True))
            run = Binding(gather, self.device, fed, dict(zip(presents, into, strict=True)))
            run.run()
            return run.outputs()

        # In between they are elsewhere, as a row may be read after it was written.
        shape, dtype = (len(rows), *self.values[0].shape[1:]), self.values[0].dtype
        with DEVICE:
            found = [Tensor(value, shape, dtype) for value in gathered(rows, source.values, [None] * len(names))]
            gathered(range(len(rows)), found, [value.rows(begin, begin + len(rows)) for value in self.values])


class Steps:
    """Steps of one more token of each of the first rows of buffers. What one step leaves behind, the next one reads.

    Two sets of inputs take turns, so that a step may be run again, as it is when it is captured, and nothing changes.

    Args:
        buffers: what is read and written.
        rows: how many rows.
        numbers: of the two CUDA graphs.
    """

    def __init__(self, buffers: Buffers, rows: int, numbers: Sequence[int]) -> None:
        model, device = buffers.model, buffers.device
        self.rows, self._turn = rows, 0
        shapes = ([rows, 1], np.int64), ([rows, 1], np.int64), ([rows], np.int32)
        self._states = [[Tensor.empty(device, *each) for each in shapes] for _ in numbers]
        self._logits = Tensor.empty(device, [rows, model.config.vocab_size], np.float32)
        kept = Tensor.empty(device, [rows], np.int64)
        kept.write(np.arange(rows))
        pasts, presents = model.cache_names
        held = [value.rows(0, rows) for value in buffers.values]
        fixed: dict[str, Any] = {KEPT: kept, "total_sequence_length": np.array(buffers.slots, np.int32)}
        fixed |= dict(zip(pasts, held, strict=True))
        written = {"logits": self._logits} | dict(zip(presents, held, strict=True))

        def binding(turn: int) -> Binding:
            fed = fixed | dict(zip(STATE, self._states[turn], strict=True))
            fetched = written | dict(zip(NEXT, self._states[1 - turn], strict=True))
            return Binding(model.session, device, fed, fetched, numbers[turn])

        self._bindings = [binding(turn) for turn in range(2)]

    def feed(self, ids: np.ndarray, positions: np.ndarray, last: np.ndarray) -> None:
        """Set what the next step runs: a token of each row, its position, and its slot, each ``[rows]``."""
        with DEVICE:
            for value, given in zip(self._states[self._turn], (ids, positions, last), strict=True):
                value.write(given)

    def run(self) -> np.ndarray:
        """Run a step; return the likeliest next token of each row, ``[rows]`` int64, which the next step runs."""
        with DEVICE:
            self._bindings[self._turn].run()
            self._turn = 1 - self._turn
            return self._states[self._turn][0].read()[:, 0]

    def logits(self) -> np.ndarray:
        """Return the logits of the step that was run last, ``[rows, vocab_size]`` float32."""
        with DEVICE:
            return self._logits.read()


class Pool:
    """Buffers that no cache uses at present. They are kept, as what was captured over them is."""

    def __init__(self) -> None:
        self._free, self._numbers = list[Buffers](), itertools.count(1)

    def lend(self, model: Decoder, rows: int) -> Buffers:
        """Return buffers with room for so many rows, the smallest that are free."""
        with DEVICE:
            fitting = [buffers for buffers in self._free if buffers.rows >= rows]
            if fitting:
                smallest = min(fitting, key=lambda buffers: buffers.rows)
                self._free.remove(smallest)
                return smallest
            # The model has the pool, and is gone before it.
            return Buffers(weakref.proxy(model), power_of_two(rows), self._numbers)

    def take_back(self, buffers: Buffers) -> None:
        """Keep buffers for the next cache. No lock is taken, as a cache may end wherever memory is swept."""
        self._free.append(buffers)
