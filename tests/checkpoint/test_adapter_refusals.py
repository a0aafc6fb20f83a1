"""An adapter that cannot be merged is refused by name; a damaged one does no harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import converter
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.errors import CheckpointError, GPT2Error
from converter.weights.ledger import account
from tests.checkpoint.adapters import embedding_tensors, save_base
from tests.checkpoint.writers.lora import MODULES, Tensors, pairs, write


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"peft_type": None}, "peft_type is None; only LORA"),
        ({"target_parameters": ["h.0.x"]}, "sets target_parameters"),
        ({"trainable_token_indices": [1, 1]}, r"trainable_token_indices is \[1, 1\]"),
        ({"trainable_token_indices": [-1]}, r"trainable_token_indices is \[-1\]"),
        ({"trainable_token_indices": {"wte": 1}}, "trainable_token_indices is {'wte': 1}"),
        ({"alora_invocation_tokens": [1, 2]}, "sets alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, "sets layer_replication"),
        ({"use_qalora": True}, "sets use_qalora"),
        ({"use_bdlora": {"x": 1}}, "sets use_bdlora"),
        ({"arrow_config": {"x": 1}}, "sets arrow_config"),
        ({"ensure_weight_tying": 1}, "ensure_weight_tying is 1"),
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
        (lambda t: t.update({A: t[A][:0]}), {}, r"is \[0, 32\]; .*: its numbers lie in shards .* zero_to_fp32\.py"),
        (lambda t: t.update({B: t[B][:95]}), {}, r"is \[95, 3\]; expected \[96, 3\]"),
        (lambda t: t.update({A: t[A].astype(np.float64)}), {}, "is float64; expected float32"),
        (lambda t: t.update({"base_model.model.x": t[A]}), {}, "tensor base_model.model.x is none of the tensors that"),
        (lambda t: t.update({A.replace("weight", "default.weight"): t.pop(A)}), {}, "is none of the tensors that"),
        (lambda t: t.update({"base_model.model.transformer.ln_f.bias": t[A][0]}), {},
         "ln_f.bias is none of the tensors that"),
        (lambda t: t.update({"base_model.model.gate.weight": t[A]}), {"modules_to_save": ["gate"]},
         "stands for gate.weight, which base lacks"),
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
         {"target_modules": ["c_attn", "mlp.c_proj", "ln_1"]}, "ln_1, which no LoRA adapter of a GPT-2 can update"),
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
