"""What was measured, as data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from converter.runtime.benching.settings import Settings

SCHEMA = "gpt2onnx/bench/1"


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of the rounds."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def over(cls, samples: Sequence[float]) -> Spread | None:
        """Return the spread of samples; None if there are none."""
        return cls(statistics.median(samples), min(samples), max(samples)) if samples else None


@dataclass(frozen=True)
class Prefill:
    """Running a batch of prompts of one length, until the logits after the last token; in milliseconds."""

    batch_size: int
    prompt_length: int
    milliseconds: Spread | None


@dataclass(frozen=True)
class Decode:
    """A batch that grows token by token.

    Attributes:
        batch_size, context: rows, and tokens of each that were in the cache before.
        tokens_per_second: of all rows together.
        bytes_per_step: what must be read for one token of each row, at least.
        limit: tokens per second at which memory would do nothing else; None where its bandwidth is not known.
        share_of_limit: the median's, 1 for all of it.
    """

    batch_size: int
    context: int
    tokens_per_second: Spread | None
    bytes_per_step: int
    limit: float | None
    share_of_limit: float | None


@dataclass(frozen=True)
class MeasuredPrecision:
    """One precision.

    Attributes:
        precision: its name.
        weight_bytes: weights that are read for one token.
        load_seconds: until the folder is open.
        resident_bytes: memory of the process then, mapped files included; None where the system does not tell.
        peak_bytes: the most memory at any time.
        prefill, decode: by batch size and length.
    """

    precision: str
    weight_bytes: int
    load_seconds: Spread | None
    resident_bytes: Spread | None
    peak_bytes: Spread | None
    prefill: tuple[Prefill, ...]
    decode: tuple[Decode, ...]


@dataclass(frozen=True)
class Bench:
    """A model folder, measured.

    Attributes:
        out: the folder.
        settings: what was asked for, cut to what the model's positions allow.
        rounds: how many were begun.
        seconds: that all of it took.
        bandwidth: bytes per second that the machine reads from memory; None unless the provider is cpu.
        precisions: each of them.
        missing: what there was no time for, in words.
        environment: versions of what ran, and the processor's cores.
    """

    out: str
    settings: Settings
    rounds: int
    seconds: float
    bandwidth: float | None
    precisions: tuple[MeasuredPrecision, ...]
    missing: tuple[str, ...]
    environment: Mapping[str, str | int | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON; docs/bench.md describes them."""
        asked = asdict(self.settings)
        kept = ("new_tokens", "threads", "provider")
        found = {key: value for key, value in asdict(self).items() if key not in ("settings", "precisions")}
        measured = [asdict(one) for one in self.precisions]
        return {"schema": SCHEMA, **found, **{key: asked[key] for key in kept}, "precisions": measured}
