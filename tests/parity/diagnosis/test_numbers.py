"""Changed numbers, activations that stand for another, and several defects at once."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch

from converter.parity.diagnosis.diagnose import FLOAT64_LIMIT, diagnose
from converter.parity.diagnosis.operations import Operations
from converter.parity.diagnosis.taps import Localisation
from reference.activations import FUNCTIONS
from tests.parity.diagnosis.bench import WIDTH, Copy, MakeBench, findings, the_finding
from tests.parity.diagnosis.defects import DEFECTS
from tests.parity.diagnosis.edits import set_attribute, to_bfloat16

PARAMETERS = (
    "wte.weight", "wpe.weight", "h.1.ln_1.weight", "h.1.ln_1.bias", "h.1.attn.c_attn.weight", "h.1.attn.c_attn.bias",
    "h.1.attn.c_proj.weight", "h.1.attn.c_proj.bias", "h.1.ln_2.weight", "h.1.ln_2.bias", "h.1.mlp.c_fc.weight",
    "h.1.mlp.c_fc.bias", "h.1.mlp.c_proj.weight", "h.1.mlp.c_proj.bias", "ln_f.weight", "ln_f.bias",
)  # fmt: skip


@pytest.mark.parametrize(("name", "delta"), [*zip(PARAMETERS, cycle((3e-4, -0.03, 20.0)), strict=False)])
def test_one_changed_number_is_found_with_its_place_and_both_values(
    bench: MakeBench, copy: Copy, name: str, delta: float
) -> None:
    made = bench()
    folder = copy(made)
    rng = np.random.default_rng([*name.encode(), int(abs(delta) * 1e4)])
    at: list[int] = []
    values: list[float] = []

    def change(weight: np.ndarray) -> np.ndarray:
        at[:] = [int(rng.integers(size)) for size in weight.shape]
        if "c_attn" in name:  # the keys' biases have no say: softmax drops what all keys share
            at[-1] %= WIDTH
        before = float(weight[tuple(at)])
        weight[tuple(at)] += np.float32(delta)
        values[:] = before, float(weight[tuple(at)])
        return weight

    folder.weight(name, change)
    finding = the_finding(made.report(folder))
    assert finding.cause == "element"
    assert finding.sentence.startswith(f"{name}{at} is ")
    found = re.search(r" is (\S+); the source has ([^\s,]+)(, [+-][\d.e+]+ ?%)?$", finding.sentence)
    assert found, finding.sentence
    assert float(found[1]) == pytest.approx(values[1], rel=1e-4)
    assert float(found[2]) == pytest.approx(values[0], rel=1e-5)


def test_a_number_that_was_0_has_no_percentage(bench: MakeBench, copy: Copy) -> None:
    def with_a_zero(model: Any) -> None:
        model.transformer.h[0].mlp.c_fc.bias[4] = 0.0

    made = bench(change=with_a_zero)
    folder = copy(made)
    folder.weight("h.0.mlp.c_fc.bias", lambda bias: np.where(np.arange(20) == 4, np.float32(0.5), bias))
    assert the_finding(made.report(folder)).sentence == "h.0.mlp.c_fc.bias[4] is 0.5; the source has 0"


def test_a_changed_slope_of_a_learned_activation_is_found(bench: MakeBench, copy: Copy) -> None:
    made = bench(activation_function="prelu")
    folder = copy(made)
    folder.weight("h.1.mlp.act.weight", lambda slope: slope + np.float32(0.01))
    finding = the_finding(made.report(folder))
    assert finding.operations == ("h.1.mlp.act",)
    assert finding.cause == "element"


def test_a_number_of_the_embedding_that_no_text_feeds_shows_in_the_head_alone(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    fed = {int(token) for case in made.baseline.cases for token in case.input_ids.flat}
    unfed = min(set(range(61)) - fed)
    folder = copy(made)

    def change(weight: np.ndarray) -> np.ndarray:
        weight[unfed, 3] += np.float32(0.01)
        return weight

    folder.weight("wte.weight", change)
    finding = the_finding(made.report(folder))
    assert finding.operations == ("logits",)
    assert finding.sentence.startswith(f"wte.weight[{unfed}, 3] is ")


# --- activations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [*FUNCTIONS, "prelu"])
def test_every_activation_that_stands_for_another_is_named(bench: MakeBench, wanted: str) -> None:
    made = bench(**({"activation_function": "prelu"} if wanted == "prelu" else {}))
    (case, *_) = made.baseline.cases
    ledger = replace(made.baseline.ledger, config=replace(made.baseline.ledger.config, activation_function=wanted))
    x = torch.randn(1, 24, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5
    slope = made.baseline.ledger.weights.get("h.0.mlp.act.weight")
    assert x.abs().max() > 10  # so that those that are cut off differ
    expected = FUNCTIONS[wanted](x) if slope is None else torch.where(x < 0, x * float(slope.memmap()[0]), x)
    size = expected.square().mean().sqrt()
    told_apart = 0
    for name, function in FUNCTIONS.items():
        found = function(x)
        given = Operations(ledger, case, {"h.0.mlp.c_fc": x.numpy(), "h.0.mlp.act": found.numpy()})
        assert given.names() == ["h.0.mlp.act"]
        diagnosis = diagnose(given, FLOAT64_LIMIT, Localisation("prefill", "", (), ()))
        if (found - expected).abs().max() <= FLOAT64_LIMIT * size:
            assert diagnosis.findings == (), name
            continue
        told_apart += 1
        (finding,) = diagnosis.findings
        assert finding.cause == "activation", name
        named = re.fullmatch(rf"the activation in h\.0\.mlp\.act is (\w+); the source has {wanted}", finding.sentence)
        assert named
        torch.testing.assert_close(FUNCTIONS[named[1]](x), found, rtol=1e-8, atol=1e-8)
    assert told_apart >= len(FUNCTIONS) - 7


# --- several at once --------------------------------------------------------------------------------------------------


def test_several_defects_are_found_in_the_order_in_which_data_meets_them(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    parts = ("positions +1", "epsilon in one place", "no bias in h.2.mlp.c_proj", "erf for tanh in one layer",
             "weight transposed")  # fmt: skip
    for part in parts:
        DEFECTS[part][0](folder)
    report = made.report(folder)
    found = findings(report)
    assert [finding.cause for finding in found] == ["position", "transposed", "epsilon", "activation", "bias"]
    assert [finding.operations for finding in found] == [
        ("wpe",), ("h.0.mlp.c_fc",), ("h.1.ln_1",), ("h.2.mlp.act",), ("h.2.mlp.c_proj",)
    ]  # fmt: skip
    assert report.verdict.endswith("wpe is read 1 row too far (and 4 more)")


def test_two_epsilons_are_two_findings(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    set_attribute("LayerNormalization", "epsilon", lambda i, e: 1e-3, "h.0.ln_1", "h.2.ln_1")(folder)
    set_attribute("LayerNormalization", "epsilon", lambda i, e: 1e-4, "h.1.ln_1")(folder)
    found = findings(made.report(folder))
    assert [finding.operations for finding in found] == [("h.0.ln_1", "h.2.ln_1"), ("h.1.ln_1",)]
    assert "is 0.001;" in found[0].sentence
    assert "is 0.0001;" in found[1].sentence


def test_a_defect_in_every_projection_is_named_for_each(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    names = [f"h.{i}.{part}.weight" for i in range(3) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")]
    for name in names:
        folder.weight(name, to_bfloat16)
    assert [f.sentence for f in findings(made.report(folder))] == [f"{name} was rounded to bfloat16" for name in names]
