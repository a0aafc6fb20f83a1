"""Every activation against transformers' of the same name, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from reference.activations import FUNCTIONS, activation
from reference.config import ACTIVATION_NAMES

# Beyond every bend there is: the clip of gelu_10, the ends of hardswish and relu6, 0 itself.
X = torch.linspace(-12.0, 12.0, 2401, dtype=torch.float64)


def test_the_names_are_transformers_without_xielu() -> None:
    assert sorted(ACTIVATION_NAMES) == sorted(set(ACT2FN) - {"xielu"})


def test_every_name_but_prelu_has_one_function() -> None:
    assert sorted(FUNCTIONS) == sorted(set(ACTIVATION_NAMES) - {"prelu"})


# Tight enough to tell gelu_fast, whose constant has ten digits, from gelu_new.
@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_an_activation_is_the_curve_of_transformers(name: str) -> None:
    torch.testing.assert_close(activation(name).double()(X), ACT2FN[name].double()(X), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_an_activation_has_the_gradient_of_transformers(name: str) -> None:
    def gradient(module: nn.Module) -> Tensor:
        x = X[X != 0].clone().requires_grad_()
        return torch.autograd.grad(module.double()(x).sum(), x)[0]

    torch.testing.assert_close(gradient(activation(name)), gradient(ACT2FN[name]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_an_activation_keeps_the_dtype_it_is_given(name: str, dtype: torch.dtype) -> None:
    assert activation(name).to(dtype)(X.to(dtype)).dtype == dtype


@pytest.mark.parametrize("slope", [-0.7, 0.0, 1.9])
def test_prelu_follows_its_slope(slope: float) -> None:
    ours, theirs = activation("prelu").double(), ACT2FN["prelu"].double()
    for module in (ours, theirs):
        module.load_state_dict({"weight": torch.tensor([slope], dtype=torch.float64)})
    assert torch.equal(ours(X), theirs(X))
    assert ours(torch.tensor(-2.0, dtype=torch.float64)).item() == pytest.approx(-2.0 * slope, abs=0)


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_only_prelu_has_a_parameter(name: str) -> None:
    expected = {"weight": [1]} if name == "prelu" else {}
    assert {key: list(value.shape) for key, value in activation(name).named_parameters()} == expected
