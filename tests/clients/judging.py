"""Judges exports as the command does, and measures each source only once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from converter.parity import baseline
from converter.parity.exports.cases import Wanted
from converter.parity.legs.cases import Case, Level


@contextmanager
def measured_once() -> Iterator[None]:
    """Measure a source once for all of its exports that need the same cases. That takes longer than a check's rest."""
    measure: Callable[..., baseline.Baseline] = baseline.measure_source
    known: dict[Any, baseline.Baseline] = {}

    def measure_once(checkpoint: Any, *given: Any) -> baseline.Baseline:
        *_, wanted = given
        assert isinstance(wanted, Wanted)
        key = checkpoint.folder, *(case.name for case in wanted.more(np.arange(99), Level.QUICK)), needs_shifted(wanted)
        if key not in known:
            known[key] = measure(checkpoint, *given)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baseline, "measure_source", measure_once)
        yield


def needs_shifted(wanted: Wanted) -> bool:
    padded = Case("padded", np.zeros((1, 2), int), np.array([[0, 1]]), (2,))
    return bool(wanted.shifted([padded]))
