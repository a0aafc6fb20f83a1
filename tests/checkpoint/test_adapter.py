"""A merged adapter is what numpy computes of its files and what PEFT merges; whatever cannot be merged is refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import converter
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Checkpoint
from converter.checkpoint.tensor import Computed
from converter.cli import cli
from converter.errors import CheckpointError, GPT2Error, OutputError
from converter.weights.ledger import account
from tests.checkpoint.writers.lora import MODULES, OUTER, Tensors, pairs, write

SIZES = {"vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 72}


def save_base(folder: Path, **config: Any) -> Path:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES | config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


def merged(base: Path, adapter: Path) -> Tensors:
    """Every weight of the merged checkpoint, as it is written."""
    ledger = account(open_checkpoint(base, SourceOptions(adapter=adapter)))
    found = {}
    for name, tensor in ledger.weights.items():
        found[name] = np.concatenate(list(tensor.chunks())).reshape(tensor.shape)
        assert found[name].tobytes() == tensor.memmap().tobytes(), name
    return found


def weights_of(base: Path) -> Tensors:
    found = load_file(base / "model.safetensors")
    return {name.removeprefix("transformer."): array.astype(np.float64) for name, array in found.items()}


def expected_of(base: Path, tensors: Tensors, scale: Callable[[str], float]) -> Tensors:
    """Plain LoRA in plain numpy: W + s · (B A)ᵀ for Conv1D."""
    expected = weights_of(base)
    for name, a in tensors.items():
        if not name.endswith("lora_A.weight"):
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = tensors[name.replace("lora_A", "lora_B")]
        delta = scale(module) * (b.astype(np.float64) @ a.astype(np.float64))
        expected[f"{module.removeprefix('transformer.')}.weight"] += delta.T
    return expected


def assert_rounded(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array.astype(np.float32), err_msg=name)


def assert_close(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=0, atol=4e-6 * scale, err_msg=name)


# --- against numpy


@pytest.mark.parametrize(
    ("config", "ranks", "scale"),
    [
        ({}, {}, lambda m: 7 / 3),
        ({"fan_in_fan_out": False}, {}, lambda m: 7 / 3),  # PEFT knows better: a Conv1D is one
        ({"use_rslora": True}, {}, lambda m: 7 / 3**0.5),
        ({"alpha_pattern": {"c_attn": 5, "h.1.attn.c_attn": 99}}, {}, lambda m: (5 if "c_attn" in m else 7) / 3),
        ({"alpha_pattern": {"h.1.attn.c_attn": 9, "c_attn": 5}}, {},
         lambda m: (9 if "h.1.attn.c_attn" in m else 5 if "c_attn" in m else 7) / 3),
        ({"rank_pattern": {r"h\.[12]\.attn\.c_attn": 2}}, dict.fromkeys((MODULES[2], MODULES[4]), 2),
         lambda m: 7 / (2 if m in (MODULES[2], MODULES[4]) else 3)),
        ({"rank_pattern": {"^transformer.h.0.mlp.c_proj": 5}, "use_rslora": True}, {MODULES[1]: 5},
         lambda m: 7 / (5 if m == MODULES[1] else 3) ** 0.5),
        ({"rank_pattern": {"attn": 2, "proj": 4}}, {}, lambda m: 7 / 3),  # no whole part of a name: they fit nothing
        ({"lora_alpha": 0}, {}, lambda m: 0),
        ({"target_modules": r".*\.(c_attn|mlp\.c_proj)"}, {}, lambda m: 7 / 3),
        ({"target_modules": MODULES}, {}, lambda m: 7 / 3),
        ({"target_modules": ["c_attn", "c_proj"], "exclude_modules": ["attn.c_proj"]}, {}, lambda m: 7 / 3),
    ],
)  # fmt: skip
def test_an_adapter_is_added_as_its_config_says(
    tmp_path: Path, base: Path, config: dict[str, Any], ranks: dict[str, int], scale: Callable[[str], float]
) -> None:
    tensors = pairs(MODULES, ranks=ranks)
    adapter = write(tmp_path / "adapter", tensors, **config)
    assert_rounded(merged(base, adapter), expected_of(base, tensors, scale))


@pytest.mark.parametrize(
    ("config", "modules"),
    [
        ({"target_modules": ["c_attn"], "layers_to_transform": [0, 2]}, [MODULES[0], MODULES[4]]),
        ({"target_modules": ["c_attn"], "layers_to_transform": 1, "layers_pattern": "h"}, [MODULES[2]]),
        ({"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": ["layer", "h"]}, [MODULES[2]]),
        ({"target_modules": None}, [m for m in MODULES if m.endswith("c_attn")]),
        ({"target_modules": "all-linear"}, [f"transformer.h.{i}.{name}" for i in range(3) for name in OUTER]),
    ],
)
def test_only_the_modules_that_are_targeted_are_expected(
    tmp_path: Path, base: Path, config: dict[str, Any], modules: list[str]
) -> None:
    tensors = pairs(modules)
    found = merged(base, write(tmp_path / "adapter", tensors, **config))
    assert_rounded(found, expected_of(base, tensors, lambda m: 7 / 3))


def test_defaults_are_peft_s_own(tmp_path: Path, base: Path) -> None:
    tensors = pairs([m for m in MODULES if m.endswith("c_attn")], rank=8)
    adapter = write(tmp_path / "adapter", tensors, without=("r", "lora_alpha", "target_modules"))
    assert_rounded(merged(base, adapter), expected_of(base, tensors, lambda m: 1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_narrow_adapter_and_one_saved_by_torch_are_read(tmp_path: Path, base: Path, dtype: Any) -> None:
    tensors = {name: array.astype(dtype) for name, array in pairs(MODULES).items()}
    adapter = write(tmp_path / "adapter", {})
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({name: torch.tensor(array) for name, array in tensors.items()}, adapter / "adapter_model.bin")
    assert_rounded(merged(base, adapter), expected_of(base, tensors, lambda m: 7 / 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_narrow_base_of_any_layout_in_its_file_is_widened(tmp_path: Path, base: Path, dtype: torch.dtype) -> None:
    state = transformers.GPT2LMHeadModel.from_pretrained(base).to(dtype).transformer.state_dict()
    (base / "model.safetensors").unlink()
    turned = {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in state.items()}
    torch.save(turned, base / "pytorch_model.bin")
    tensors = pairs(MODULES)
    expected = {name: tensor.double().numpy() for name, tensor in state.items()}
    for module in MODULES:
        a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
        expected[f"{module.removeprefix('transformer.')}.weight"] += 7 / 3 * (b @ a).T
    ledger = account(open_checkpoint(base, SourceOptions(adapter=write(tmp_path / "adapter", tensors))))
    for module in MODULES:
        name = f"{module.removeprefix('transformer.')}.weight"
        np.testing.assert_array_equal(ledger.weights[name].memmap(), expected[name].astype(np.float32))
    assert ledger.weights["ln_f.bias"].dtype == str(dtype).removeprefix("torch.")


def test_dora_gives_every_output_the_length_it_learned(tmp_path: Path, base: Path) -> None:
    tensors = pairs(MODULES)
    expected = expected_of(base, tensors, lambda m: 7 / 3)
    for module in MODULES:
        lengths = np.random.default_rng(1).uniform(1, 2, OUTER[module.split(".", 3)[3]][1]).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_magnitude_vector"] = lengths
        weight = expected[f"{module.removeprefix('transformer.')}.weight"]
        weight *= lengths.astype(np.float64) / np.linalg.norm(weight, axis=0)
    assert_close(merged(base, write(tmp_path / "adapter", tensors, use_dora=True)), expected)


def test_biases_are_shifted_or_replaced(tmp_path: Path, base: Path) -> None:
    tensors = pairs(MODULES)
    expected = expected_of(base, tensors, lambda m: 7 / 3)
    for module in MODULES:
        shift = np.random.default_rng(1).standard_normal(OUTER[module.split(".", 3)[3]][1]).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.bias"] = shift
        expected[f"{module.removeprefix('transformer.')}.bias"] += 7 / 3 * shift.astype(np.float64)
    tensors["base_model.model.transformer.ln_f.bias"] = expected["ln_f.bias"] = np.arange(32, dtype=np.float32)
    assert_rounded(merged(base, write(tmp_path / "adapter", tensors, lora_bias=True, bias="all")), expected)


def test_modules_to_save_stand_in_the_base_s_stead(tmp_path: Path, base: Path) -> None:
    tensors = pairs(MODULES)
    expected = expected_of(base, tensors, lambda m: 7 / 3)
    for name, shape in {"ln_f.weight": (32,), "ln_f.bias": (32,), "h.1.mlp.c_fc.weight": (32, 72)}.items():
        expected[name] = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
        tensors[f"base_model.model.transformer.{name}"] = expected[name]
    adapter = write(tmp_path / "adapter", tensors, modules_to_save=["ln_f", "1.mlp.c_fc"])
    assert_rounded(merged(base, adapter), expected)


def test_a_head_that_was_trained_as_a_whole_is_no_longer_the_embedding(tmp_path: Path, base: Path) -> None:
    head = np.random.default_rng(2).standard_normal((61, 32)).astype(np.float32)
    tensors = pairs(MODULES) | {"base_model.model.lm_head.weight": head}
    adapter = write(tmp_path / "adapter", tensors, modules_to_save=["lm_head"])
    expected = expected_of(base, tensors, lambda m: 7 / 3) | {"lm_head.weight": head}
    assert_rounded(merged(base, adapter), expected)
    found = open_checkpoint(base, SourceOptions(adapter=adapter))
    assert not found.config.tie_word_embeddings
    assert not account(found).warnings


def test_an_embedding_that_was_trained_as_a_whole_leaves_the_head_as_it_was(tmp_path: Path, base: Path) -> None:
    table = np.random.default_rng(2).standard_normal((61, 32)).astype(np.float32)
    tensors = pairs(MODULES) | {"base_model.model.transformer.wte.weight": table}
    adapter = write(tmp_path / "adapter", tensors, modules_to_save=["wte"])
    expected = expected_of(base, tensors, lambda m: 7 / 3)
    assert_rounded(merged(base, adapter), expected | {"lm_head.weight": expected["wte.weight"], "wte.weight": table})


def test_embeddings_that_were_saved_beside_the_adapter_are_still_one(tmp_path: Path, base: Path) -> None:
    table = np.random.default_rng(2).standard_normal((61, 32)).astype(np.float32)
    both = {f"base_model.model.{name}.weight": table for name in ("transformer.wte", "lm_head")}
    found = merged(base, write(tmp_path / "adapter", pairs(MODULES) | both))
    assert "lm_head.weight" not in found
    assert found["wte.weight"].tobytes() == table.tobytes()


def embedding_tensors(names: tuple[str, ...]) -> Tensors:
    random = np.random.default_rng(5)
    sizes = {"wte": 61, "wpe": 24}
    tensors = {}
    for name in names:
        tensors[f"base_model.model.transformer.{name}.lora_embedding_A"] = random.standard_normal(
            (3, sizes[name]), np.float32
        )
        tensors[f"base_model.model.transformer.{name}.lora_embedding_B"] = random.standard_normal((32, 3), np.float32)
    return tensors


def test_embeddings_and_an_untied_head_have_layouts_of_their_own(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=False)
    tensors = embedding_tensors(("wte", "wpe"))
    tensors["base_model.model.lm_head.lora_A.weight"] = np.random.default_rng(3).standard_normal((3, 32), np.float32)
    tensors["base_model.model.lm_head.lora_B.weight"] = np.random.default_rng(4).standard_normal((61, 3), np.float32)
    expected = weights_of(base)
    wide = {name.removeprefix("base_model.model."): array.astype(np.float64) for name, array in tensors.items()}
    for name in ("wte", "wpe"):
        product = wide[f"transformer.{name}.lora_embedding_B"] @ wide[f"transformer.{name}.lora_embedding_A"]
        expected[f"{name}.weight"] += 7 / 3 * product.T
    expected["lm_head.weight"] += 7 / 3 * (wide["lm_head.lora_B.weight"] @ wide["lm_head.lora_A.weight"])
    adapter = write(tmp_path / "adapter", tensors, target_modules=["wte", "wpe", "lm_head"])
    assert_rounded(merged(base, adapter), expected)


# --- against PEFT

PEFT_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "every projection, rslora": ({"target_modules": ["c_attn", "c_proj", "c_fc"], "use_rslora": True}, {}),
    "all-linear": ({"target_modules": "all-linear"}, {}),
    "patterns": (
        {"target_modules": ["c_attn", "c_proj"], "rank_pattern": {"attn.c_proj": 5, r"h\.0\.attn\.c_proj": 2},
         "alpha_pattern": {r"h\.[01]\.mlp\.c_proj": 11}},
        {},
    ),
    "dora": ({"target_modules": ["c_attn", "c_fc"], "use_dora": True}, {}),
    "lora_bias": ({"target_modules": ["c_attn", "mlp.c_proj"], "lora_bias": True}, {}),
    "bias all": ({"target_modules": ["c_attn"], "bias": "all"}, {}),
    "bias lora_only": ({"target_modules": ["c_attn"], "bias": "lora_only"}, {}),
    "modules_to_save": ({"target_modules": ["c_attn"], "modules_to_save": ["ln_f", "mlp.c_fc"]}, {}),
    "head saved": ({"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]}, {}),
    "embedding saved": ({"target_modules": ["c_attn"], "modules_to_save": ["wte"]}, {}),
    "positions": ({"target_modules": ["wpe", "c_fc"]}, {}),
    "untied": ({"target_modules": ["wte", "lm_head", "c_attn"]}, {"tie_word_embeddings": False}),
    "untied dora head": ({"target_modules": ["lm_head"], "use_dora": True}, {"tie_word_embeddings": False}),
    "layers": ({"target_modules": ["c_attn"], "layers_to_transform": [0, 2]}, {}),
    "regular expression": ({"target_modules": r"transformer\.h\.[02]\..*c_attn"}, {}),
    "excluded": ({"target_modules": ["c_proj"], "exclude_modules": r".*\.attn\.c_proj"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", PEFT_CASES)
def test_peft_merges_to_the_same_weights(tmp_path: Path, case: str) -> None:
    peft = pytest.importorskip("peft")
    options, base_options = PEFT_CASES[case]
    base = save_base(tmp_path / "base", **base_options)
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    trained = peft.get_peft_model(model, peft.LoraConfig(**{"r": 3, "lora_alpha": 7} | options))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    trained.save_pretrained(tmp_path / "adapter")
    fresh = transformers.GPT2LMHeadModel.from_pretrained(base)
    whole = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").merge_and_unload().eval()
    state = {name.removeprefix("transformer."): t.detach().numpy() for name, t in whole.state_dict().items()}
    found = merged(base, tmp_path / "adapter")
    if "lm_head.weight" not in found:
        assert np.array_equal(state.pop("lm_head.weight"), state["wte.weight"])
    assert_close(found, state)
    assert_logits(base, tmp_path, whole)


def assert_logits(base: Path, tmp_path: Path, model: transformers.GPT2LMHeadModel) -> None:
    converter.convert(base, tmp_path / "out", adapter=tmp_path / "adapter")
    ids = np.array([[5, 17, 60, 0, 33, 21, 9]])
    with torch.inference_mode():
        truth = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(converter.load(tmp_path / "out").logits(ids), truth, atol=2e-5 * np.abs(truth).max())


# --- end to end


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


# --- what is refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"peft_type": None}, "peft_type is None; only LORA"),
        ({"target_parameters": ["h.0.x"]}, "sets target_parameters"),
        ({"trainable_token_indices": [1]}, "sets trainable_token_indices"),
        ({"alora_invocation_tokens": [1, 2]}, "sets alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, "sets layer_replication"),
        ({"use_qalora": True}, "sets use_qalora"),
        ({"use_bdlora": {"x": 1}}, "sets use_bdlora"),
        ({"arrow_config": {"x": 1}}, "sets arrow_config"),
        ({"ensure_weight_tying": True}, "sets ensure_weight_tying"),
        ({"megatron_config": {"x": 1}}, "sets megatron_config"),
        ({"what_comes_next": 1}, "sets what_comes_next"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"bias": "some"}, "bias is 'some'"),
        ({"r": 0}, "r is 0"), ({"r": True}, "r is True"), ({"r": "3"}, "r is '3'"), ({"r": None}, "r is None"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"), ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern is"), ({"rank_pattern": {"c_attn": 0}}, "rank_pattern is"),
        ({"alpha_pattern": ["c_attn"]}, "alpha_pattern is"), ({"modules_to_save": "ln_f"}, "modules_to_save is"),
        ({"target_modules": "("}, "target_modules is"), ({"target_modules": {"a": 1}}, "target_modules is"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform is"), ({"layers_pattern": "("}, "layers_pattern is"),
        ({"use_dora": "yes"}, "use_dora is 'yes'"),
        ({"use_dora": True, "lora_bias": True}, "sets use_dora and lora_bias"),
    ],
)  # fmt: skip
def test_whatever_cannot_be_merged_is_refused_by_name(
    tmp_path: Path, base: Path, config: dict[str, Any], message: str
) -> None:
    adapter = write(tmp_path / "adapter", pairs(MODULES), **config)
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json:? {message}"):
        open_checkpoint(base, SourceOptions(adapter=adapter))


A, B = (f"base_model.model.{MODULES[0]}.lora_{part}.weight" for part in "AB")


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda t: t.pop(A), {}, "the update of h.0.attn.c_attn has B; expected A, B: A is missing"),
        (lambda t: (t.pop(A), t.pop(B)), {}, "has no update of h.0.attn.c_attn, which adapter_config.json targets"),
        (lambda t: t.clear(), {}, "has no update of h.0.attn.c_attn"),
        (lambda t: None, {"target_modules": ["c_attn"]}, "has an update of h.0.mlp.c_proj, which .* not target"),
        (lambda t: None, {"layers_to_transform": [0, 1]}, "has an update of h.2"),
        (lambda t: None, {"exclude_modules": ["c_attn"]}, "has an update of h.0.attn.c_attn, which .* not target"),
        (lambda t: None, {"r": 4}, r"is \[3, 32\]; expected \[4, 32\], as r is 4"),
        (lambda t: t.update({A: t[A].T}), {}, r"is \[32, 3\]; expected \[3, 32\]"),
        (lambda t: t.update({B: t[B][:95]}), {}, r"is \[95, 3\]; expected \[96, 3\]"),
        (lambda t: t.update({A: t[A].astype(np.float64)}), {}, "is float64; expected float32"),
        (lambda t: t.update({"base_model.model.x": t[A]}), {}, "tensor base_model.model.x is nothing that"),
        (lambda t: t.update({A.replace("weight", "default.weight"): t.pop(A)}), {}, "is nothing that"),
        (lambda t: t.update({"base_model.model.transformer.ln_f.bias": t[A][0]}), {}, "ln_f.bias is nothing that"),
        (lambda t: t.update({"base_model.model.score.weight": t[A]}), {"modules_to_save": ["score"]},
         "stands for score.weight, which base lacks"),
        (lambda t: t.update({A.replace("A.weight", "magnitude_vector"): t[A][0]}), {}, "magnitude is one too many"),
        (lambda t: None, {"use_dora": True}, "magnitude is missing"),
        (lambda t: None, {"lora_bias": True}, "B bias is missing"),
        (lambda t: t.update({A.replace(".transformer", ""): t[A]}), {}, "in two ways"),
        (lambda t: t.update(embedding_tensors(("wte",))), {"target_modules": ["c_attn", "mlp.c_proj", "wte"]},
         "ties wte and lm_head"),
        (lambda t: t.update({"base_model.model.transformer.wte.weight": np.ones((61, 32), np.float32)}), {},
         "holds a wte.weight that .* does not name in modules_to_save, and no lm_head.weight"),
        (lambda t: t.update({A.replace("h.0", "h.7"): t[A], B.replace("h.0", "h.7"): t[B]}), {},
         "has an update of h.7.attn.c_attn, and base has no h.7.attn.c_attn.weight"),
        (lambda t: t.update({A.replace("attn.c_attn", "ln_1"): t[A], B.replace("attn.c_attn", "ln_1"): t[B]}),
         {"target_modules": ["c_attn", "mlp.c_proj", "ln_1"]}, "ln_1, which is no module of a GPT-2 to update"),
    ],
)  # fmt: skip
def test_tensors_that_config_and_base_do_not_account_for_are_refused(
    tmp_path: Path, base: Path, change: Callable[[Tensors], Any], config: dict[str, Any], message: str
) -> None:
    tensors = pairs(MODULES)
    change(tensors)
    adapter = write(tmp_path / "adapter", tensors, **config)
    with pytest.raises(CheckpointError, match=rf"adapter_model\.safetensors.*{message}"):
        open_checkpoint(base, SourceOptions(adapter=adapter))


def test_a_base_that_holds_a_weight_twice_is_still_refused(tmp_path: Path, base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    save_file(weights | {"ln_f.bias": np.ones(32, np.float32)}, base / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"base holds ln_f\.bias twice: as .*ln_f\.bias and"):
        open_checkpoint(base, SourceOptions(adapter=write(tmp_path / "adapter", pairs(MODULES))))


def test_dora_of_an_embedding_is_refused(tmp_path: Path, base: Path) -> None:
    adapter = write(tmp_path / "adapter", embedding_tensors(("wpe",)), target_modules=["wpe"], use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora for the embedding wpe"):
        open_checkpoint(base, SourceOptions(adapter=adapter))


def test_an_embedding_of_another_vocabulary_is_refused(tmp_path: Path, base: Path) -> None:
    both = {f"base_model.model.{n}.weight": np.ones((62, 32), np.float32) for n in ("transformer.wte", "lm_head")}
    adapter = write(tmp_path / "adapter", pairs(MODULES) | both)
    with pytest.raises(CheckpointError, match=r"wte\.weight is \[62, 32\]; config\.json asks for \[61, 32\]"):
        account(open_checkpoint(base, SourceOptions(adapter=adapter)))


def test_files_that_are_missing_or_pointers_are_named(tmp_path: Path, base: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"there is no folder .*nowhere; expected the folder of a PEFT adapter, or"
    ):
        open_checkpoint(base, SourceOptions(adapter=tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"base has no adapter_config\.json; expected .* PEFT adapter"):
        open_checkpoint(base, SourceOptions(adapter=base))
    adapter = write(tmp_path / "adapter", pairs(MODULES))
    (adapter / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is a Git LFS pointer"):
        open_checkpoint(base, SourceOptions(adapter=adapter))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors or adapter_model\.bin"):
        open_checkpoint(base, SourceOptions(adapter=adapter))


def test_a_merged_weight_that_is_not_finite_is_refused(tmp_path: Path, base: Path) -> None:
    tensors = pairs(MODULES)
    tensors[A][0, 0] = np.inf
    with pytest.raises(CheckpointError, match=r"h\.0\.attn\.c_attn\.weight holds"):
        converter.convert(base, tmp_path / "out", adapter=write(tmp_path / "adapter", tensors))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("whole")
    base, adapter = save_base(folder / "base"), write(folder / "adapter", pairs(MODULES), alpha_pattern={"c_attn": 3})
    return base, adapter, {file.name: file.read_bytes() for file in adapter.iterdir()}


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    whole: tuple[Path, Path, dict[str, bytes]],
    damaged: Callable[[bytes], st.SearchStrategy[bytes]],
    data: st.DataObject,
) -> None:
    base, adapter, files = whole
    name = data.draw(st.sampled_from(sorted(files)))
    header = files[name][: 8 + int.from_bytes(files[name][:8], "little")] if "model" in name else files[name]
    for file, content in files.items():
        (adapter / file).write_bytes(content)
    (adapter / name).write_bytes(data.draw(damaged(header)) + files[name][len(header) :])
    try:
        for tensor in account(open_checkpoint(base, SourceOptions(adapter=adapter))).weights.values():
            next(tensor.chunks())
    except GPT2Error as error:
        message = str(error)
        assert message


def test_a_file_that_ends_early_is_refused(whole: tuple[Path, Path, dict[str, bytes]]) -> None:
    base, adapter, files = whole
    for name, content in files.items():
        for end in range(0, len(content), 97):
            for file, sound in files.items():
                (adapter / file).write_bytes(sound[:end] if file == name else sound)
            with pytest.raises(GPT2Error, match="adapter_"):
                open_checkpoint(base, SourceOptions(adapter=adapter))


# --- Heads ------------------------------------------------------------------------------------------------------------


def save_classifier(folder: Path, **config: Any) -> Path:
    torch.manual_seed(1)
    model = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**SIZES | {"num_labels": 3} | config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


SCORE = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}


def test_a_head_that_was_trained_with_the_adapter_takes_the_place_of_the_bases(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "base")
    score = np.random.default_rng(0).standard_normal((3, 32), np.float32)
    updates = pairs(MODULES)
    adapter = write(tmp_path / "adapter", updates | {"base_model.model.score.weight": score}, **SCORE)
    found = merged(source, adapter)
    expected = expected_of(source, updates, lambda module: 7 / 3) | {"score.weight": score.astype(np.float64)}
    assert_rounded(found, expected)
    converter.convert(source, tmp_path / "out", adapter=adapter)
    assert converter.check(source, tmp_path / "out", adapter=adapter).passed


@pytest.mark.parametrize("head", [None, "sequence-classification"])
def test_a_head_that_the_base_lacks_is_refused_and_never_made_up(base: Path, tmp_path: Path, head: str | None) -> None:
    score = np.zeros((3, 32), np.float32)
    adapter = write(tmp_path / "adapter", pairs(MODULES) | {"base_model.model.score.weight": score}, **SCORE)
    with pytest.raises(CheckpointError, match=r"stands for score\.weight, which base lacks"):
        open_checkpoint(base, SourceOptions(adapter=adapter, head=head))


def test_an_update_of_a_head_is_refused(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "base")
    tensors = pairs(MODULES) | {
        "base_model.model.score.lora_A.weight": np.ones((3, 32), np.float32),
        "base_model.model.score.lora_B.weight": np.ones((3, 3), np.float32),
    }
    adapter = write(tmp_path / "adapter", tensors, target_modules=["c_attn", "mlp.c_proj", "score"])
    with pytest.raises(CheckpointError, match="an update of score, which is no module of a GPT-2 to update"):
        account(open_checkpoint(source, SourceOptions(adapter=adapter)))


def test_an_embedding_of_a_classifier_is_replaced_and_ties_nothing(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "base")
    wte = np.random.default_rng(0).standard_normal((61, 32), np.float32)
    tensors = pairs(MODULES) | {"base_model.model.transformer.wte.weight": wte}
    adapter = write(tmp_path / "adapter", tensors, task_type="SEQ_CLS", modules_to_save=["wte"])
    found = merged(source, adapter)
    np.testing.assert_array_equal(found["wte.weight"], wte)
    assert "lm_head.weight" not in found
    assert found.keys() == weights_of(source).keys()
