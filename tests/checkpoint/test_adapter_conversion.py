"""A conversion with an adapter computes the merged model, says what it was merged from, and takes little memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.numpy import save_file

import converter
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Checkpoint
from converter.checkpoint.tensor import Computed
from converter.cli import cli
from converter.errors import OutputError
from tests.checkpoint.adapters import assert_logits, merged, save_base
from tests.checkpoint.writers.lora import MODULES, pairs, write


def test_a_conversion_says_what_it_was_merged_from_and_computes_it(tmp_path: Path, base: Path) -> None:
    tensors = pairs(MODULES)
    adapter = write(tmp_path / "adapter", tensors)
    model = transformers.GPT2LMHeadModel.from_pretrained(base).eval()
    state = {f"transformer.{n}": torch.tensor(a).float() for n, a in merged(base, adapter).items()}
    model.load_state_dict(state | {"lm_head.weight": state["transformer.wte.weight"]})
    assert_logits(base, tmp_path, model)
    manifest = json.loads((tmp_path / "out" / "gpt2onnx.json").read_text(encoding="utf-8"))
    del manifest["source"]["fingerprint"]
    assert manifest["source"] == {"name": "base", "weight_file": "model.safetensors", "adapter": "adapter"}


def test_the_command_line_converts_checks_and_inspects_with_an_adapter(tmp_path: Path, base: Path) -> None:
    adapter = str(write(tmp_path / "adapter", pairs(MODULES)))
    out = str(tmp_path / "out")
    done = CliRunner().invoke(cli, ["convert", str(base), out, "--adapter", adapter, "--check", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)["check"]
    assert any("the adapter adapter was merged into base" in note for note in report["notes"])
    assert any("transformers does not read merged Hugging Face checkpoints" in note for note in report["notes"])
    without = CliRunner().invoke(cli, ["check", str(base), out, "--json"])
    assert without.exit_code == 1
    shown = CliRunner().invoke(cli, ["inspect", str(base), "--adapter", adapter, "--json"])
    assert shown.exit_code == 0, shown.output


def test_an_adapter_cannot_be_merged_in_place(tmp_path: Path, base: Path) -> None:
    with pytest.raises(OutputError, match="a merged adapter changes them: give an OUT"):
        converter.convert(base, in_place=True, adapter=write(tmp_path / "adapter", pairs(MODULES)))


def test_the_certificate_names_the_adapter_s_files(tmp_path: Path, base: Path) -> None:
    adapter = write(tmp_path / "adapter", pairs(MODULES))
    read = open_checkpoint(base, SourceOptions(adapter=adapter)).described_by
    assert {file.name for file in read} == {"config.json", "adapter_config.json", "adapter_model.safetensors"}


def test_merging_reads_nothing_and_computes_a_block_of_rows_at_a_time(tmp_path: Path) -> None:
    rows, columns = 4096, 3072  # 48 MiB as float32
    base = save_base(tmp_path / "base", n_layer=1, n_inner=8)
    found = open_checkpoint(base)
    values = np.ones((rows, columns), np.float32)
    name = "transformer.h.0.attn.c_attn"
    save_file({f"{name}.weight": values}, tmp_path / "large.safetensors")
    from converter.checkpoint.adapter import merge
    from converter.checkpoint.safetensors_file import read

    large = Checkpoint(**{**vars(found), "tensors": read(tmp_path / "large.safetensors")})
    adapter = write(tmp_path / "adapter", {
        f"base_model.model.{name}.lora_A.weight": np.ones((3, rows), np.float32),
        f"base_model.model.{name}.lora_B.weight": np.ones((columns, 3), np.float32),
        f"base_model.model.{name}.lora_magnitude_vector": np.ones(columns, np.float32),
    }, use_dora=True, target_modules=["c_attn"])  # fmt: skip
    tracemalloc.start()
    tensor = merge(large, adapter, "adapter").tensors[f"{name}.weight"]
    assert isinstance(tensor, Computed)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    assert sum(len(chunk) for chunk in tensor.chunks()) == rows * columns
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20  # a few blocks in float64, and not the 96 MiB of the whole beside its sum
    assert np.linalg.norm(tensor.memmap()[:, 0]) == pytest.approx(1)
