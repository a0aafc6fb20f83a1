"""The caches: what is computed with them is what one pass over all tokens computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.folder.convert import convert
from converter.runtime import cache as caches
from converter.runtime import opening
from converter.runtime.cache import MASKED, GrowingCache, InPlaceCache, attention_bias
from converter.runtime.opening import load
from converter.runtime.ort import CPU_PROVIDER
from converter.runtime.session import Model
from tests.conftest import random_gpt2

Save = Callable[..., Path]
WIDE = {"n_embd": 24, "n_positions": 200}  # heads of 8, as the operator that works in place wants them


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """One model, run in every way. A CPU has the operators of the graph for a GPU, too."""
    folder = tmp_path_factory.mktemp("caches")
    random_gpt2(**WIDE).save_pretrained(folder / "source")
    convert(folder / "source", folder / "out", precision="fp32,fp16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(opening.CAPTURING, CPU_PROVIDER, {})
        gpu = load(folder / "out", precision="fp16", cuda_graphs=True)
    return {"growing": load(folder / "out", in_place=False), "in place": load(folder / "out"), "gpu": gpu}


KINDS = {"growing": 1e-4, "in place": 1e-4, "gpu": 2e-2}  # kind → how far float32 or float16 may be from float32
every_kind = pytest.mark.parametrize("kind", KINDS)


def near(kind: str, found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=KINDS[kind], atol=KINDS[kind])


def step(
    model: Model, cache: Any, ids: np.ndarray, mask: np.ndarray, begin: int, end: int, keep: int = 0
) -> np.ndarray:
    """Logits of the tokens from ``begin`` to ``end``, positions counted over the mask."""
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, begin:end]
    return model.step(ids[:, begin:end], mask[:, :end], positions, cache, keep)


@every_kind
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    padding=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    keep=st.sampled_from([0, 1, 2]),
    seed=st.integers(0, 99),
)
def test_chunks_of_padded_rows_add_up_to_each_row_in_one_pass(
    models: dict[str, Model], kind: str, rows: int, chunks: list[int], padding: list[int], keep: int, seed: int
) -> None:
    model, length, ends = models[kind], sum(chunks), np.cumsum(chunks)
    ids = np.random.default_rng(seed).integers(61, size=(rows, length))
    first = np.minimum(padding[:rows], length - 1)
    mask = (np.arange(length) >= first[:, None]).astype(np.int64)
    cache = model.empty_cache(rows)
    parts = [step(model, cache, ids, mask, end - chunk, end, keep) for chunk, end in zip(chunks, ends, strict=True)]
    columns = [range(end - chunk, end)[-keep:] for chunk, end in zip(chunks, ends, strict=True)]
    assert [part.shape[:2] for part in parts] == [(rows, len(kept)) for kept in columns]
    logits, kept = np.concatenate(parts, axis=1), np.concatenate(columns)
    assert cache.used == length
    for row, begin in enumerate(first):
        real = kept >= begin
        near(kind, logits[row, real], models["growing"].logits(ids[row, begin:])[kept[real] - begin])


@every_kind
def test_rows_leave_come_twice_and_change_places(models: dict[str, Model], kind: str) -> None:
    model, ids = models[kind], np.random.default_rng(0).integers(61, size=(3, 9))
    mask = np.ones_like(ids)
    for rows in ([2, 0, 1], [1, 1, 0], [2], [0, 2, 2, 1], [0, 1, 2, 0, 1]):
        cache = model.empty_cache(3)
        step(model, cache, ids, mask, 0, 7)
        cache.keep_rows(np.array(rows))
        logits = step(model, cache, ids[rows], mask[rows], 7, 8)
        near(kind, logits[:, 0], models["growing"].logits(ids[rows])[:, 7])
        assert cache.arrays()[0].shape == (len(rows), 3, 8, 8)


@every_kind
def test_what_is_cut_off_was_never_there(models: dict[str, Model], kind: str) -> None:
    model, ids = models[kind], np.random.default_rng(0).integers(61, size=(1, 9))
    cache = model.empty_cache(1)
    step(model, cache, np.concatenate((ids[:, :6], ids[:, :3]), axis=1), np.ones((1, 9), np.int64), 0, 9)
    cache.cut(6)
    logits = step(model, cache, ids, np.ones_like(ids), 6, 9)
    near(kind, logits, models["growing"].logits(ids)[:, 6:])


@every_kind
def test_slots_that_nobody_looks_at_can_go(models: dict[str, Model], kind: str) -> None:
    model, ids = models[kind], np.random.default_rng(0).integers(61, size=(2, 9))
    mask = np.ones_like(ids)
    mask[:, :4] = 0
    cache = model.empty_cache(2)
    step(model, cache, ids, mask, 0, 8)
    cache.keep_slots(np.arange(4, 8))
    logits = step(model, cache, ids[:, 4:], mask[:, 4:], 4, 5)
    near(kind, logits[:, 0], models["growing"].logits(ids[:, 4:])[:, 4])


def test_the_cache_lies_where_it_lay_until_it_is_full(models: dict[str, Model]) -> None:
    model, ids = models["in place"], np.random.default_rng(0).integers(61, size=(2, 150))
    mask, cache = np.ones_like(ids), models["in place"].empty_cache(2)
    assert isinstance(cache, InPlaceCache)
    places = []
    for end in range(1, 151):
        step(model, cache, ids, mask, end - 1, end)
        places.append(cache.buffers[0].ctypes.data)
    assert len(set(places[:64])) == 1
    assert sum(a != b for a, b in itertools.pairwise(places)) == 2  # at 64 slots, and at 128


def test_spare_slots_may_hold_anything(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = models["in place"], np.random.default_rng(0).integers(61, size=(2, 70))
    made = InPlaceCache._buffer
    monkeypatch.setattr(InPlaceCache, "_buffer", lambda *given: np.full_like(made(*given), np.nan))
    cache, mask = model.empty_cache(2), np.ones_like(ids)
    parts = [step(model, cache, ids, mask, begin, end) for begin, end in ((0, 9), (9, 10), (10, 69), (69, 70))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), model.logits(ids), rtol=1e-4, atol=1e-4)


@every_kind
def test_logits_that_were_given_out_stay_as_they_are(models: dict[str, Model], kind: str) -> None:
    model, ids = models[kind], np.random.default_rng(0).integers(61, size=(1, 9))
    cache = model.empty_cache(1)
    first = [step(model, cache, ids, np.ones_like(ids), end - 1, end) for end in (1, 2)]
    before = np.copy(first)
    for end in range(3, 10):
        step(model, cache, ids, np.ones_like(ids), end - 1, end)
    np.testing.assert_array_equal(first, before)


def test_only_the_logits_that_are_asked_for_are_computed(models: dict[str, Model]) -> None:
    ids = np.random.default_rng(0).integers(61, size=(2, 5))
    for model in models.values():
        positions, whole = np.broadcast_to(np.arange(5), ids.shape), model.logits(ids)
        for keep, kept in ((0, 5), (1, 1), (3, 3), (9, 5)):
            logits = model.step(ids, np.ones_like(ids), positions, model.empty_cache(2), keep=keep)
            np.testing.assert_allclose(logits, whole[:, -kept:], rtol=1e-4, atol=1e-4)


def test_padding_is_masked_in_every_new_row_and_nothing_else_is() -> None:
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    bias = attention_bias(mask, 2)
    assert bias.shape == (2, 1, 2, 4)
    np.testing.assert_array_equal(bias[:, 0, 0], np.where(mask, 0, np.float32(MASKED)))
    np.testing.assert_array_equal(bias[:, 0, 1], bias[:, 0, 0])
    assert attention_bias(np.ones((3, 4), np.int64), 2).shape == (1, 1, 2, 4)
    assert not attention_bias(np.ones((3, 4), np.int64), 2).any()


@pytest.mark.parametrize(("name", "dtype"), [("tensor(float)", np.float32), ("tensor(float16)", np.float16)])
def test_the_cache_has_the_type_that_the_graph_takes(bundled: Path, name: str, dtype: Any) -> None:
    model = load(bundled, in_place=False)
    inputs = [SimpleNamespace(name=value.name, type=name) for value in model.session.get_inputs()]
    (first, *_) = GrowingCache(replace(model, session=SimpleNamespace(get_inputs=lambda: inputs)), 2).arrays()
    assert first.dtype == dtype
    assert first.shape == (2, model.config.n_head, 0, model.config.head_dim)


def test_spare_slots_are_a_share_of_those_needed(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "SLOT_MULTIPLE", 1)
    model, ids = models["in place"], np.zeros((1, 40), np.int64)
    cache = model.empty_cache(1)
    assert isinstance(cache, InPlaceCache)
    step(model, cache, ids, np.ones_like(ids), 0, 40)
    assert cache.buffers[0].shape == (2, 1, 3, 50, 8)


@pytest.mark.parametrize("keep", [0, 1, 2, 25])
@pytest.mark.parametrize("before", [0, 5])
def test_long_steps_run_in_chunks_and_change_nothing(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch, before: int, keep: int
) -> None:
    model, rng = models["in place"], np.random.default_rng(0)
    ids, mask = rng.integers(61, size=(3, 40)), np.ones((3, 40), np.int64)
    mask[1, :3] = 0
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)

    def logits() -> np.ndarray:
        cache = model.empty_cache(3)
        if before:
            model.step(ids[:, :before], mask[:, :before], positions[:, :before], cache)
        return model.step(ids[:, before:], mask, positions[:, before:], cache, keep)

    whole = logits()
    sizes = []
    monkeypatch.setattr(caches, "CHUNK", 9)
    run = caches.run_in_place
    monkeypatch.setattr(caches, "run_in_place", lambda m, ids, *rest: sizes.append(ids.size) or run(m, ids, *rest))
    np.testing.assert_allclose(logits(), whole, atol=1e-5 * whole.std())
    assert max(sizes[1:] if before else sizes) <= 9  # the few tokens before are run at once
