"""The model folder: whole or absent, the same every time, and open to others."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter.checkpoint.open import open_checkpoint
from converter.folder.convert import convert
from converter.folder.staging import settle
from converter.runtime.opening import load
from converter.weights import data_file
from reference.errors import GPT2Error

Save = Callable[..., Path]


def digest(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_two_conversions_of_one_source_are_byte_identical(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "a")
    time.sleep(0.01)
    convert(source, tmp_path / "elsewhere" / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "elsewhere" / "b")
    assert len(digest(tmp_path / "a")) >= 7


def test_the_same_weights_give_the_same_files_whatever_held_them(save: Save, tmp_path: Path) -> None:
    convert(save("one"), tmp_path / "a")
    convert(save("shards", max_shard_size="10KB"), tmp_path / "b")
    pickled = save("pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    convert(pickled, tmp_path / "c")
    graphs = [(tmp_path / out / "onnx" / "model.onnx_data").read_bytes() for out in "abc"]
    tensors = [load_file(tmp_path / out / "onnx" / "model.onnx_data") for out in "abc"]
    assert len({len(g) % 8 for g in graphs}) == 1
    for other in tensors[1:]:
        assert all(torch.equal(tensors[0][name], other[name]) for name in tensors[0])
        assert tensors[0].keys() == other.keys()


def test_the_data_file_is_a_safetensors_file_of_canonical_names(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")
    with safe_open(tmp_path / "out" / "onnx" / "model.onnx_data", framework="pt") as data:
        assert data.metadata() == {"format": "pt"}
        ours = {name: data.get_tensor(name) for name in data.keys()}  # noqa: SIM118 - not a mapping
    theirs = load_file(source / "model.safetensors")
    assert ours.keys() == {name.removeprefix("transformer.") for name in theirs}
    assert all(torch.equal(ours[name.removeprefix("transformer.")], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrower_weights_are_widened_exactly(save: Save, tmp_path: Path, dtype: torch.dtype) -> None:
    source = save(dtype=dtype)
    convert(source, tmp_path / "out")
    ours = load_file(tmp_path / "out" / "onnx" / "model.onnx_data")
    for name, tensor in load_file(source / "model.safetensors").items():
        assert tensor.dtype == dtype
        assert torch.equal(ours[name.removeprefix("transformer.")], tensor.float())


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}], ids=["tied", "untied"])
def test_transformers_opens_the_folder_and_finds_every_weight(
    save: Save, tmp_path: Path, config: dict[str, bool]
) -> None:
    source = save(**config)
    convert(source, tmp_path / "out")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(source)
    ours, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_transformers_opens_a_folder_of_float16_alone(save: Save, tmp_path: Path) -> None:
    source = save(dtype=torch.float16)
    convert(source, tmp_path / "out", precision="fp16")
    ours, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    for name, tensor in transformers.GPT2LMHeadModel.from_pretrained(source).state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor.to(ours.dtype)), name


def test_a_quantized_folder_has_nothing_that_transformers_would_misread(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out", precision="int8")
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()


def test_what_clients_want_is_in_the_folder(bundled: Path) -> None:
    config = json.loads((bundled / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "fp32", "use_external_data_format": {"model": 1}}
    assert config["dtype"] == "float32"
    assert json.loads((bundled / "tokenizer_config.json").read_text())["padding_side"] == "left"
    genai = json.loads((bundled / "genai_config.json").read_text())
    assert genai["model"]["type"] == "decoder"
    assert (bundled / genai["model"]["decoder"]["filename"]).is_file()
    assert genai["search"]["past_present_share_buffer"] is False
    data = bundled / "onnx" / "model.onnx_data"
    assert not data.is_symlink()
    assert data.stat().st_nlink == 1
    assert (bundled / "model.safetensors").readlink() == Path("onnx/model.onnx_data")


def test_files_are_readable_as_the_umask_says(save: Save, tmp_path: Path) -> None:
    source = save()
    (source / "model.safetensors").chmod(0o600)
    before = os.umask(0o022)
    try:
        convert(source, tmp_path / "out")
    finally:
        os.umask(before)
    for path in (tmp_path / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


def test_the_manifest_accounts_for_every_tensor_of_the_source(save: Save, tmp_path: Path) -> None:
    source = save()
    weights = load_file(source / "model.safetensors")
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24)
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    weights["v_head.summary.weight"] = torch.ones(1, 12)
    save_file(weights, source / "model.safetensors")
    convert(source, tmp_path / "out", ignore=["v_head.*"])
    manifest = json.loads((tmp_path / "out" / "gpt2onnx.json").read_text())
    roles = {row["source"]: row["role"] for row in manifest["ledger"]}
    assert roles.keys() == weights.keys()
    assert roles["transformer.h.0.attn.bias"] == "buffer"
    assert roles["lm_head.weight"] == "tied"
    assert roles["v_head.summary.weight"] == "ignored"
    assert (tmp_path / "out" / "onnx" / "model.onnx_data").stat().st_size < (
        source / "model.safetensors"
    ).stat().st_size


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_that_is_not_finite_is_named_with_its_place(
    save: Save, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    source = save(dtype=dtype)
    weights = load_file(source / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][3, 11] = value
    save_file(weights, source / "model.safetensors")
    with pytest.raises(GPT2Error, match=rf"h\.1\.mlp\.c_fc\.weight holds {value} at \[3, 11\]"):
        convert(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]
    convert(source, tmp_path / "out", scan=False)


def test_nan_beyond_the_first_chunk_is_found(tmp_path: Path) -> None:
    weights = torch.zeros(3, 50_000)
    weights[2, 49_999] = float("nan")
    save_file({"w": weights}, tmp_path / "w.safetensors")
    from converter.checkpoint import safetensors_file

    with pytest.raises(GPT2Error, match=r"\[2, 49999\]"):
        data_file.refuse_nonfinite(safetensors_file.read(tmp_path / "w.safetensors")["w"])


def test_an_existing_folder_is_left_alone(save: Save, tmp_path: Path) -> None:
    source, out = save(), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(GPT2Error, match="exists"):
            convert(source, out, force=force)
    assert digest(out) == {"thesis.txt": hashlib.sha256(b"mine").hexdigest()}


def test_force_replaces_what_gpt2onnx_wrote(save: Save, tmp_path: Path) -> None:
    convert(save("one"), tmp_path / "out")
    other = save("two", seed=1)
    with pytest.raises(GPT2Error, match="--force"):
        convert(other, tmp_path / "out")
    convert(other, tmp_path / "out", force=True)
    convert(other, tmp_path / "fresh")
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")
    assert sorted(os.listdir(tmp_path)) == ["fresh", "one", "out", "two"]


def test_force_never_replaces_a_file_that_gpt2onnx_did_not_write(save: Save, tmp_path: Path) -> None:
    original = save("original")
    convert(original, in_place=True)
    before = digest(original)
    with pytest.raises(GPT2Error, match=r"holds config\.json, which gpt2onnx did not write"):
        convert(save("other"), original, force=True)
    assert digest(original) == before
    convert(original, tmp_path / "out")
    (tmp_path / "out" / "onnx" / "notes.txt").write_text("mine")
    with pytest.raises(GPT2Error, match=r"holds onnx/notes\.txt"):
        convert(original, tmp_path / "out", force=True)


@pytest.mark.parametrize("name", ["a**b", "x[1]", "-", " "])
def test_any_name_is_a_folders_name(save: Save, tmp_path: Path, name: str) -> None:
    convert(save(), tmp_path / name)
    assert (tmp_path / name / "gpt2onnx.json").is_file()


def test_a_failed_replacement_leaves_the_old_folder(save: Save, tmp_path: Path) -> None:
    convert(save("one"), tmp_path / "out")
    before = digest(tmp_path / "out")
    broken = save("two")
    weights = load_file(broken / "model.safetensors")
    weights["transformer.ln_f.bias"][5] = float("nan")
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(GPT2Error, match="ln_f"):
        convert(broken, tmp_path / "out", force=True)
    assert digest(tmp_path / "out") == before
    assert sorted(os.listdir(tmp_path)) == ["one", "out", "two"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_source_that_cannot_be_read_is_named(save: Save, tmp_path: Path) -> None:
    source = save()
    (source / "model.safetensors").chmod(0)
    with pytest.raises(GPT2Error, match=r"model\.safetensors cannot be read: Permission denied"):
        convert(source, tmp_path / "out")


def test_a_full_disk_leaves_nothing_behind(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = save()
    monkeypatch.setattr(data_file, "copy", full)
    with pytest.raises(GPT2Error, match=r"out was not written: No space left on device; make room, or choose an OUT"):
        convert(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


SLOW_CONVERSION = """
import sys, time
from pathlib import Path
from converter.folder.convert import convert
from converter.weights import data_file
def slow(*args):
    print("copying", flush=True)
    time.sleep(60)
