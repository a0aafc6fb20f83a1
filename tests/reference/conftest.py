"""The from-scratch model beside transformers' with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from reference import GPT2, GPT2Config
from reference.model import Projection


@pytest.fixture(scope="session")
def random_gpt2(pytestconfig: pytest.Config) -> Callable[..., transformers.GPT2LMHeadModel]:
    """``random_gpt2(seed=0, **config)`` of ``tests/conftest.py``, which this import mode cannot import."""
    above = pytestconfig.pluginmanager.getplugin(str(Path(__file__).parents[1] / "conftest.py"))
    return above.random_gpt2


@pytest.fixture
def weights_of() -> Callable[[transformers.GPT2LMHeadModel], dict[str, Tensor]]:
    """The weights of transformers' model under the names ``GPT2.load`` takes."""

    def canonical(model: transformers.GPT2LMHeadModel) -> dict[str, Tensor]:
        weights = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            del weights["lm_head.weight"]
        return weights

    return canonical


@pytest.fixture
def twins(
    random_gpt2: Callable[..., transformers.GPT2LMHeadModel],
    weights_of: Callable[[transformers.GPT2LMHeadModel], dict[str, Tensor]],
) -> Callable[..., tuple[GPT2, transformers.GPT2LMHeadModel]]:
    """``twins(projection, dtype, **config)`` is our model and transformers', of one set of random weights."""

    def make(
        projection: Projection = nn.Linear, dtype: torch.dtype = torch.float64, **config: object
    ) -> tuple[GPT2, transformers.GPT2LMHeadModel]:
        theirs = random_gpt2(**config).to(dtype)
        theirs.set_attn_implementation("eager")
        ours = GPT2.from_weights(GPT2Config.from_dict(theirs.config.to_dict()), weights_of(theirs), None, projection)
        return ours, theirs

    return make


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """``tokens(batch, length)`` draws ids below the vocabulary of ``SMALL``."""

    def draw(batch: int, length: int, seed: int = 0) -> Tensor:
        return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(seed))

    return draw
