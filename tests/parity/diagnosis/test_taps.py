"""Taps: what every operation puts out, seen alike in the truth, in Hugging Face and in the graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converter import convert
from converter.checkpoint.open import open_checkpoint
from converter.parity.diagnosis import taps as module
from converter.parity.diagnosis.taps import (
    TAP_FLOAT64_LIMIT,
    TAP_LIMIT,
    Taps,
    graph_taps,
    huggingface_taps,
    layer_of,
    localise,
    tap_names,
    truth_taps,
)
from converter.parity.legs.cases import Case, grid
from converter.parity.legs.huggingface import HuggingFace
from converter.weights.ledger import Ledger, account
from reference.config import GPT2Config

Save = Callable[..., Path]


def opened(folder: Path, opset: int = 23) -> tuple[Ledger, Path]:
    """The ledger of a source, and the graph of its conversion."""
    out = folder.parent / f"{folder.name}-{opset}"
    convert(folder, out, opset=opset)
    return account(open_checkpoint(folder)), out / "onnx" / "model.onnx"


def cases_of(config: GPT2Config) -> list[Case]:
    """Those of the grid, and one that is cut to its last positions."""
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=90)
    ids = tokens[None, : config.n_positions]
    cut = Case("cut", ids, np.ones_like(ids), (config.n_positions,), keep=5, long=True)
    return [*grid(config, tokens), cut]


def assert_alike(found: Taps, expected: Taps, case: Case, tolerance: float) -> None:
    for name in expected:
        real = case.attention_mask[:, -expected[name].shape[1] :] == 1
        size = np.abs(expected[name][real]).max()
        np.testing.assert_allclose(
            found[name][real], expected[name][real], rtol=0, atol=tolerance * size, err_msg=f"{name}, {case.name}"
        )


CONFIGS: list[dict[str, Any]] = [
    {"n_embd": 15},
    {"scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu"},
    {"tie_word_embeddings": False, "scale_attn_weights": False, "reorder_and_upcast_attn": True},
    {"n_layer": 1, "n_head": 1, "activation_function": "prelu"},
]


@pytest.mark.parametrize(
    ("opset", "config"), [*zip((23, 17, 17, 23, 17), (*CONFIGS, CONFIGS[0]), strict=True)], ids=str
)
def test_every_tap_is_the_same_in_the_truth_in_hugging_face_and_in_the_graph(
    save: Save, opset: int, config: dict[str, Any]
) -> None:
    folder = save(**config)
    ledger, file = opened(folder, opset)
    huggingface, names = HuggingFace(open_checkpoint(folder), ledger), tap_names(ledger.config)
    for case in cases_of(ledger.config):
        truth = {name: tap for name, tap in truth_taps(ledger, case).items() if name in names}
        assert sorted(truth) == sorted(names)
        assert all(tap.dtype == np.float64 and tap.ndim == 3 for tap in truth.values())
        theirs = huggingface_taps(huggingface, case, torch.float64)
        assert sorted(theirs) == sorted(names)
        assert_alike(theirs, truth, case, 1e-13)
        ours = graph_taps(file, ledger.config, case, float64=True)
        assert sorted(ours) == sorted(names)
        assert_alike(ours, truth, case, 1e-6)  # its constants are float32's
        assert_alike(graph_taps(file, ledger.config, case, float64=False), truth, case, 2e-4)
        assert_alike(huggingface_taps(huggingface, case, torch.float32), truth, case, 2e-4)


def test_taps_are_rows_of_tokens_and_of_their_operations_width(save: Save) -> None:
    ledger, file = opened(save())
    widths = {"attn.c_attn": 36, "mlp.c_fc": 20, "mlp.act": 20, "logits": 61}
    for case in cases_of(ledger.config)[:-1]:
        for name, tap in graph_taps(file, ledger.config, case, float64=True).items():
            width = next((width for tail, width in widths.items() if name.endswith(tail)), 12)
            assert tap.shape == (*case.input_ids.shape, width), name


def test_q_k_and_v_are_the_thirds_of_their_projection_and_no_two_alike(save: Save) -> None:
    ledger, file = opened(save())
    (case, *_) = cases_of(ledger.config)
    for taps in (graph_taps(file, ledger.config, case, float64=True), truth_taps(ledger, case)):
        thirds = [taps[f"h.2.attn.{part}"] for part in "qkv"]
        np.testing.assert_array_equal(np.concatenate(thirds, axis=-1), taps["h.2.attn.c_attn"])
        assert not np.allclose(thirds[0], thirds[1])


def test_a_tap_is_what_flows_into_the_next_one(save: Save) -> None:
    """Names alone could be mixed up alike in truth and graph: sums and activations are held against plain numpy."""
    ledger, file = opened(save(activation_function="relu"))
    (case, *_) = cases_of(ledger.config)
    for taps in (graph_taps(file, ledger.config, case, float64=True), truth_taps(ledger, case)):
        stream = taps["drop"]
        np.testing.assert_allclose(stream, taps["wte"] + taps["wpe"])
        for i in range(3):
            stream = stream + taps[f"h.{i}.attn.c_proj"]
            np.testing.assert_allclose(taps[f"h.{i}.attn_residual"], stream)
            np.testing.assert_array_equal(taps[f"h.{i}.mlp.act"], np.maximum(taps[f"h.{i}.mlp.c_fc"], 0))
            stream = stream + taps[f"h.{i}.mlp.c_proj"]
            np.testing.assert_allclose(taps[f"h.{i}.mlp_residual"], stream)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_taps_of_a_long_case_are_cut_to_the_kept_positions_but_for_keys_and_values(save: Save) -> None:
    folder = save()
    ledger, file = opened(folder)
    cut = cases_of(ledger.config)[-1]
    whole = Case("whole", cut.input_ids, cut.attention_mask, cut.chunks)
    huggingface = HuggingFace(open_checkpoint(folder), ledger)
    for taps_of in (
        lambda case: truth_taps(ledger, case),
        lambda case: graph_taps(file, ledger.config, case, float64=True),
        lambda case: huggingface_taps(huggingface, case, torch.float64),
    ):
        short, long = taps_of(cut), taps_of(whole)
        for name in tap_names(ledger.config):
            kept = 24 if name.endswith((".attn.k", ".attn.v")) else 5
            assert short[name].shape[1] == kept, name
            np.testing.assert_allclose(short[name], long[name][:, -kept:], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("limit", [1, 12 * 36 * 8 * 24, 2**40])
def test_taps_taken_a_few_at_a_time_are_the_same(save: Save, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    ledger, file = opened(save())
    cases = [cases_of(ledger.config)[at] for at in (1, 3, -1)]
    expected = [graph_taps(file, ledger.config, case, float64=True) for case in cases]
    monkeypatch.setattr(module, "TAPS_BYTES", limit)
    for case, before in zip(cases, expected, strict=True):
        found = graph_taps(file, ledger.config, case, float64=True)
        assert list(found) == list(before)
        for name in before:
            np.testing.assert_array_equal(found[name], before[name], err_msg=name)


def test_the_truth_holds_no_more_than_its_taps(save: Save) -> None:
    """Attention's weights of a long case, [heads, tokens, tokens] in every layer, would be larger than all taps."""
    ledger, _ = opened(save())
    assert set(truth_taps(ledger, cases_of(ledger.config)[0])) == set(tap_names(ledger.config))


