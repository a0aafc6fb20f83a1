"""The cache of 8 bits: what it keeps, what that costs, and when it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converter.data import HELD_OUT
from converter.errors import ConfigError
from converter.folder.convert import convert
from converter.runtime import eight_bits
from converter.runtime.cache import Cache, InPlaceCache
from converter.runtime.eight_bits import GROWTH, SEEN_TOKENS, EightBitCache
from converter.runtime.opening import load
from converter.runtime.session import EIGHT_BIT_TEXTS, Model
from tests.conftest import random_gpt2

Save = Callable[..., Path]

PADDING = 3  # of the second row


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("eight")
    random_gpt2(n_embd=24, n_positions=200).save_pretrained(folder / "source")
    convert(folder / "source", folder / "out")
    return load(folder / "out", cache="int8")


def run(model: Model, cache: Cache, ids: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Run a piece of some texts, the second of which begins with padding."""
    mask = np.ones_like(ids)
    mask[1:2, :PADDING] = 0
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    return model.step(ids[:, begin:end], mask[:, :end], positions[:, begin:end], cache, 1)


def texts(rows: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(61, size=(rows, tokens))


@pytest.mark.parametrize("pieces", [[80], [80, 81, 82], [20, 21, 63, 64, 65, 90], [70, 100]])
def test_keys_and_values_are_those_of_float32_to_a_step_of_their_scale(model: Model, pieces: list[int]) -> None:
    ids = texts(3, pieces[-1])
    exact, rounded = InPlaceCache(model, 3), model.empty_cache(3)
    assert isinstance(rounded, EightBitCache)
    for begin, end in zip([0, *pieces], pieces, strict=False):
        run(model, exact, ids, begin, end)
        run(model, rounded, ids, begin, end)
    assert {buffer.dtype for buffer in rounded.buffers} == {np.dtype(np.int8)}
    pairs = zip(exact.arrays(), rounded.arrays(), strict=True)
    scales = rounded.scales.reshape(-1, 1, model.config.n_head, 1, model.config.head_dim)
    for number, ((true, found), scale) in enumerate(zip(pairs, scales, strict=True)):
        # What a step adds comes from what is rounded already, and a scale that was made larger rounds twice.
        off = np.abs(found - true) / scale
        off[1, :, :PADDING] = 0
        assert np.quantile(off, 0.99) <= (0.51 if pieces == [80] else 2), number


def test_before_a_range_is_known_nothing_is_rounded(model: Model) -> None:
    ids = texts(2, SEEN_TOKENS)
    exact, rounded = InPlaceCache(model, 2), model.empty_cache(2)
    for begin in range(SEEN_TOKENS - 1):
        np.testing.assert_array_equal(
            run(model, rounded, ids, begin, begin + 1), run(model, exact, ids, begin, begin + 1)
        )
    for cache in (exact, rounded):
        run(model, cache, ids, SEEN_TOKENS - 1, SEEN_TOKENS)
    assert any((mine != true).any() for mine, true in zip(rounded.arrays(), exact.arrays(), strict=True))


def test_a_channel_that_comes_to_its_end_gets_a_larger_scale(model: Model) -> None:
    ids, rounded = texts(2, 72), EightBitCache(model, 2)
    run(model, rounded, ids, 0, 70)
    rounded.rounding.values /= 8  # the cache is now full of numbers that stand for an eighth
    before, kept = rounded.scales.copy(), [layer.copy() for layer in rounded.arrays()]
    run(model, rounded, ids, 70, 71)
    grown = rounded.scales > before
    assert grown.any()
    np.testing.assert_allclose(rounded.scales[grown], before[grown] * GROWTH, rtol=1e-6)
    for old, new, scale in zip(kept, rounded.arrays(), rounded.scales.reshape(-1, 24), strict=True):
        steps = np.abs(new[:, :, :70] - old) / scale.reshape(1, 3, 1, 8)
        assert steps.max() <= 0.51  # what was there stands for the same


@pytest.mark.parametrize("used", [20, 90])  # in float32 still, and in 8 bits
def test_rows_leave_come_twice_and_are_cut_as_in_float32(model: Model, used: int) -> None:
    ids, rows = texts(4, used + 2), np.array([2, 0, 0])
    caches = InPlaceCache(model, 4), model.empty_cache(4)
    for cache in caches:
        run(model, cache, ids, 0, used)
        cache.cut(used - 5)
        cache.keep_slots(np.arange(4, used - 5))
        cache.keep_rows(rows)
    more = texts(3, caches[0].used + 1)
    mask, positions = np.ones_like(more), np.arange(used - 9, used - 8)[None].repeat(3, axis=0)
    exact, rounded = (model.step(more[:, -1:], mask, positions, cache, 1) for cache in caches)
    np.testing.assert_allclose(rounded, exact, atol=0.05 * exact.std())


def test_it_costs_less_than_half_of_what_weights_of_eight_bits_cost(bundled: Path) -> None:
    exact, rounded = load(bundled), load(bundled, cache="int8")
    assert exact.tokenizer is not None
    size = exact.config.n_positions
    ids = np.array(exact.tokenizer.encode(HELD_OUT.read_text(encoding="utf-8")).ids[: 2 * size]).reshape(2, size)

    def log_probs(model: Model) -> np.ndarray:
        cache, mask = model.empty_cache(2), np.ones_like(ids)
        positions = np.broadcast_to(np.arange(size), ids.shape)
        cuts = [96, *range(97, 120), size]
        parts = [
            model.step(ids[:, a:b], mask[:, :b], positions[:, a:b], cache)
            for a, b in zip([0, *cuts], cuts, strict=False)
        ]
        logits = np.concatenate(parts[1:], axis=1).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    true, found = log_probs(exact), log_probs(rounded)
    assert 0 < (np.exp(true) * (true - found)).sum(axis=-1).mean() < 1e-4


def test_many_texts_with_quantized_weights_have_it_and_others_on_request(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(save(n_embd=24, n_positions=100), tmp_path / "out", precision="fp32,int8")
    made: list[EightBitCache] = []
    begin = EightBitCache.__init__
    monkeypatch.setattr(EightBitCache, "__init__", lambda self, *given: made.append(self) or begin(self, *given))
    prompts = texts(EIGHT_BIT_TEXTS, 70).tolist()
    for precision, rows, cache, rounds in (
        ("int8", EIGHT_BIT_TEXTS, None, True),
        ("int8", EIGHT_BIT_TEXTS - 1, None, False),
        ("int8", EIGHT_BIT_TEXTS, "float32", False),
        ("int8", 1, "int8", True),
        ("fp32", EIGHT_BIT_TEXTS, None, False),
        ("fp32", 2, "int8", True),
    ):
        made.clear()
        load(tmp_path / "out", precision=precision, cache=cache).generate(prompts[:rows], max_new_tokens=3)  # type: ignore[arg-type]
        assert bool(made) is rounds, (precision, rows, cache)


def test_a_graph_that_cannot_have_it_is_said_so(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(save(n_embd=24), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"model\.onnx cannot have a cache of int8 .*: omit --cache"):
        load(tmp_path / "out", cache="int8", in_place=False)
    monkeypatch.setattr(eight_bits, "EIGHT_BITS", {"no_such_attribute": 1})  # as in older versions
    with pytest.raises(ConfigError, match=r"cannot have a cache of int8"):
        load(tmp_path / "out", cache="int8")


def test_prompts_run_a_few_at_a_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = texts(5, 70)
    whole = run(model, model.empty_cache(5), ids, 0, 70)
    monkeypatch.setattr(eight_bits, "PROMPT_TOKENS", 140)
    np.testing.assert_allclose(run(model, model.empty_cache(5), ids, 0, 70), whole, atol=1e-5 * whole.std())
