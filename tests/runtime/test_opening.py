"""Opening a model folder, and running it step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from converter.errors import GPT2Error, ModelFolderError, PromptError, ProviderError
from converter.folder.convert import convert
from converter.runtime import opening
from converter.runtime.cache import GrowingCache
from converter.runtime.opening import load

Save = Callable[..., Path]


def test_logits_are_those_of_transformers(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")
    ids = np.random.default_rng(0).integers(61, size=(3, 24))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(source)(torch.tensor(ids)).logits.detach().numpy()
    model = load(tmp_path / "out")
    np.testing.assert_allclose(model.logits(ids), theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.logits(ids[1]), theirs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 61], "token id 61"),
        ([[1] * 25], "25 tokens are more than the model's 24 positions"),
        ([0.5], "expected integers"),
        ([], "expected integers"),
        ([[[1]]], r"\[1, 1, 1\]; expected"),
        ([[1, 2], [3]], "rows of unequal length"),
    ],
)
def test_ids_that_are_no_tokens_are_refused(save: Save, tmp_path: Path, ids: list[int], message: str) -> None:
    convert(save(), tmp_path / "out")
    with pytest.raises(PromptError, match=message):
        load(tmp_path / "out").logits(ids)


def test_a_provider_that_is_not_there_is_named_with_those_that_are(bundled: Path) -> None:
    with pytest.raises(ProviderError, match=r"no provider cuda; it offers .*cpu.*; install onnxruntime-gpu"):
        load(bundled, provider="cuda")


def test_a_provider_that_does_not_work_is_not_replaced_silently(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "provider_name", lambda provider: "CUDAExecutionProvider")
    with pytest.raises((ProviderError, ValueError), match=r"CUDAExecutionProvider|cannot use it"):
        load(bundled, provider="cuda")


def test_a_folder_that_is_no_model_folder_is_refused(save: Save, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="there is no model folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelFolderError, match=r"source has no onnx/model\.onnx; make a model folder with"):
        load(save())


def test_a_damaged_graph_is_refused_in_a_sentence(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    graph = tmp_path / "out" / "onnx" / "model.onnx"
    whole = graph.read_bytes()
    for damaged in (b"", b"rubbish", whole[: len(whole) // 2]):
        graph.write_bytes(damaged)
        with pytest.raises(ModelFolderError, match=r"model\.onnx cannot be opened by ONNX Runtime"):
            load(tmp_path / "out")


def test_a_missing_or_short_data_file_is_refused(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    data = tmp_path / "out" / "onnx" / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(ModelFolderError, match="cannot be opened"):
        load(tmp_path / "out")
    data.unlink()
    with pytest.raises(ModelFolderError, match="cannot be opened"):
        load(tmp_path / "out")


def test_a_manifest_cannot_lead_out_of_the_folder(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    convert(save("other"), tmp_path / "other-out")
    manifest = tmp_path / "out" / "gpt2onnx.json"
    manifest.write_text(json.dumps({"model": "../other-out/onnx/model.onnx"}))
    with pytest.raises(GPT2Error, match="has no"):
        load(tmp_path / "out")


def test_a_folder_without_our_manifest_opens(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    (tmp_path / "out" / "gpt2onnx.json").unlink()
    assert load(tmp_path / "out").logits([1, 2]).shape == (2, 61)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_layer": 2}, r"it also takes the input past_key_values\.2\.key"),
        ({"n_layer": 4}, r"it lacks the input past_key_values\.3\.key"),
        ({"n_head": 6}, "its cache has 3 heads of 4, config.json has 6 of 2"),
    ],
)
def test_a_config_that_is_not_the_graphs_own_is_refused(
    save: Save, tmp_path: Path, values: dict[str, int], message: str
) -> None:
    convert(save(), tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(ModelFolderError, match=message):
        load(tmp_path / "out")


def test_weights_used_as_the_file_has_them_give_the_same_logits(bundled: Path) -> None:
    ids = np.arange(60).reshape(2, 30)
    np.testing.assert_allclose(
        load(bundled, prepack=False).logits(ids), load(bundled).logits(ids), rtol=1e-4, atol=1e-4
    )


def test_quantized_weights_are_laid_out_anew_in_any_case(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out", precision="int8")  # else they would be taken apart at every step
    ids = [1, 2, 3]
    np.testing.assert_array_equal(load(tmp_path / "out", prepack=False).logits(ids), load(tmp_path / "out").logits(ids))


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no GPU")
@pytest.mark.parametrize("options", [{}, {"beams": 3, "best": 2}, {"temperature": 1.0, "seed": 1, "best": 2}])
def test_on_a_gpu_the_cache_stays_there_and_the_tokens_are_the_same(bundled: Path, options: dict[str, Any]) -> None:
    model = load(bundled, provider="cuda")
    assert model.device == "cuda"
    cache = model.empty_cache(1)
    assert isinstance(cache, GrowingCache)
    assert cache.values[0].device_name().lower() == "cuda"
    prompts = ["The following", "In a class"]
    ours = model.generate(prompts, max_new_tokens=30, **options).new_ids
    assert ours == load(bundled).generate(prompts, max_new_tokens=30, **options).new_ids