def test_the_graph_in_the_folder_stays_as_it_is(save: Save) -> None:
    ledger, file = opened(save())
    before = {path: path.read_bytes() for path in file.parent.iterdir()}
    for float64 in (True, False):
        graph_taps(file, ledger.config, cases_of(ledger.config)[0], float64)
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == before


def test_hooks_are_gone_when_the_taps_are_taken(save: Save) -> None:
    folder = save()
    ledger, _ = opened(folder)
    huggingface = HuggingFace(open_checkpoint(folder), ledger)
    huggingface_taps(huggingface, cases_of(ledger.config)[0], torch.float64)
    for part in huggingface.model(torch.float64, "eager").modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


# --- where it diverges ------------------------------------------------------------------------------------------------

CONFIG = GPT2Config(vocab_size=7, n_positions=9, n_embd=6, n_layer=2, n_head=2)
NAMES = tap_names(CONFIG)


def test_taps_come_in_the_order_in_which_data_flows() -> None:
    assert len(NAMES) == len(set(NAMES)) == 3 + 2 * 13 + 2
    assert NAMES[:4] == ["wte", "wpe", "drop", "h.0.ln_1"]
    assert NAMES[-3:] == ["h.1.mlp_residual", "ln_f", "logits"]
    assert [layer_of(name) for name in ("wte", "h.0.ln_1", "h.11.mlp.act", "logits")] == [None, 0, 11, None]


def made_up(seed: int = 0) -> tuple[Case, Taps]:
    """A padded case, and numbers for every tap."""
    rng = np.random.default_rng(seed)
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    case = Case("padded", np.zeros_like(mask), mask, (4,))
    return case, {name: rng.normal(size=(2, 4, 6)) * 10 ** rng.uniform(-3, 3) for name in NAMES}


