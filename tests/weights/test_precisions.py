"""A model folder in several precisions: what is written, what is added, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from converter import convert, load
from converter.checkpoint.open import open_checkpoint
from converter.cli import cli
from converter.data import CHECKPOINT
from converter.errors import CheckpointError, ConfigError, ModelFolderError, OutputError
from converter.weights.ledger import account
from converter.weights.precisions import INT4, INT8, PRECISIONS, parse
from converter.weights.table import parameters
from converter.weights.write import quantized_share, specs
from reference.config import GPT2Config

Save = Callable[..., Path]
EVERY = ("fp32", "fp16", "int8", "int4")


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gpt2onnx.json").read_text())


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint in every precision."""
    out = tmp_path_factory.mktemp("precisions") / "out"
    convert(CHECKPOINT, out, precision=EVERY)
    return out


def test_files_are_called_what_transformers_js_looks_for(everything: Path) -> None:
    stems = ("model", "model_fp16", "model_int8", "model_q4")
    assert {file.name for file in (everything / "onnx").iterdir()} == {
        f"{stem}.{end}" for stem in stems for end in ("onnx", "onnx_data")
    }
    section = json.loads((everything / "config.json").read_text())["transformers.js_config"]
    assert section == {
        "dtype": "fp32",
        "use_external_data_format": {"model": 1},  # a key of "model_int8" would be overlooked
        "kv_cache_dtype": {"fp16": "float16"},
    }


def test_the_manifest_says_how_each_was_made(everything: Path) -> None:
    there = manifest(everything)["precisions"]
    assert list(there) == list(EVERY)
    for name, facts in there.items():
        assert facts["bytes"] == sum((everything / facts[key]).stat().st_size for key in ("model", "data"))
        assert ("quantized" in facts) == (name in ("int8", "int4"))
    assert there["int4"]["blocks"]["linear"] == {"bits": 4, "size": 32, "symmetric": False}
    assert there["int8"]["quantized"] == pytest.approx(0.977, abs=1e-3)
    sizes = [there[name]["bytes"] for name in EVERY]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", EVERY)
def test_every_data_file_is_a_safetensors_file_that_the_graph_points_into(everything: Path, name: str) -> None:
    precision = PRECISIONS[name]
    graph = onnx.load(everything / precision.model, load_external_data=False).graph
    places = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer}
    places = {tensor: place for tensor, place in places.items() if place}
    with safe_open(everything / precision.data, "np") as file:
        assert set(places) == set(file.keys())
    onnx.checker.check_model(everything / precision.model, full_check=name in ("fp32", "fp16"))


@pytest.mark.parametrize("name", EVERY)
def test_of_onnx_runtimes_own_operators_one_is_used(everything: Path, name: str) -> None:
    """ONNX Runtime in a browser lacks others for whole numbers."""
    graph = onnx.load(everything / PRECISIONS[name].model, load_external_data=False).graph
    own = {node.op_type for node in graph.node if node.domain}
    assert own == ({"MatMulNBits"} if PRECISIONS[name].scheme else set())


@pytest.mark.parametrize("name", EVERY)
def test_every_precision_generates_and_gives_logits_in_float32(everything: Path, name: str) -> None:
    model = load(everything, precision=name)
    logits = model.logits([5, 9, 2, 77])
    exact = load(everything).logits([5, 9, 2, 77])
    assert logits.dtype == np.float32
    assert np.abs(logits - exact).max() < {"fp32": 1e-9, "fp16": 0.02, "int8": 0.4, "int4": 1.5}[name]
    assert len(model.generate([[5, 9, 2]], max_new_tokens=4).new_ids[0]) == 4


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "shape",
    [
        {"n_embd": 12, "n_inner": 20, "n_head": 3},  # narrower than a block
        {"n_embd": 48, "n_inner": 48, "n_head": 2},  # square; the embedding's last block is filled up
        {"n_embd": 160, "n_inner": 129, "n_head": 5, "tie_word_embeddings": False},
        {"n_embd": 64, "n_head": 4, "activation_function": "prelu", "scale_attn_by_inverse_layer_idx": True},
    ],
)
@pytest.mark.parametrize("opset", [17, 23])
def test_any_shape_converts_to_any_precision(
    save: Save, tmp_path: Path, name: str, shape: dict[str, Any], opset: int
) -> None:
    source = save(vocab_size=61, n_layer=2, initializer_range=0.02, **shape)
    convert(source, tmp_path / "out", precision=f"fp32,{name}", opset=opset)
    ids = [5, 9, 2, 60, 0]
    exact, found = (load(tmp_path / "out", precision=which).logits(ids) for which in ("fp32", name))
    error = np.sqrt(np.square(found - exact).mean()) / exact.std()
    assert error < {"fp32": 1e-9, "fp16": 5e-3, "int8": 0.05, "int4": 0.35}[name]


def test_a_browser_finds_the_weights_of_a_folder_without_float32(tmp_path: Path) -> None:
    convert(CHECKPOINT, tmp_path / "out", precision="int8")
    section = json.loads((tmp_path / "out" / "config.json").read_text())["transformers.js_config"]
    assert section == {"dtype": "int8", "use_external_data_format": {"model": 1}}


