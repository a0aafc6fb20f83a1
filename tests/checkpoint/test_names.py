"""A tensor has one canonical name, whatever wrapped the model that was saved."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.names import PREFIXES, canonical, outer_name, outer_names
from converter.weights.table import parameters
from reference.config import GPT2Config

NAMES = [name for name, _, _ in parameters(GPT2Config(n_layer=2, tie_word_embeddings=False))]

# Opacus, torch.compile, FSDP, Fabric, activation checkpointing, fairscale.
PRIVATE = (
    "_module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.", "_checkpoint_wrapped_module.",
    "_fpw_module.",
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.sampled_from(PREFIXES + PRIVATE)), st.sampled_from(NAMES))
def test_prefixes_are_taken_off_in_any_combination(prefixes: list[str], name: str) -> None:
    assert canonical("".join(prefixes) + name) == name


@settings(deadline=None)
@given(st.data(), st.sampled_from(NAMES), st.sampled_from(PRIVATE))
def test_what_wraps_a_module_inside_the_model_is_taken_out(data: st.DataObject, name: str, wrapper: str) -> None:
    parts = name.split(".")
    place = data.draw(st.integers(0, len(parts) - 1))
    assert canonical("transformer." + ".".join([*parts[:place], wrapper + parts[place], *parts[place + 1 :]])) == name


@pytest.mark.parametrize(
    "name", ["models.wte.weight", "my.transformer.wte.weight", "Module.wte.weight", "wte.module.x", "w_te._weight"]
)
def test_a_prefix_counts_only_at_the_start_and_whole(name: str) -> None:
    assert canonical(name) == name


@settings(deadline=None)
@given(st.lists(st.sampled_from(("gpt2.", "net.", "lm_1.", *PREFIXES, *PRIVATE)), max_size=4))
def test_the_attribute_of_a_class_of_ones_own_is_found_by_the_model_that_lies_under_it(path: list[str]) -> None:
    names = ["".join(path) + ("" if name == "lm_head.weight" else "transformer.") + name for name in NAMES]
    assert [canonical(name, outer_name(names)) for name in names] == NAMES


def test_of_two_models_none_is_chosen() -> None:
    names = [f"{model}.transformer.h.0.ln_1.weight" for model in ("policy", "reference")]
    assert outer_names(names) == ["policy.", "reference."]
    assert outer_name(names) == ""
    assert outer_name([*names, "h.0.ln_1.weight"]) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lm_head.decoder.weight", "lm_head.weight"),
        ("module.multiple_choice_head.linear.bias", "multiple_choice_head.summary.bias"),
        ("lm_head.decoder.bias", "lm_head.decoder.bias"),
    ],
)
def test_names_of_2019_are_those_of_today(old: str, new: str) -> None:
    assert canonical(old) == new