data_file.copy = slow
convert(sys.argv[1], sys.argv[2])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_conversion_leaves_no_folder_and_the_next_one_tidies_up(save: Save, tmp_path: Path) -> None:
    source, out = save(), tmp_path / "out"
    command = [sys.executable, "-c", SLOW_CONVERSION, str(source), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "copying\n"
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert len(os.listdir(tmp_path)) == 2  # the source, and what the killed process had begun
    convert(source, out)
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


def test_a_folder_put_aside_by_a_killed_replacement_comes_back(save: Save, tmp_path: Path) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out)
    before = digest(out)
    out.rename(tmp_path / ".out.gpt2onnx-old")
    with pytest.raises(GPT2Error, match="exists"):
        convert(source, out)
    assert digest(out) == before


def test_where_folders_cannot_be_swapped_in_one_call_two_renames_do(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out)
    monkeypatch.setattr("converter.folder.staging.exchange", lambda one, other: False)
    convert(source, out, opset=17, force=True)
    assert json.loads((out / "gpt2onnx.json").read_text())["opset"] == 17
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


@pytest.mark.parametrize("leftover", [".gpt2onnx-999999999-dead", ".gpt2onnx-new"])
def test_what_a_killed_check_leaves_does_not_block_a_replacement(save: Save, tmp_path: Path, leftover: str) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out)
    (out / leftover).mkdir()
    (out / leftover / "README.md").write_text("new")
    convert(source, out, precision="int8")
    assert (out / "onnx" / "model.onnx").is_file()  # the precision that was there stays
    assert not (out / leftover).exists()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="links")
