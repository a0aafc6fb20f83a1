"""The truth, computed a layer at a time, is the from-scratch GPT-2 in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.tensor import LazyTensor
from converter.parity.legs import truth
from converter.parity.legs.cases import Case, Level, grid
from converter.parity.legs.truth import stream, to_torch, truths
from converter.weights.ledger import Ledger, account
from reference.config import GPT2Config
from reference.model import GPT2

Save = Callable[..., Path]


FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "epsilon": {"layer_norm_epsilon": 0.3},
    "no scale": {"scale_attn_weights": False},
    "by layer": {"scale_attn_by_inverse_layer_idx": True},
    "by layer alone": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "untied": {"tie_word_embeddings": False},
    "erf": {"activation_function": "gelu"},
    "prelu": {"activation_function": "prelu"},
    "square": {"n_inner": 12},
    "one of each": {"n_layer": 1, "n_head": 1},
}
PRECISE = {"rtol": 0, "atol": 1e-13}


def ledger_of(folder: Path) -> Ledger:
    return account(open_checkpoint(folder))


def random_tokens(config: GPT2Config, size: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(config.vocab_size, size=size)


def alone(model: GPT2, case: Case) -> np.ndarray:
    """Each row by itself, without its padding, all positions; padded again with zeros."""
    length = case.input_ids.shape[1]
    logits = np.zeros((len(case.input_ids), length, model.config.vocab_size))
    for row, (ids, mask) in enumerate(zip(case.input_ids, case.attention_mask, strict=True)):
        with torch.inference_mode():
            logits[row, length - mask.sum() :] = model(torch.tensor(ids[mask > 0])[None]).logits[0].numpy()
    return logits[:, -case.keep :]


@pytest.mark.parametrize("config", FLAGS.values(), ids=FLAGS)
def test_it_is_the_reference_in_float64_whatever_the_config_says(save: Save, config: dict[str, Any]) -> None:
    folder = save(**config)
    ledger = ledger_of(folder)
    cases = grid(ledger.config, random_tokens(ledger.config))
    found, model = truths(ledger.config, ledger.weights, cases), GPT2.from_pretrained(folder, torch.float64)
    assert list(found) == [case.name for case in cases]
    for case in cases:
        assert found[case.name].dtype == np.float64
        np.testing.assert_allclose(found[case.name][case.real], alone(model, case)[case.real], **PRECISE)


@pytest.mark.parametrize("config", [value for name, value in FLAGS.items() if name != "upcast"], ids=str)
def test_it_is_what_transformers_computes_in_float64(save: Save, config: dict[str, Any]) -> None:
    folder = save(**config)
    ledger = ledger_of(folder)
    (case, *_) = grid(ledger.config, random_tokens(ledger.config))
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.inference_mode():
        expected = model(torch.tensor(case.input_ids)).logits.numpy()
    np.testing.assert_allclose(truths(ledger.config, ledger.weights, [case])[case.name], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_widened_and_not_computed_with(save: Save, dtype: torch.dtype) -> None:
    ledger = ledger_of(save(dtype=dtype))
    weights = {name: to_torch(weight) for name, weight in ledger.weights.items()}
    assert {weight.dtype for weight in weights.values()} == {dtype}
    model = GPT2.from_weights(ledger.config, weights, torch.float64)
    for case in grid(ledger.config, random_tokens(ledger.config)):
        found = truths(ledger.config, ledger.weights, [case])[case.name]
        np.testing.assert_allclose(found[case.real], alone(model, case)[case.real], **PRECISE)


def test_weights_that_differ_in_type_and_file_are_read_alike(save: Save) -> None:
    folder = save(max_shard_size=4000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    for number, file in enumerate(sorted(folder.glob("*.safetensors"))):
        dtype = (torch.float16, torch.bfloat16, torch.float32)[number % 3]
        save_file({name: weight.to(dtype) for name, weight in load_file(file).items()}, file, {"format": "pt"})
    ledger = ledger_of(folder)
    assert len({weight.dtype for weight in ledger.weights.values()}) == 3
    model = GPT2.from_weights(ledger.config, {n: to_torch(w) for n, w in ledger.weights.items()}, torch.float64)
    (case, *_) = grid(ledger.config, random_tokens(ledger.config))
    np.testing.assert_allclose(truths(ledger.config, ledger.weights, [case])["prefill"], alone(model, case), **PRECISE)


def test_a_row_of_a_batch_has_the_logits_of_the_row_alone_and_padding_has_none(save: Save) -> None:
    ledger = ledger_of(save())
    (batch,) = (c for c in grid(ledger.config, random_tokens(ledger.config)) if c.name == "left-padded batch")
    found = truths(ledger.config, ledger.weights, [batch])[batch.name]
    assert not batch.real.all()
    for row, (ids, mask) in enumerate(zip(batch.input_ids, batch.attention_mask, strict=True)):
        tokens = ids[mask > 0][None]
        single = Case("row", tokens, np.ones_like(tokens), (tokens.size,))
        np.testing.assert_array_equal(found[row, mask > 0], truths(ledger.config, ledger.weights, [single])["row"][0])
        assert (found[row, mask == 0] == 0).all()


def test_what_stands_under_the_padding_is_never_read(save: Save) -> None:
    ledger = ledger_of(save())
    (batch,) = (c for c in grid(ledger.config, random_tokens(ledger.config)) if c.name == "left-padded batch")
    other = Case("other", np.where(batch.real, batch.input_ids, 60), batch.attention_mask, batch.chunks)
    assert not (other.input_ids == batch.input_ids).all()
    found = truths(ledger.config, ledger.weights, [batch, other])
    np.testing.assert_array_equal(found["other"], found[batch.name])


@pytest.mark.parametrize("keep", [1, 5, 24])
def test_of_a_long_case_only_the_kept_positions_are_there(save: Save, keep: int) -> None:
    ledger = ledger_of(save())
    ids = random_tokens(ledger.config, 24)[None]
    cases = [Case(str(k), ids, np.ones_like(ids), (24,), k) for k in (0, keep)]
    found = truths(ledger.config, ledger.weights, cases)
    assert found[str(keep)].shape == (1, keep, 61)
    np.testing.assert_allclose(found[str(keep)], found["0"][:, 24 - keep :], **PRECISE)


def test_beginnings_are_not_computed_again_and_rows_of_one_length_are_side_by_side(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save()
    ledger, model = ledger_of(folder), GPT2.from_pretrained(folder, torch.float64)
    tokens = random_tokens(ledger.config)
    rows = np.stack([tokens[at : at + 24] for at in (0, 30, 60)])
    whole = Case("whole", rows, np.ones_like(rows), (24,))
    beginnings = [Case(f"{size}", rows[1:2, :size], np.ones((1, size), int), (size,), min(1, size)) for size in (1, 7)]
    computed: list[tuple[int, ...]] = []

    def spied(config: GPT2Config, weights: Any, cases: list[Case], **options: Any) -> list[np.ndarray]:
        computed.extend(case.input_ids.shape for case in cases)
        return stream(config, weights, cases, **options)

    monkeypatch.setattr(truth, "stream", spied)
    found = truths(ledger.config, ledger.weights, [*beginnings, whole])
    assert computed == [(3, 24)]
    for case in (*beginnings, whole):
        np.testing.assert_allclose(found[case.name], alone(model, case), **PRECISE)


def test_every_window_of_the_full_level_has_its_own_truth(save: Save) -> None:
    folder = save(n_positions=60)
    ledger = ledger_of(folder)
    cases = grid(ledger.config, random_tokens(ledger.config, 240), Level.FULL)
    found, model = truths(ledger.config, ledger.weights, cases), GPT2.from_pretrained(folder, torch.float64)
    windows = [case for case in cases if case.long]
    assert len(windows) == 4
    for case in windows:
        np.testing.assert_allclose(found[case.name], alone(model, case), **PRECISE)


def test_the_chunks_in_which_a_case_is_fed_change_nothing(save: Save) -> None:
    ledger = ledger_of(save())
    ids = random_tokens(ledger.config, 24)[None]
    cases = [Case(str(chunks), ids, np.ones_like(ids), chunks) for chunks in ((24,), (5, 7, 12), (1,) * 24)]
    first, *others = truths(ledger.config, ledger.weights, cases).values()
    for other in others:
        np.testing.assert_array_equal(other, first)


# --- a layer at a time ------------------------------------------------------------------------------------------------


class Spied(Mapping[str, LazyTensor]):
    """Weights that tell when they are asked for."""

    def __init__(self, weights: Mapping[str, LazyTensor], told: list[str]) -> None:
        self.weights, self.told = weights, told

    def __getitem__(self, name: str) -> LazyTensor:
        self.told.append(name)
        return self.weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def materialised(model: GPT2) -> set[str]:
    """The parts of a model that hold weights."""
    return {
        ".".join(name.split(".")[: 2 if name.startswith("h.") else 1])
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not parameter.is_meta
    }


@pytest.mark.parametrize("tied", [True, False])
def test_at_any_time_one_layer_is_in_memory_and_no_weight_is_read_twice(
    save: Save, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    ledger = ledger_of(save(tie_word_embeddings=tied, n_layer=4))
    made: list[GPT2] = []
    held: dict[str, set[str]] = {}
    read: list[str] = []

    class Watched(GPT2):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    def observe(path: str, value: Tensor) -> None:
        held[path] = materialised(made[0])
        assert not value.is_meta

    monkeypatch.setitem(truth.CLASSES, "lm", Watched)
    cases = grid(ledger.config, random_tokens(ledger.config))
    stream(ledger.config, Spied(ledger.weights, read), cases, observe)
    assert len(made) == 1
    for i in range(4):
        assert held[f"h.{i}"] == held[f"h.{i}.ln_1"] == held[f"h.{i}.mlp.c_proj"] == {f"h.{i}", "wte", "wpe"}
    assert {part for part in held["lm_head"] if part.startswith("h.")} == set()
    assert sorted(read) == sorted(ledger.weights)


def test_a_weight_lies_in_the_file_until_it_is_asked_for(save: Save) -> None:
    folder = save()
    ledger = ledger_of(folder)
    weight = to_torch(ledger.weights["h.1.mlp.c_fc.weight"])
    expected = load_file(folder / "model.safetensors")["transformer.h.1.mlp.c_fc.weight"]
    assert torch.equal(weight, expected)
    assert json.loads((folder / "config.json").read_text())["n_inner"] == weight.shape[1]
