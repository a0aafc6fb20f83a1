"""Rows on a GPU have no padding, and what a step leaves behind is what the next one would be fed."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.runtime.gpu.buffers import Pool, Steps, power_of_two
from converter.runtime.gpu.cache import GpuCache
from converter.runtime.session import Model

NEAR = {"rtol": 1e-2, "atol": 1e-2}  # float16 rounds at other places


def step(model: Model, cache: Any, ids: np.ndarray, mask: np.ndarray, begin: int, end: int, keep: int = 0) -> Any:
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, begin:end]
    return model.step(ids[:, begin:end], mask[:, :end], positions, cache, keep)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    padding=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    keep=st.sampled_from([0, 1, 2]),
    seed=st.integers(0, 99),
)
def test_chunks_of_padded_rows_add_up_to_each_row_in_one_pass(
    gpu: Model, plain: Model, rows: int, chunks: list[int], padding: list[int], keep: int, seed: int
) -> None:
    length, ends = sum(chunks), np.cumsum(chunks)
    ids = np.random.default_rng(seed).integers(61, size=(rows, length))
    first = np.minimum(padding[:rows], length - 1)
    mask = (np.arange(length) >= first[:, None]).astype(np.int64)
    cache = gpu.empty_cache(rows)
    parts = [step(gpu, cache, ids, mask, end - chunk, end, keep) for chunk, end in zip(chunks, ends, strict=True)]
    assert cache.used == length
    for row, begin in enumerate(first):
        alone = plain.logits(ids[row, begin:])
        for part, chunk, end in zip(parts, chunks, ends, strict=True):
            kept = range(end - chunk, end)[-keep:]
            real = [i for i, column in enumerate(kept) if column >= begin]
            np.testing.assert_allclose(part[row, real], alone[[kept[i] - begin for i in real]], **NEAR)


def test_rows_leave_come_twice_and_change_places(gpu: Model, plain: Model) -> None:
    ids = np.random.default_rng(0).integers(61, size=(3, 9))
    mask = np.ones_like(ids)
    for rows in ([2, 0, 1], [1, 1, 0], [2], [0, 2, 2, 1], [0, 1, 2, 0, 1]):
        cache = gpu.empty_cache(3)
        step(gpu, cache, ids, mask, 0, 7)
        cache.keep_rows(np.array(rows))
        logits = step(gpu, cache, ids[rows], mask[rows], 7, 8)
        np.testing.assert_allclose(logits[:, 0], plain.logits(ids[rows])[:, 7], **NEAR)
        assert cache.arrays()[0].shape == (len(rows), 3, 8, 8)


def test_what_is_cut_off_was_never_there(gpu: Model, plain: Model) -> None:
    ids = np.random.default_rng(0).integers(61, size=(1, 9))
    cache = gpu.empty_cache(1)
    step(gpu, cache, np.concatenate((ids[:, :6], ids[:, :3]), axis=1), np.ones((1, 9), np.int64), 0, 9)
    cache.cut(6)
    np.testing.assert_allclose(step(gpu, cache, ids, np.ones_like(ids), 6, 9), plain.logits(ids)[:, 6:], **NEAR)


def test_slots_of_padding_can_go(gpu: Model, plain: Model) -> None:
    ids = np.random.default_rng(0).integers(61, size=(2, 9))
    mask = np.ones_like(ids)
    mask[:, :4] = 0
    cache = gpu.empty_cache(2)
    step(gpu, cache, ids, mask, 0, 8)
    cache.keep_slots(np.arange(4, 8))
    logits = step(gpu, cache, ids[:, 4:], mask[:, 4:], 4, 5)
    np.testing.assert_allclose(logits[:, 0], plain.logits(ids[:, 4:])[:, 4], **NEAR)


def test_spare_slots_may_hold_anything(gpu: Model, plain: Model) -> None:
    ids = np.random.default_rng(0).integers(61, size=(2, 70))
    cache, mask = gpu.empty_cache(2), np.ones_like(ids)
    assert isinstance(cache, GpuCache)
    for value in cache.buffers.values:
        value.write(np.full(value.shape, np.nan))
    parts = [step(gpu, cache, ids, mask, begin, end) for begin, end in ((0, 9), (9, 10), (10, 69), (69, 70))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), plain.logits(ids), **NEAR)


def test_logits_that_were_given_out_stay_as_they_are(gpu: Model) -> None:
    ids = np.random.default_rng(0).integers(61, size=(1, 9))
    cache, mask = gpu.empty_cache(1), np.ones_like(ids)
    step(gpu, cache, ids, mask, 0, 5)
    first = step(gpu, cache, ids, mask, 5, 6)
    before = first.copy()
    for end in (7, 8, 9):
        step(gpu, cache, ids, mask, end - 1, end)
    np.testing.assert_array_equal(first, before)


def test_the_likeliest_tokens_are_those_of_the_logits(gpu: Model) -> None:
    ids = np.random.default_rng(0).integers(61, size=(3, 9))
    mask = np.ones_like(ids)
    mask[1, :4] = 0
    chosen, fetched = gpu.empty_cache(3), gpu.empty_cache(3)
    tokens = step(gpu, chosen, ids, mask, 0, 9)[:, -1].argmax(axis=-1)
    step(gpu, fetched, ids, mask, 0, 9)
    positions = mask.sum(axis=1)[:, None]
    for _ in range(5):
        mask = np.concatenate((mask, np.ones((3, 1), np.int64)), axis=1)
        logits = gpu.step(tokens[:, None], mask, positions, fetched)
        found = chosen.likeliest(tokens[:, None], positions)
        assert found is not None
        np.testing.assert_array_equal(found, logits[:, 0].argmax(axis=-1))
        tokens, positions = found, positions + 1


def test_a_step_that_follows_is_fed_nothing(gpu: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = list[int]()
    feed = Steps.feed
    monkeypatch.setattr(Steps, "feed", lambda self, ids, *rest: fed.append(len(ids)) or feed(self, ids, *rest))
    prompts = [[1, 2, 3], [4], [5, 6]]
    alone = [gpu.generate([prompt], max_new_tokens=20).new_ids[0] for prompt in prompts]
    fed.clear()
    assert gpu.generate(prompts, max_new_tokens=20).new_ids == alone
    assert fed == [4]  # three rows, and one that nobody needs


def test_a_run_of_a_step_again_changes_nothing(gpu: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is where it is captured: some runs before, and the one that is captured."""
    prompts = [[1, 2, 3], [4]]
    expected = gpu.generate(prompts, max_new_tokens=20).new_ids
    run = Steps.run

    def again(self: Steps) -> np.ndarray:
        for _ in range(3):
            self._bindings[self._turn].run()
        return run(self)

    monkeypatch.setattr(Steps, "run", again)
    assert gpu.generate(prompts, max_new_tokens=20).new_ids == expected


def test_buffers_are_lent_again_and_grow(gpu: Model) -> None:
    pool = Pool()
    small = pool.lend(gpu, 2, 10)
    assert (small.rows, small.slots) == (2, 128)
    pool.take_back(small)
    assert pool.lend(gpu, 1, 128) is small
    beside = pool.lend(gpu, 1, 128)
    assert beside is not small
    large = pool.lend(gpu, 5, 129)
    assert (large.rows, large.slots) == (8, 200)  # no more than there are positions
    pool.take_back(large)
    assert pool.lend(gpu, 1, 10) is large


def test_a_cache_that_is_gone_has_given_its_buffers_back(gpu: Model) -> None:
    pool = Pool()
    cache = GpuCache(gpu, pool, 1, 10)
    lent = cache.buffers
    assert pool.lend(gpu, 1, 10) is not lent
    del cache
    gc.collect()
    assert pool.lend(gpu, 1, 10) is lent


@pytest.mark.parametrize(("count", "power"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (33, 64)])
def test_rows_are_rounded_to_powers_of_two(count: int, power: int) -> None:
    assert power_of_two(count) == power
