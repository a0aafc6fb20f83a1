"""The graph of a language model, opened: its session, and the names and the type of its cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.runtime.gather import open_gather
from reference.config import GPT2Config

if TYPE_CHECKING:
    from converter.runtime.later import Later
    from converter.runtime.ort import InferenceSession

# From so many texts on, or tokens of a step, int8 and int4 run in the second session. With VNNI MatMulNBits is faster,
# or no slower, below about 8 rows; without, 8 rows take 1.4 times as long in it. A prompt has to have more tokens, as
# opening the second session takes as long as MatMulNBits takes for some hundred.
MANY_TEXTS, MANY_TOKENS = 8, 64

# The element types that a cache may have.
CACHE_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def cache_names(n_layer: int) -> tuple[list[str], list[str]]:
    """Return the names of a cache of ``n_layer`` layers, as inputs and as outputs of a graph."""
    parts = [f"{i}.{part}" for i in range(n_layer) for part in ("key", "value")]
    return [f"past_key_values.{part}" for part in parts], [f"present.{part}" for part in parts]


def scale_name(past: str) -> str:
    """Return the name of the scales of a cache of 8 bits."""
    return f"scale.{past}"


@dataclass(frozen=True)
class Decoder:
    """The graph of a language model, opened.

    Attributes:
        folder: the model folder.
        config: the architecture.
        session: the ONNX Runtime session.
        device: where the runtime keeps the cache, ``cpu`` or ``cuda``.
        second: the session for many rows, if there may be one.
        eight: the session with a cache of 8 bits, likewise.
        steady: whether everything runs in the session for many rows.
    """

    folder: Path
    config: GPT2Config
    session: InferenceSession
    device: str = "cpu"
    second: Later | None = None
    eight: Later | None = None
    steady: bool = False

    def session_for(self, texts: int, new: int, eight_bits: bool = False) -> InferenceSession:
        """Return the session that runs so many texts with so many new tokens each."""
        if eight_bits:
            assert self.eight is not None
            return self.eight.session
        many = self.steady or texts >= MANY_TEXTS or texts * new >= MANY_TOKENS
        return (many and self.second and self.second.session) or self.session

    @cached_property
    def cache_names(self) -> tuple[list[str], list[str]]:
        """Return the cache's names as inputs and as outputs."""
        return cache_names(self.config.n_layer)

    @cached_property
    def cache_type(self) -> Any:
        """Return the cache's element type, numpy's."""
        name = self.cache_names[0][0]
        return next(CACHE_TYPES[value.type] for value in self.session.get_inputs() if value.name == name)

    def gather(self, axis: int) -> InferenceSession:
        """Return a session that takes rows (axis 0) or slots (axis 2) of a cache, where it lies."""
        if axis not in self._gathers:
            self._gathers[axis] = open_gather(*self.cache_names, self.cache_type, axis, self.session.get_providers()[0])
        return self._gathers[axis]

    @cached_property
    def _gathers(self) -> dict[int, InferenceSession]:
        return {}