def test_a_precision_is_added_and_the_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(CHECKPOINT, out, precision="int8")
    assert not (out / "model.safetensors").exists()
    assert manifest(out)["model"] == "onnx/model_int8.onnx"
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in (out / "onnx").iterdir()}
    done = convert(CHECKPOINT, out, precision="fp32")
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before} == before
    assert {file.stat().st_nlink for file in (out / "onnx").iterdir()} == {1}  # onnx refuses hard links
    assert list(manifest(out)["precisions"]) == ["fp32", "int8"]
    assert manifest(out)["model"] == "onnx/model.onnx"
    assert json.loads((out / "genai_config.json").read_text())["model"]["decoder"]["filename"] == "onnx/model.onnx"
    assert done.bytes_written < 11_000_000
    assert load(out).logits([1, 2]).shape == (2, 2048)


def test_together_or_one_after_the_other_the_files_are_the_same(everything: Path, tmp_path: Path) -> None:
    for name in ("int4", "fp32", "int8", "fp16"):
        convert(CHECKPOINT, tmp_path / "out", precision=name)
    names = sorted(str(file.relative_to(everything)) for file in everything.rglob("*") if file.is_file())
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (everything / name).read_bytes(), name


def test_what_is_there_or_of_another_source_is_refused(save: Save, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(save(seed=1), out, precision="int8")
    add = r"add another precision to it \(--precision fp32,fp16,int4\)"
    with pytest.raises(OutputError, match=f"out exists and holds int8 already; {add}, choose another OUT, or --force"):
        convert(save(seed=1), out, precision="fp32,int8")
    with pytest.raises(OutputError, match=r"out exists and was made of another checkpoint \(source\)"):
        convert(save(seed=2), out, precision="fp32")
    assert list(manifest(out)["precisions"]) == ["int8"]
    convert(save(seed=2), out, precision="fp32", force=True)
    assert list(manifest(out)["precisions"]) == ["fp32"]


def test_a_precision_that_the_folder_lacks_is_refused_with_the_command_that_adds_it(bundled: Path) -> None:
    with pytest.raises(
        ModelFolderError, match=r"has no int8, only fp32; add it with gpt2onnx convert SOURCE .* --precision"
    ):
        load(bundled, precision="int8")
    with pytest.raises(ConfigError, match="there is no precision 'int9'; expected some of fp32"):
        load(bundled, precision="int9")


@pytest.mark.parametrize("names", ["int5", "fp32,", "", "fp32;int8"])
def test_a_precision_that_there_is_not_is_refused(names: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no precision .*; expected some of fp32, fp16, int8, int4"):
        parse(names)


def test_in_place_there_is_float32_only(save: Save) -> None:
    with pytest.raises(OutputError, match="--in-place copies no weights"):
        convert(save(), in_place=True, precision="int8")


def test_a_number_beyond_float16_is_refused_by_name(save: Save, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = save()
    state = load_file(source / "model.safetensors")
    state["transformer.h.1.mlp.c_fc.bias"][3] = 70000.0
    save_file(state, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"h\.1\.mlp\.c_fc\.bias holds 70000, which is beyond float16; choose another"
    ):
        convert(source, tmp_path / "out", precision="fp16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float16_weights_are_the_sources_rounded_to_nearest(save: Save, tmp_path: Path, dtype: torch.dtype) -> None:
    source = save(dtype=dtype)
    convert(source, tmp_path / "out", precision="fp16")
    with (
        safe_open(source / "model.safetensors", "pt") as theirs,
        safe_open(tmp_path / "out/onnx/model_fp16.onnx_data", "pt") as ours,
    ):
        for name in ours.keys():  # noqa: SIM118 - not a mapping
            expected = theirs.get_tensor(f"transformer.{name}").to(torch.float16)
            assert torch.equal(ours.get_tensor(name), expected), name


@pytest.mark.parametrize("scheme", [INT8, INT4])
@pytest.mark.parametrize("tied", [True, False])
def test_every_projection_and_the_head_are_quantized(scheme: Any, tied: bool) -> None:
    config = GPT2Config(tie_word_embeddings=tied)
    found = specs(config, scheme)
    wide = [name for name, _, shape in parameters(config) if len(shape) == 2 and name != "wpe.weight"]
    assert all(found[name].dtype == "uint8" for name in wide)
    assert len(wide) == 1 + 4 * 12 + (not tied)
    total = sum(int(np.prod(shape)) for *_, shape in parameters(config))
    share = sum(int(np.prod(shape)) for name, _, shape in parameters(config) if name in wide) / total
    assert quantized_share(config, scheme) == pytest.approx(share)
    assert share > 0.99


def test_a_fingerprint_tells_weights_apart_wherever_they_lie(save: Save, tmp_path: Path) -> None:
    from converter.folder.manifest import fingerprint

    def of(folder: Path) -> str:
        return fingerprint(account(open_checkpoint(folder)))

    first, again, other = (of(save(name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again != other
    assert of(save("sharded", seed=1, max_shard_size="3KB")) == first


def test_the_command_line_converts_and_runs_a_precision(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert CliRunner().invoke(cli, ["convert", str(CHECKPOINT), out, "--precision", "int8,int4"]).exit_code == 0
    for name, code in (("int8", 0), ("int4", 0), ("fp32", 2)):
        result = CliRunner().invoke(cli, ["generate", out, "The", "-n", "3", "--precision", name])
        assert result.exit_code == code, result.output
    refused = CliRunner().invoke(
        cli, ["convert", str(CHECKPOINT), str(tmp_path / "b"), "--to", "hf", "--precision", "int8"]
    )
    assert refused.exit_code == 2
    assert "--to hf does not use --precision" in refused.output
