"""Every precision of a folder is held against the truth, and what is wrong with one is seen."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter import check, convert
from converter.data import CHECKPOINT
from converter.parity.legs.identity import LegKind
from converter.parity.report.report import Report
from converter.parity.verdict.limits import BUDGETS
from converter.runtime import opening
from converter.runtime.ort import CPU_PROVIDER

Save = Callable[..., Path]
LOSSY = ("fp16", "int8", "int4")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint in every precision, unchecked."""
    out = tmp_path_factory.mktemp("precisions") / "out"
    convert(CHECKPOINT, out, precision="fp32,fp16,int8,int4")
    return out


@pytest.fixture(scope="module")
def report(everything: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("checked") / "out"
    shutil.copytree(everything, out, symlinks=True)
    return check(CHECKPOINT, out, level="full"), out


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``alone(name)`` is the folder with that precision alone. It is made once."""
    place = tmp_path_factory.mktemp("alone")

    def make(name: str) -> Path:
        if not (place / name).is_dir():
            convert(CHECKPOINT, place / name, precision=name)
        return place / name

    return make


@pytest.fixture
def only(alone: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """``only(name)`` is a fresh folder with that precision alone, to be spoilt."""
    return lambda name: Path(shutil.copytree(alone(name), tmp_path / name, symlinks=True))


def test_every_precision_keeps_its_budget_on_the_bundled_checkpoint(report: tuple[Report, Path]) -> None:
    found, _ = report
    assert found.passed
    legs = {leg.name: leg for leg in found.legs if leg.kind is LegKind.LOSSY}
    assert set(legs) == {
        "ONNX Runtime fp16",
        "ONNX Runtime int8",
        "ONNX Runtime int4",
        "float16, every operation rounded",
        *(
            f"ONNX Runtime {name}, {cache}"
            for name in ("int8", "int4")
            for cache in ("cache in place", "cache of 8 bits")
        ),
    }
    for leg in legs.values():
        assert leg.kl_mean <= BUDGETS[leg.budget].kl_mean
        assert leg.perplexity_ratio <= BUDGETS[leg.budget].perplexity_ratio
        assert leg.scored > (100 if leg.name.endswith("cache of 8 bits") else 500)
    assert found.verdict.endswith("float32 within rounding, fp16 and int8 and int4 within their budgets")


def test_the_quality_stands_in_manifest_and_model_card(report: tuple[Report, Path]) -> None:
    found, out = report
    legs = {name: leg for name in LOSSY for leg in found.legs if leg.name == f"ONNX Runtime {name}"}
    there = json.loads((out / "gpt2onnx.json").read_text())["precisions"]
    card = (out / "README.md").read_text()
    for name in LOSSY:
        assert there[name]["quality"]["kl_mean"] == legs[name].kl_mean
        assert there[name]["quality"]["perplexity_ratio"] == legs[name].perplexity_ratio
        [row] = [line for line in card.splitlines() if line.startswith(f"| {name} ")]
        assert f"{legs[name].perplexity_ratio:.4g}" in row


def test_a_folder_without_float32_is_checked_by_what_it_has(only: Callable[[str], Path]) -> None:
    found = check(CHECKPOINT, only("int8"))
    assert found.passed
    names = [leg.name for leg in found.legs if leg.name.startswith("ONNX")]
    runtime = ["ONNX Runtime int8", "ONNX Runtime int8, cache in place", "ONNX Runtime int8, cache of 8 bits"]
    assert names == ["ONNX int8 graph in float64", *runtime]
    assert found.verdict.endswith(": weights rounded to nearest, mathematics in float64, int8 within its budget")


def test_the_first_graph_whose_cache_can_be_in_place_is_judged_so(tmp_path: Path) -> None:
    convert(CHECKPOINT, tmp_path / "out", precision="fp16,int8")
    names = [leg.name for leg in check(CHECKPOINT, tmp_path / "out").legs if "in place" in leg.name]
    assert names == ["ONNX Runtime int8, cache in place"]


def test_cuda_graphs_are_judged_where_the_provider_captures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(opening.CAPTURING, CPU_PROVIDER, {})  # a CPU has the same operators
    convert(CHECKPOINT, tmp_path / "out", precision="fp16,int8")
    report = check(CHECKPOINT, tmp_path / "out")
    assert report.passed
    (leg,) = [leg for leg in report.legs if "CUDA graphs" in leg.name]
    assert leg.name == "ONNX Runtime fp16, CUDA graphs"


def spoil(folder: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Change a tensor of a folder's only data file in place."""
    [file] = (folder / "onnx").glob("*_data")
    with safe_open(file, "np") as opened:
        shape, dtype = opened.get_tensor(name).shape, opened.get_tensor(name).dtype
    header = json.loads(file.read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
    offset = 8 + int.from_bytes(file.read_bytes()[:8], "little") + header[name]["data_offsets"][0]
    change(np.memmap(file, dtype, mode="r+", offset=offset, shape=shape))


def one_number(values: np.ndarray) -> None:
    values.flat[7] ^= 1


def all_scales(values: np.ndarray) -> None:
    values *= 1.05


def one_scale(values: np.ndarray) -> None:
    values.flat[3] *= -1


# tensor → what is changed in it, and what is said of it
CHANGES = {
    "h.2.mlp.c_fc.weight": (
        one_number,
        r"h\.2\.mlp\.c_fc\.weight \[0, \d+\] is not the number nearest to the source's",
    ),
    "wte.weight": (one_number, r"wte\.weight \[0, \d+\] is not the number nearest"),
    "h.1.attn.c_attn.scales": (all_scales, r"h\.1\.attn\.c_attn\.weight \[\d+, \d+\] is not the number nearest"),
    "h.0.mlp.c_proj.scales": (one_scale, r"h\.0\.mlp\.c_proj\.weight \[\d+, \d+\] is not the number nearest"),
}


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_every_changed_number_or_scale_is_found(only: Callable[[str], Path], name: str) -> None:
    folder = only(name)
    for tensor, (change, _) in CHANGES.items():
        spoil(folder, tensor, change)
    found = check(CHECKPOINT, folder)
    assert not found.passed
    for _, said in CHANGES.values():
        assert any(re.search(said, fault) for fault in found.exactness_faults)


def test_wrong_scales_are_seen_by_the_logits_alone(only: Callable[[str], Path]) -> None:
    folder = only("int8")
    for i in range(5):
        spoil(folder, f"h.{i}.mlp.c_proj.scales", lambda values: values.__imul__(1.2))
    found = check(CHECKPOINT, folder, files=False)
    assert not found.passed
    assert "int8.kl_mean" in found.faults[0]


def test_a_half_that_is_not_the_sources_is_found(only: Callable[[str], Path]) -> None:
    folder = only("fp16")
    spoil(folder, "h.3.attn.c_proj.weight", lambda values: values.__setitem__((1, 2), 0.5))
    found = check(CHECKPOINT, folder)
    assert any("model_fp16.onnx: h.3.attn.c_proj.weight is 0.5 at [1, 2]" in fault for fault in found.exactness_faults)


def test_a_budget_can_be_set(everything: Path) -> None:
    found = check(CHECKPOINT, everything, certify=False, limits={"int8.kl_mean": 1e-6})
    faulty = [leg.name for leg in found.legs if leg.fault]
    assert faulty == ["ONNX Runtime int8", "ONNX Runtime int8, cache in place", "ONNX Runtime int8, cache of 8 bits"]
    assert found.limits["int8.kl_mean"] == 1e-6


def overflowing(source: Path) -> Path:
    """A model whose logits float32 gives without a word, and in which a float16 GPU would overflow."""
    state = load_file(source / "model.safetensors")
    state["transformer.h.1.mlp.c_fc.bias"][2] = 3e4
    state["transformer.h.1.mlp.c_proj.weight"][2] = 4.0
    save_file(state, source / "model.safetensors", {"format": "pt"})
    return source


def test_what_overflows_in_half_precision_is_named_although_the_cpu_hides_it(save: Save, tmp_path: Path) -> None:
    source = overflowing(save())
    convert(source, tmp_path / "out", precision="fp32,fp16")
    found = check(source, tmp_path / "out")
    assert not found.passed
    faults: dict[str, Any] = {leg.name: leg.fault for leg in found.legs if leg.fault}
    assert "the model overflows float16" in faults["float16, every operation rounded"]
    assert any(note.startswith("float16 overflows at h.1.mlp.c_proj: it reaches 1.2e+05") for note in found.notes)
