"""The architecture: what it derives, what it refuses, and what importing it costs."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
import transformers

import reference
from reference import ConfigError, GPT2Config, GPT2Error, WeightsError
from reference.head import ASKED, HEADS, head_of

FIELDS = [field.name for field in dataclasses.fields(GPT2Config)]
SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "num_labels")
HEAD = ("head", "pad_token_id", "summary_activation")
FLAGS = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings")
PROBABILITIES = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
NUMBERS = ("layer_norm_epsilon", "initializer_range", *PROBABILITIES)

CLASS_NAMES = {name: HEADS[name].class_name for name in ASKED}


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "head"])
def test_a_default_is_that_of_transformers(name: str) -> None:
    assert getattr(GPT2Config(), name) == getattr(transformers.GPT2Config(), name)


def test_every_field_is_covered_by_the_refusals_below() -> None:
    assert sorted(FIELDS) == sorted((*SIZES, *FLAGS, *NUMBERS, *HEAD, "activation_function"))


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, value) for name in SIZES for value in (0, -1, 2.0, "8", True)), ("n_embd", None), ("vocab_size", None)],
)
def test_a_size_that_is_not_a_positive_integer_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is {value!r}; expected a positive integer$"):
        GPT2Config(**{name: value})


@pytest.mark.parametrize("value", [0, 1, "true", None])
@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_that_is_not_a_boolean_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is {value!r}; expected true or false$"):
        GPT2Config(**{name: value})


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -1e-9, "0.1", False, None, pytest.param(10**400, id="beyond a float")]
)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_not_finite_and_0_or_more_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is {value!r}; expected a finite number, 0 or more$"):
        GPT2Config(**{name: value})


@pytest.mark.parametrize("name", PROBABILITIES)
def test_a_dropout_above_1_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is 1.01; expected a probability$"):
        GPT2Config(**{name: 1.01})


@pytest.mark.parametrize(
    ("name", "value"), [*((name, 0) for name in NUMBERS), *((name, 1) for name in NUMBERS), ("initializer_range", 1.01)]
)
def test_the_ends_of_a_range_are_accepted_and_may_be_integers(name: str, value: float) -> None:
    assert getattr(GPT2Config(**{name: value}), name) == value


def test_heads_that_do_not_divide_the_width_are_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="n_head 5 does not divide n_embd 12"):
        GPT2Config(n_embd=12, n_head=5)


@pytest.mark.parametrize("name", ["xielu", "GELU", "gelu_newer", "", None])
def test_an_unknown_activation_is_named_beside_those_that_are_known(name: object) -> None:
    with pytest.raises(ConfigError, match=rf"^activation_function {name!r} is unknown; .*gelu_new, .*tanh$"):
        GPT2Config(activation_function=name)


def test_from_dict_takes_its_fields_and_leaves_everything_else() -> None:
    values = {"n_embd": 12, "n_head": 3, "n_inner": None, "tie_word_embeddings": False, "n_ctx": 7, "eos_token_id": 0}
    assert GPT2Config.from_dict(values) == GPT2Config(n_embd=12, n_head=3, tie_word_embeddings=False)


def test_from_dict_refuses_what_the_constructor_refuses() -> None:
    with pytest.raises(ConfigError, match="n_layer is '3'"):
        GPT2Config.from_dict({"n_layer": "3"})


def test_a_config_cannot_be_changed_past_its_checks() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPT2Config().n_head = 5  # type: ignore[misc]


def test_the_head_width_is_the_models_over_the_heads() -> None:
    assert GPT2Config(n_embd=12, n_head=3).head_dim == 4


@pytest.mark.parametrize(("n_inner", "expected"), [(None, 48), (37, 37), (12, 12), (1, 1)])
def test_the_inner_width_is_n_inner_or_four_times_the_models(n_inner: int | None, expected: int) -> None:
    assert GPT2Config(n_embd=12, n_inner=n_inner).inner_dim == expected


@pytest.mark.parametrize(
    ("by_width", "by_layer", "expected"),
    [
        (False, False, (1.0, 1.0, 1.0)),
        (True, False, (0.5, 0.5, 0.5)),
        (False, True, (1.0, 1 / 2, 1 / 3)),
        (True, True, (0.5, 1 / 4, 1 / 6)),
    ],
)
def test_the_attention_scale_falls_with_head_width_and_layer_as_the_flags_say(
    by_width: bool, by_layer: bool, expected: tuple[float, ...]
) -> None:
    config = GPT2Config(
        n_embd=12, n_head=3, scale_attn_weights=by_width, scale_attn_by_inverse_layer_idx=by_layer
    )  # head_dim 4
    assert tuple(config.attn_scale(layer) for layer in range(3)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("error", [ConfigError, WeightsError])
def test_every_error_is_a_gpt2_error_and_a_value_error(error: type[Exception]) -> None:
    assert issubclass(error, GPT2Error)
    assert issubclass(error, ValueError)


@pytest.mark.parametrize(
    "statement",
    ["import reference", "import reference.config", "from reference import ConfigError, GPT2Config; GPT2Config()"],
)
def test_the_config_costs_no_torch(statement: str) -> None:
    check = "import sys; print(sorted({'numpy', 'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{check}"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_once_asked_for() -> None:
    assert {name: getattr(reference, name).__name__ for name in reference.__all__} == {n: n for n in reference.__all__}


def test_an_unknown_name_is_an_attribute_error_of_the_package() -> None:
    with pytest.raises(AttributeError, match="'reference' has no attribute 'GPT3'"):
        _ = reference.GPT3


@pytest.mark.parametrize("prefix", ["", "TF", "Flax"])
@pytest.mark.parametrize(("head", "name"), CLASS_NAMES.items())
def test_the_head_is_the_class_that_saved_it_whatever_the_framework(head: str, name: str, prefix: str) -> None:
    assert head_of([prefix + name]) == head
    assert GPT2Config.from_dict({"architectures": ["SomethingElse", prefix + name]}).head == head


@pytest.mark.parametrize("architectures", [None, [], "GPT2Model", ["GPT2"], ["BertModel"], [None], {"GPT2Model": 1}])
def test_architectures_that_name_no_class_of_gpt2_say_nothing_of_the_head(architectures: object) -> None:
    assert head_of(architectures) is None
    assert GPT2Config.from_dict({"architectures": architectures}).head == "lm"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ({}, 2),
        ({"num_labels": 7}, 7),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, 3),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 7}, 3),
        ({"id2label": {}, "num_labels": 7}, 7),
        ({"id2label": None, "num_labels": 1}, 1),
    ],
)
def test_there_are_as_many_labels_as_have_names_as_transformers_counts_them(
    values: dict[str, Any], labels: int
) -> None:
    for head in ("sequence-classification", "token-classification"):
        assert GPT2Config.from_dict(values | {"architectures": [HEADS[head].class_name]}).num_labels == labels
    if not {"id2label", "num_labels"} <= values.keys():  # of the two transformers 4 takes the first, and 5 the last
        assert transformers.GPT2Config.from_dict(dict(values)).num_labels == labels
    assert GPT2Config.from_dict(values | {"architectures": ["GPT2Model"]}).num_labels == 2


def test_each_head_takes_of_a_config_what_it_heeds_and_no_more() -> None:
    values = {"pad_token_id": 5, "summary_activation": "tanh", "num_labels": 3}
    taken = {head: GPT2Config.from_dict(values | {"architectures": [name]}) for head, name in CLASS_NAMES.items()}
    assert {head for head, config in taken.items() if config.pad_token_id == 5} == {"sequence-classification"}
    assert {head for head, config in taken.items() if config.summary_activation == "tanh"} == {"double-heads"}
    assert {head for head, config in taken.items() if config.num_labels == 3} == {
        "sequence-classification",
        "token-classification",
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_labels": 0}, "num_labels is 0"),
        ({"pad_token_id": 1.5}, "pad_token_id is 1.5; expected an integer"),
        ({"pad_token_id": True}, "pad_token_id is True"),
        ({"summary_activation": "prelu"}, "summary_activation 'prelu' is unknown"),
        ({"summary_activation": "tan"}, "summary_activation 'tan' is unknown"),
        ({"head": "nonsense"}, "head 'nonsense' is unknown; expected one of lm, base"),
    ],
)
def test_what_no_head_has_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPT2Config(**values)
