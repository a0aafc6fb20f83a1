"""A config.json is read as transformers reads it, or refused with the key that is not GPT-2's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.config import ALIASES, dead_keys, parse_config
from converter.checkpoint.open import open_checkpoint
from converter.errors import ConfigError
from converter.files import read_json
from reference.config import ACTIVATION_NAMES, GPT2Config

FILE = Path("some") / "config.json"
# Far from the defaults, and no two alike.
VALUES = {
    "model_type": "gpt2", "vocab_size": 61, "n_positions": 24, "n_embd": 12, "n_layer": 5, "n_head": 3, "n_inner": 20,
    "activation_function": "relu", "layer_norm_epsilon": 1e-3, "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "tie_word_embeddings": False,
    "embd_pdrop": 0.3, "attn_pdrop": 0.25, "resid_pdrop": 0.2, "initializer_range": 0.5,
}  # fmt: skip
HEAD = {"head", "num_labels", "pad_token_id", "summary_activation"}  # what stands on the architecture


def refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"some/config\.json.*{message}"):
        parse_config(values, FILE)


def test_every_key_of_the_architecture_is_read() -> None:
    assert set(VALUES) - {"model_type"} | HEAD == {field.name for field in fields(GPT2Config)}
    config = parse_config(VALUES, FILE)
    assert {name: getattr(config, name) for name in VALUES if name != "model_type"} == {
        name: value for name, value in VALUES.items() if name != "model_type"
    }
    assert parse_config({"model_type": "gpt2"}, FILE) == GPT2Config()


@settings(deadline=None)
@given(
    width=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    sizes=st.fixed_dictionaries(dict.fromkeys(("vocab_size", "n_positions", "n_layer"), st.integers(1, 10**6))),
    n_inner=st.none() | st.integers(1, 99),
    activation=st.sampled_from(ACTIVATION_NAMES),
    epsilon=st.just(0.0) | st.floats(1e-30, 1),  # less is refused: float32 does not hold it
    flags=st.fixed_dictionaries(
        dict.fromkeys(
            ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings"),
            st.booleans(),
        )
    ),
)
def test_what_transformers_writes_is_read_as_transformers_means_it(
    width: tuple[int, int], sizes: dict[str, int], n_inner: int | None, activation: str, epsilon: float, flags: Any
) -> None:
    theirs = transformers.GPT2Config(
        n_embd=width[0] * width[1], n_head=width[1], n_inner=n_inner, activation_function=activation,
        layer_norm_epsilon=epsilon, **sizes, **flags,
    )  # fmt: skip
    for written in (theirs.to_json_string(use_diff=True), theirs.to_json_string(use_diff=False)):
        ours = parse_config(json.loads(written), FILE)
        assert {f.name: getattr(ours, f.name) for f in fields(ours) if f.name not in HEAD} == {
            f.name: getattr(theirs, f.name) for f in fields(ours) if f.name not in HEAD
        }


def test_the_aliases_are_those_of_transformers() -> None:
    assert transformers.GPT2Config.attribute_map == ALIASES
    values = {"hidden_size": 18, "num_attention_heads": 6, "num_hidden_layers": 7, "max_position_embeddings": 33}
    theirs = transformers.GPT2Config(**values)
    config = parse_config({"model_type": "gpt2"} | values, FILE)
    assert (config.n_embd, config.n_head, config.n_layer, config.n_positions) == (18, 6, 7, 33)
    assert (theirs.n_embd, theirs.n_head, theirs.n_layer, theirs.n_positions) == (18, 6, 7, 33)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_an_alias_may_agree_with_its_key_and_not_contradict_it(alias: str, name: str) -> None:
    assert parse_config(VALUES | {alias: VALUES[name]}, FILE) == parse_config(VALUES, FILE)
    refused(VALUES | {alias: 6}, f"contradicts itself: {name} is {VALUES[name]} and {alias} is 6")


def test_n_ctx_does_not_count() -> None:
    assert parse_config(VALUES | {"n_ctx": 7}, FILE) == parse_config(VALUES, FILE)


def test_keys_without_a_meaning_are_left_aside() -> None:
    dead = {
        "summary_type": "cls_index", "task_specific_params": {"text-generation": {"max_length": 50}}, "n_special": 0,
        "predict_special_tokens": True, "gradient_checkpointing": False, "bos_token_id": 5, "use_cache": False,
        "torch_dtype": "float16", "transformers_version": "4.1.0", "_name_or_path": "x", "head_dim": "no",
    }  # fmt: skip
    assert parse_config(VALUES | dead, FILE) == parse_config(VALUES, FILE)


@pytest.mark.parametrize(
    "found",
    ["gpt_neo", "gpt_neox", "gptj", "gpt_bigcode", "imagegpt", "openai-gpt", "ctrl", "codegen", "biogpt", "opt",
     "bloom", "vision-encoder-decoder", "decision_transformer", "llama", "GPT2", "gpt-2", "", 2],
)  # fmt: skip
def test_another_model_type_is_named(found: Any) -> None:
    refused({"model_type": found}, rf"does not describe a GPT-2: model_type is {found!r}; expected 'gpt2'")
    refused({"model_type": found, "architectures": ["GPT2LMHeadModel"]}, rf"model_type is {found!r}")


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "GPT2Model"])
def test_a_missing_model_type_is_made_up_for_by_a_gpt2_architecture(architecture: str) -> None:
    assert parse_config({"architectures": [architecture], "n_layer": 3}, FILE).n_layer == 3


@pytest.mark.parametrize("architectures", [{}, {"architectures": None}, {"architectures": []}], ids=str)
def test_a_missing_model_type_without_a_gpt2_architecture_is_refused(architectures: dict[str, Any]) -> None:
    refused(architectures, "does not describe a GPT-2: it has no model_type; expected 'gpt2'")


def test_the_architecture_is_named_where_there_is_no_model_type() -> None:
    values = {"architectures": ["OpenAIGPTLMHeadModel"], "n_embd": 12}
    refused(values, r"it has no model_type and architectures is \['OpenAIGPTLMHeadModel'\]; expected 'gpt2'")
    refused({"architectures": ["BertModel", 5]}, r"it has no model_type and architectures is \['BertModel', 5\]")


@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "hidden_size"])
@pytest.mark.parametrize("value", [2**63, 12 * 10**4000])
def test_a_size_that_no_tensor_has_is_not_even_written_into_the_message(key: str, value: int) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_config({"model_type": "gpt2", key: value}, FILE)
    assert re.fullmatch(r"some/config\.json: \w+ is a number of \d+ bits; no tensor is as large", str(refusal.value))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("quantization_config", {"quant_method": "gptq"}, "its weights are quantized; convert the original checkpoint"),
        ("auto_map", {"AutoModel": "modeling.Mine"}, "it runs code of its own"),
        ("multi_query", True, "it shares keys and values among heads"),
        ("add_cross_attention", True, "it attends to an encoder"),
        ("is_encoder_decoder", True, "it has an encoder"),
    ],
)
def test_a_part_that_gpt2_does_not_have_is_refused_unless_it_is_off(key: str, value: Any, reason: str) -> None:
    refused(VALUES | {key: value}, f"sets {key}: {reason}")
    assert parse_config(VALUES | {key: None}, FILE) == parse_config(VALUES | {key: False}, FILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "xielu"}, r"activation_function 'xielu' is unknown; expected one of gelu, .*tanh"),
        ({"activation_function": ["relu"]}, r"activation_function \['relu'\] is unknown"),
        ({"activation_function": None}, "activation_function None is unknown"),
        ({"n_head": 5}, "n_head 5 does not divide n_embd 12"),
        ({"n_layer": 0}, "n_layer is 0; expected a positive integer"),
        ({"vocab_size": 61.0}, r"vocab_size is 61\.0; expected a positive integer"),
        ({"n_embd": "12"}, "n_embd is '12'; expected a positive integer"),
        ({"n_positions": True}, "n_positions is True; expected a positive integer"),
        ({"n_inner": -1}, "n_inner is -1; expected a positive integer"),
        ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon is -1e-05; expected a finite number, 0 or more"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan; expected a finite number"),
        ({"scale_attn_weights": 1}, "scale_attn_weights is 1; expected true or false"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; expected true or false"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_refused_by_key(change: dict[str, Any], message: str) -> None:
    refused(VALUES | change, message)


def test_architectures_of_the_wrong_type_are_refused() -> None:
    refused({"architectures": 5}, "expected")


def test_an_epsilon_no_float_can_hold_is_refused() -> None:
    refused(VALUES | {"layer_norm_epsilon": 10**400}, "layer_norm_epsilon")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"cannot be read as JSON \(.*char 0"),
        (b'{"n_layer": 3,}', "cannot be read as JSON"),
        (b"{'n_layer': 3}", "cannot be read as JSON"),
        (b'{"n_layer": "\xff"}', "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'["gpt2"]', "holds a list; expected a JSON object"),
        (b'"gpt2"', "holds a str; expected a JSON object"),
        (b"null", "holds a NoneType; expected a JSON object"),
        (b'{"n_layer": ' + b"1" * 5000 + b"}", "cannot be read as JSON"),
    ],
    ids=["empty", "comma", "quotes", "no text", "nested", "list", "string", "null", "digits"],
)
def test_a_file_that_holds_no_json_object_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=f"{re.escape(str(file))} {message}"):
        read_json(file)


def test_a_missing_file_and_a_folder_in_its_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(str(tmp_path))} has no config\.json; expected a Hugging Face"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json cannot be read as JSON \(.*directory"):
        read_json(tmp_path / "config.json")


def test_a_saved_checkpoint_keeps_its_config_as_it_stands(save: Callable[..., Path]) -> None:
    folder = save(activation_function="quick_gelu", n_inner=None)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config_values == json.loads((folder / "config.json").read_text())
    assert (checkpoint.config.activation_function, checkpoint.config.inner_dim) == ("quick_gelu", 48)


def test_keys_that_no_gpt2_reads_are_known_as_such() -> None:
    values = transformers.GPT2Config().to_dict() | {"n_ctx": 512, "hidden_size": 12}
    assert dead_keys(values) == []
    assert dead_keys(values | {"intermediate_size": 7, "rotary_dim": 3}) == ["intermediate_size", "rotary_dim"]
