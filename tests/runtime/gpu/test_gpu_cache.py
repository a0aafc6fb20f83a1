"""Rows on a GPU have no padding, and what a step leaves behind is what the next one would be fed."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.errors import PromptError
from converter.runtime.gpu.buffers import Pool, Steps, power_of_two
from converter.runtime.gpu.cache import GpuCache
from converter.runtime.opening import load
from converter.runtime.session import Model

NEAR = {"rtol": 1e-2, "atol": 1e-2}  # float16 rounds at other places


def step(model: Model, cache: Any, ids: np.ndarray, mask: np.ndarray, begin: int, end: int) -> np.ndarray:
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, begin:end]
    return model.step(ids[:, begin:end], mask[:, :end], positions, cache)


def test_spare_slots_may_hold_anything(gpu: Model, plain: Model) -> None:
    ids = np.random.default_rng(0).integers(61, size=(2, 70))
    cache, mask = gpu.empty_cache(2), np.ones_like(ids)
    assert isinstance(cache, GpuCache)
    for value in cache.buffers.values:
        value.write(np.full(value.shape, np.nan))
    parts = [step(gpu, cache, ids, mask, begin, end) for begin, end in ((0, 9), (9, 10), (10, 69), (69, 70))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), plain.logits(ids), **NEAR)


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


def test_buffers_are_lent_again_the_smallest_first(gpu: Model) -> None:
    pool = Pool()
    small, large = pool.lend(gpu, 2), pool.lend(gpu, 5)
    assert [(each.rows, each.slots) for each in (small, large)] == [(2, 200), (8, 200)]
    pool.take_back(large)
    pool.take_back(small)
    assert pool.lend(gpu, 1) is small
    assert pool.lend(gpu, 1) is large
    assert pool.lend(gpu, 1) not in (small, large)


def test_texts_of_all_kinds_capture_no_more_after_the_first_of_each(folder: Path, captures: None) -> None:
    model = load(folder, cuda_graphs=True)
    made = list[int]()
    for _ in range(4):
        for prompts, new in (([[1, 2, 3]] * 5, 20), ([[1]], 190), ([[1], [2]], 3)):
            model.generate(prompts, max_new_tokens=new)
        assert model.pool is not None
        made.append(int(repr(model.pool._numbers).strip("count()")))
    assert len(set(made)) == 1


def test_the_model_is_gone_with_the_last_who_knows_it(folder: Path, captures: None) -> None:
    """A collector of garbage may come late, and a GPU's memory is dear."""
    model = load(folder, cuda_graphs=True)
    model.generate([[1, 2]], max_new_tokens=3)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_rows_may_move_to_buffers_that_another_cache_has_left(gpu: Model, plain: Model) -> None:
    ids = np.random.default_rng(0).integers(61, size=(1, 9))
    mask = np.ones_like(ids)
    large, small = gpu.empty_cache(8), gpu.empty_cache(1)
    step(gpu, small, ids, mask, 0, 7)
    del large
    small.keep_rows(np.array([0, 0, 0]))
    logits = step(gpu, small, ids.repeat(3, 0), mask.repeat(3, 0), 7, 8)
    np.testing.assert_allclose(logits[:, 0], plain.logits(ids.repeat(3, 0))[:, 7], **NEAR)


def test_a_step_that_failed_leaves_nothing_for_the_next(
    gpu: Model, plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.random.default_rng(0).integers(61, size=(1, 9))
    cache, mask = gpu.empty_cache(1), np.ones_like(ids)
    step(gpu, cache, ids, mask, 0, 5)
    tokens = cache.likeliest(ids[:, 5:6], np.array([[5]]))
    assert tokens is not None
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "run", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cache.likeliest(np.array([[(tokens[0] + 1) % 61]]), np.array([[6]]))
    logits = gpu.step(tokens[:, None], mask[:, :7], np.array([[6]]), cache)
    whole = plain.logits(np.concatenate((ids[0, :6], tokens)))
    np.testing.assert_allclose(logits[0, 0], whole[6], **NEAR)


def test_more_tokens_than_slots_are_refused(gpu: Model) -> None:
    ids = np.zeros((1, 201), np.int64)
    cache, mask = gpu.empty_cache(1), np.ones_like(ids)
    step(gpu, cache, ids, mask, 0, 200)
    for run in (
        lambda: gpu.step(ids[:, :1], mask, np.array([[0]]), cache),
        lambda: cache.likeliest(ids[:, :1], np.array([[0]])),
        lambda: gpu.step(ids, mask, ids, gpu.empty_cache(1)),
    ):
        with pytest.raises(PromptError, match="a row would have 201 tokens, more than the model's 200 positions"):
            run()


def test_threads_take_turns(gpu: Model) -> None:
    prompts = [[i, i + 1] for i in range(6)]
    expected = [gpu.generate([prompt], max_new_tokens=30).new_ids[0] for prompt in prompts]
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda prompt: gpu.generate([prompt], max_new_tokens=30).new_ids[0], prompts)
        assert list(found) == expected


def test_a_cache_that_is_gone_has_given_its_buffers_back(gpu: Model) -> None:
    pool = Pool()
    cache = GpuCache(gpu, pool, 1)
    lent = cache.buffers
    assert pool.lend(gpu, 1) is not lent
    del cache
    gc.collect()
    assert pool.lend(gpu, 1) is lent


@pytest.mark.parametrize(("count", "power"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (33, 64)])
def test_rows_are_rounded_to_powers_of_two(count: int, power: int) -> None:
    assert power_of_two(count) == power