def test_nothing_is_moved_out_of_a_folder_or_through_a_link(save: Save, tmp_path: Path) -> None:
    """A folder of somebody else may hold what looks like our own unfinished work."""
    out = tmp_path / "out"
    convert(save(), out)
    before = digest(out)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("new")
    (out / ".gpt2onnx-new").symlink_to(tmp_path / "elsewhere")
    (out / ".gpt2onnx-999999999-dead").symlink_to(tmp_path / "elsewhere")
    settle(out)
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["config.json"]
    for link in out.glob(".gpt2onnx-*"):
        link.unlink()
    assert digest(out) == before


def test_a_conversion_under_way_is_not_taken_for_a_leftover(save: Save, tmp_path: Path) -> None:
    from converter.folder.staging import staged

    with staged(tmp_path / "out") as stage:
        (stage / "half").touch()
        convert(save(), tmp_path / "out")
        assert (stage / "half").exists()
        (tmp_path / "out").rename(tmp_path / "done")
    assert os.listdir(tmp_path / "out") == ["half"]


def test_of_two_conversions_at_a_time_the_slower_one_gives_way(save: Save, tmp_path: Path) -> None:
    from converter.folder.staging import staged

    with pytest.raises(GPT2Error, match="which was quicker"), staged(tmp_path / "out"):
        convert(save(), tmp_path / "out")
    assert (tmp_path / "out" / "gpt2onnx.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


# --- in place ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "10KB"}], ids=["single", "sharded"])
def test_in_place_adds_a_graph_that_points_into_the_source(save: Save, tmp_path: Path, options: dict[str, str]) -> None:
    source = save(**options)
    before = digest(source)
    done = convert(source, in_place=True)
    after = digest(source)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"model.onnx", "gpt2onnx.json", "genai_config.json", "README.md"}
    assert done.bytes_written < 60_000
    convert(source, tmp_path / "out")
    ids = np.arange(10)
    np.testing.assert_array_equal(load(source).logits(ids), load(tmp_path / "out").logits(ids))