def off(taps: Taps, share: float, since: int = 0) -> Taps:
    """Every number off by a share of its tap's size, from one tap on."""
    return {
        name: tap + (share * np.sqrt((tap[MASK] ** 2).mean()) if NAMES.index(name) >= since else 0.0)
        for name, tap in taps.items()
    }


MASK = np.array([[0, 0, 1, 1], [1, 1, 1, 1]], bool)


@given(at=st.integers(0, len(NAMES) - 1), seed=st.integers(0, 99), float64=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_first_operation_that_diverges_is_named(at: int, seed: int, float64: bool) -> None:
    case, truth = made_up(seed)
    sound, wrong = off(truth, 1e-7), off(truth, 1e-2, at)
    found = localise(NAMES, case, truth, sound if float64 else wrong, wrong if float64 else truth, sound)
    assert found.first == NAMES[at]
    assert found.case == "padded"
    assert [tap.name for tap in found.taps] == NAMES
    assert [tap.diverges for tap in found.taps] == [i >= at for i in range(len(NAMES))]


def test_errors_are_shares_of_the_size_that_each_tap_should_have() -> None:
    case, truth = made_up()
    found = localise(NAMES, case, truth, off(truth, 3e-5), off(truth, 2e-9), off(truth, 1e-5))
    for tap in found.taps:
        assert tap.onnx == pytest.approx(3e-5)
        assert tap.onnx_float64 == pytest.approx(2e-9, rel=1e-4)
        assert tap.huggingface == pytest.approx(1e-5)
        assert tap.largest == np.abs(truth[tap.name][MASK]).max()
        assert not tap.diverges
    assert found.first == ""
    assert found.missing == ()


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_an_operation_diverges_beyond_its_limit_and_not_at_it(factor: float) -> None:
    case, truth = made_up()
    for onnx_, exact in ((TAP_LIMIT * 1e-5 * factor, 0.0), (0.0, TAP_FLOAT64_LIMIT * factor)):
        found = localise(NAMES, case, truth, off(truth, onnx_), off(truth, exact), off(truth, 1e-5))
        assert (found.first == "wte") is (factor > 1)


def test_where_hugging_face_makes_no_error_float32s_step_is_allowed() -> None:
    case, truth = made_up()
    found = localise(NAMES, case, truth, off(truth, 1e-6), truth, truth)
    assert found.first == ""
    assert localise(NAMES, case, truth, off(truth, 1e-5), truth, truth).first == "wte"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_diverges_and_padding_does_not(value: float) -> None:
    case, truth = made_up()
    name = "h.1.attn.sdpa"
    spoilt = {key: tap.copy() for key, tap in truth.items()}
    spoilt[name][0, 1] = value
    assert localise(NAMES, case, truth, spoilt, spoilt, truth).first == ""
    spoilt[name][0, 2, 3] = value
    found = localise(NAMES, case, truth, truth, spoilt, truth)
    assert found.first == name
    tap = next(tap for tap in found.taps if tap.name == name)
    assert (tap.onnx, tap.onnx_float64) == (0.0, math.inf)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 6), (1, 4, 6)])
def test_a_tap_of_another_shape_diverges(shape: tuple[int, ...]) -> None:
    case, truth = made_up()
    wrong = truth | {"h.0.mlp.act": np.zeros(shape)}
    assert localise(NAMES, case, truth, wrong, wrong, truth).first == "h.0.mlp.act"


def test_taps_that_a_graph_lacks_are_listed_and_nothing_else_is(save: Save) -> None:
    folder = save()
    ledger, file = opened(folder)
    case = cases_of(ledger.config)[0]
    truth = truth_taps(ledger, case)
    huggingface = huggingface_taps(HuggingFace(open_checkpoint(folder), ledger), case, torch.float32)

    def located() -> module.Localisation:
        taps = [graph_taps(file, ledger.config, case, float64) for float64 in (False, True)]
        return localise(tap_names(ledger.config), case, truth, *taps, huggingface)

    whole = located()
    assert whole.missing == ()
    assert whole.first == ""
    model = onnx.load(file, load_external_data=False)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["renamed" if name == "h.1.mlp.act" else name for name in names]
    onnx.save(model, file)
    found = located()
    assert found.missing == ("h.1.mlp.act",)
    assert [tap.name for tap in found.taps] == [tap.name for tap in whole.taps if tap.name != "h.1.mlp.act"]
    assert found.first == ""
