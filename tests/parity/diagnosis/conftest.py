"""Benches, one for each config, and copies of what stands on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from converter import convert
from converter.checkpoint.open import open_checkpoint
from converter.parity.baseline import measure_source
from converter.parity.explain import TapCache
from converter.parity.legs.cases import Level
from converter.parity.legs.steps import Steps
from converter.parity.verdict.limits import Limits
from converter.weights.ledger import account
from tests.parity.diagnosis.bench import SHAPE, Bench, Folder, MakeBench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> MakeBench:
    """``bench(opset, **config)``: of a random model with no parameter trivially 0 or 1; made once."""
    known: dict[str, Bench] = {}

    def make(opset: int = 23, change: Callable[[Any], None] = lambda model: None, **config: Any) -> Bench:
        key = repr((opset, getattr(change, "__name__", ""), config))
        if key not in known:
            place = tmp_path_factory.mktemp("bench")
            torch.manual_seed(5)
            shape = SHAPE | {"bos_token_id": 0, "eos_token_id": 0} | config
            model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                change(model)
            model.save_pretrained(place / "source")
            convert(place / "source", place / "sound", opset=opset)
            checkpoint = open_checkpoint(place / "source")
            baseline = measure_source(checkpoint, account(checkpoint), None, Limits(), Level.QUICK, Steps())
            known[key] = Bench(baseline, TapCache(baseline), place / "sound")
        return known[key]

    return make


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Bench], Folder]:
    """A copy of the sound conversion."""

    def make(bench: Bench) -> Folder:
        shutil.copytree(bench.sound, tmp_path / "out", symlinks=True)
        return Folder(tmp_path / "out")

    return make