def test_in_place_again_needs_force_and_spares_the_users_files(save: Save) -> None:
    source = save()
    (source / "README.md").write_text("my model")
    convert(source, in_place=True)
    with pytest.raises(GPT2Error, match="--force"):
        convert(source, in_place=True)
    convert(source, in_place=True, force=True, opset=17)
    assert (source / "README.md").read_text() == "my model"


def test_in_place_again_brings_every_file_of_ours_up_to_date(save: Save) -> None:
    source = save()
    convert(source, in_place=True)
    (source / ".gpt2onnx-999999999-dead").mkdir()  # left by a process that was killed
    convert(source, in_place=True, force=True, opset=17)
    assert "opset 17" in (source / "README.md").read_text()
    assert not list(source.glob(".gpt2onnx-*"))


def test_in_place_does_not_replace_a_graph_of_somebody_else(save: Save) -> None:
    source = save()
    (source / "model.onnx").write_text("not ours")
    for force in (False, True):
        with pytest.raises(GPT2Error, match=r"model\.onnx exists"):
            convert(source, in_place=True, force=force)


def test_in_place_refuses_what_the_graph_cannot_point_at(save: Save, tmp_path: Path) -> None:
    half = save("half", dtype=torch.float16)
    pickled = save("pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    symlinked, hardlinked = save("symlinked"), save("hardlinked")
    (symlinked / "model.safetensors").rename(tmp_path / "blob")
    (symlinked / "model.safetensors").symlink_to(tmp_path / "blob")
    (tmp_path / "second").hardlink_to(hardlinked / "model.safetensors")
    for source, reason in (
        (half, "is float16"),
        (pickled, "needs safetensors"),
        (symlinked, "a symbolic link"),
        (hardlinked, "a hard link"),
    ):
        before = sorted(os.listdir(source))
        with pytest.raises(GPT2Error, match=reason):
            convert(source, in_place=True)
        assert sorted(os.listdir(source)) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_in_place_needs_a_writable_source(save: Save) -> None:
    source = save()
    source.chmod(0o555)
    with pytest.raises(GPT2Error, match="cannot be written to"):
        convert(source, in_place=True)
    source.chmod(0o755)


def test_in_place_says_what_the_system_said_when_it_cannot_write(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    source = save()
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(GPT2Error, match=r"source cannot be written to: Read-only file system .*give|OUT"):
        convert(source, in_place=True)


@pytest.mark.parametrize("opset", [16, 99])
def test_an_opset_out_of_range_is_refused(save: Save, tmp_path: Path, opset: int) -> None:
    with pytest.raises(GPT2Error, match=f"opset is {opset}; expected 17 to"):
        convert(save(), tmp_path / "out", opset=opset)


# --- the data file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [True, False], ids=["in the kernel", "through this process"])
def test_bytes_arrive_whatever_their_place_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool
) -> None:
    monkeypatch.setattr(data_file, "COPY_BYTES", 10_000)
    monkeypatch.setattr(data_file, "READ_BYTES", 3_000)
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    content = np.random.default_rng(0).bytes(50_000)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    places = ((0, 0, 50_000), (5, 7, 41_111), (4096, 8192, 20_000), (100, 4196, 37_777), (9, 9, 3))
    for start, position, length in places:
        moved: list[int] = []
        with source.open("rb", buffering=0) as reading, target.open("wb", buffering=0) as writing:
            writing.write(b"-" * position)
            data_file.copy(reading, writing, start, length, moved.append)
        assert target.read_bytes() == b"-" * position + content[start : start + length]
        assert sum(moved) == length


def test_a_source_that_shrinks_while_it_is_copied_is_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"short")
    with source.open("rb", buffering=0) as reading, target.open("wb", buffering=0) as writing:
        with pytest.raises(GPT2Error, match="ends too early"):
            data_file.copy(reading, writing, 0, 100, lambda count: None)


