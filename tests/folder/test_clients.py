"""The settings for clients: what they never change, and what is said where a client forces a choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from converter import convert, load
from converter.folder.clients import genai_config, genai_remarks, token_ids
from reference.config import GPT2Config

Save = Callable[..., Path]

CONFIG = GPT2Config(vocab_size=61, n_positions=24, n_embd=12, n_layer=3, n_head=3)
ID = st.none() | st.integers(-3, 70)
IDS = st.fixed_dictionaries(
    {}, optional={"bos_token_id": ID, "eos_token_id": ID | st.lists(ID, max_size=3), "pad_token_id": ID}
)


@settings(deadline=None, derandomize=True)
@given(stated=IDS, generation=IDS)
def test_genai_is_given_no_token_as_padding_and_ends_that_the_model_has(
    stated: dict[str, Any], generation: dict[str, Any]
) -> None:
    ids = token_ids(CONFIG, stated, generation)
    model = genai_config(CONFIG, ids, "onnx/model.onnx")["model"]
    assert model["pad_token_id"] not in range(CONFIG.vocab_size)
    ends = model["eos_token_id"] if isinstance(model["eos_token_id"], list) else [model["eos_token_id"]]
    assert ends
    assert {*ends, model["bos_token_id"]} <= set(range(CONFIG.vocab_size))
    assert bool(genai_remarks(CONFIG, ids)) == ("eos_token_id" not in ids)


@pytest.mark.parametrize("end", [None, 61, -1, []])
def test_without_an_end_of_text_genai_ends_at_the_last_token_alone_and_the_conversion_says_so(
    save: Save, tmp_path: Path, end: Any
) -> None:
    source = save()
    for name in ("config.json", "generation_config.json"):
        values = json.loads((source / name).read_text())
        (source / name).write_text(json.dumps(values | {"eos_token_id": end}))
    done = convert(source, tmp_path / "out")
    assert any("genai_config.json names token 60, the last one" in warning for warning in done.warnings)
    assert json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["eos_token_id"] == 60
    assert load(tmp_path / "out").end_ids == frozenset()


@pytest.mark.parametrize("end", [7, [7, 9], None])
def test_a_text_ends_where_transformers_ends_it(save: Save, tmp_path: Path, end: Any) -> None:
    """A null is no end, also in a vocabulary that has GPT-2's own."""
    source = save(vocab_size=50300, n_layer=1)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((source / name).read_text())
        (source / name).write_text(json.dumps(values | {"eos_token_id": end}))
    convert(source, tmp_path / "out")
    stated = transformers.GPT2LMHeadModel.from_pretrained(source).generation_config.eos_token_id
    assert load(tmp_path / "out").end_ids == frozenset([] if stated is None else [stated] if end == 7 else stated)