def test_weights_keep_their_place_within_a_block_so_that_blocks_can_be_shared(save: Save) -> None:
    weights = {name.removeprefix("transformer."): t for name, t in open_checkpoint(save()).tensors.items()}
    layout = data_file.plan(weights)
    for name, (offset, _) in layout.places.items():
        assert (offset - weights[name].offset) % data_file.BLOCK_BYTES == 0, name
    assert len(layout.header) % data_file.HEADER_ALIGNMENT == 0


@pytest.mark.parametrize("options", [{}, {"in_place": True}], ids=["out", "in place"])
def test_what_a_graph_returns_too_is_in_the_manifest_and_on_the_card(
    save: Save, tmp_path: Path, options: dict[str, bool]
) -> None:
    source = save()
    folder = convert(source, None if options else tmp_path / "out", outputs="attentions,h.*.mlp.act", **options).out
    facts = json.loads((folder / "gpt2onnx.json").read_text())["precisions"]["fp32"]
    assert facts["outputs"] == ["attentions", "h.*.mlp.act"]
    graph = onnx.load(folder / facts["model"], load_external_data=False).graph
    inside = [value.name for value in graph.output if value.name.startswith(("attentions", "h."))]
    assert inside == [*(f"attentions.{i}" for i in range(3)), *(f"h.{i}.mlp.act" for i in range(3))]
    assert "The fp32 graph also returns `attentions`, `h.*.mlp.act`." in (folder / "README.md").read_text()


def test_each_precision_has_outputs_of_its_own(save: Save, tmp_path: Path) -> None:
    source, out = save(), tmp_path / "out"
    convert(source, out, outputs="attentions")
    convert(source, out, precision="int8")
    there = json.loads((out / "gpt2onnx.json").read_text())["precisions"]
    assert there["fp32"]["outputs"] == ["attentions"]
    assert "outputs" not in there["int8"]
    convert(source, out, outputs="ln_f", force=True)
    assert json.loads((out / "gpt2onnx.json").read_text())["precisions"]["fp32"]["outputs"] == ["ln_f"]


def test_outputs_of_a_model_of_two_heads_are_those_that_each_graph_has(save: Save, tmp_path: Path) -> None:
    convert(save(head="double-heads"), tmp_path / "out", outputs=["pool", "ln_f"])
    for file, expected in (("model", {"ln_f"}), ("model_multiple_choice", {"pool", "ln_f"})):
        graph = onnx.load(tmp_path / "out" / "onnx" / f"{file}.onnx", load_external_data=False).graph
        assert {value.name for value in graph.output} & {"pool", "ln_f"} == expected


def test_an_output_that_the_model_does_not_have_is_refused_before_anything_is_written(
    save: Save, tmp_path: Path
) -> None:
    with pytest.raises(GPT2Error, match="nothing in this model is called 'mlp'; there are hidden_states, attentions"):
        convert(save(), tmp_path / "out", outputs="mlp")
    assert not (tmp_path / "out").exists()
