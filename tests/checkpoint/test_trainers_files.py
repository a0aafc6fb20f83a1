"""What trainers and old programs leave beside a config is read; what cannot be is refused with a way that works."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import functools
import json
import pickle
import sys
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import converter
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.errors import CheckpointError, ConfigError, GPT2Error
from converter.weights.ledger import account
from tests.checkpoint.torch_files import both
from tests.checkpoint.torch_files import save as torch_save

Save = Callable[..., Path]
State = dict[str, torch.Tensor]


@pytest.fixture
def bare(save: Save) -> tuple[Path, State]:
    """A folder with a config alone, and the weights that belong to it."""
    folder = save("trained")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return folder, state


def holds(source: Path, state: State, ignore: tuple[str, ...] = ()) -> bool:
    weights = account(open_checkpoint(source), ignore).weights
    return {name: weight.memmap().tobytes() for name, weight in weights.items()} == {
        name.removeprefix("transformer."): tensor.numpy().tobytes() for name, tensor in state.items()
    }


def around(state: State) -> dict[str, Any]:
    """What a trainer saves beside the weights: numbers, texts, the state of an optimizer."""
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": tensor} for i, tensor in enumerate(state.values())}
    return {
        "epoch": 3, "loss": torch.tensor(2.5), "version": "2.6", "callbacks": {"best": {"score": None}},
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1}]}, "lr_schedulers": [{"gamma": 0.1}],
    }  # fmt: skip


@pytest.mark.parametrize("ending", ["ckpt", "pkl", "pt", "pth", "bin", "th", "tar"])
@pytest.mark.parametrize("key", ["state_dict", "model", "module", "model_state_dict", None])
def test_weights_beside_a_config_are_read_under_any_ending_plain_or_one_level_down(
    bare: tuple[Path, State], key: str | None, ending: str
) -> None:
    folder, state = bare
    saved = state if key is None else around(state) | {key: {f"model.{name}": t for name, t in state.items()}}
    torch.save(saved, folder / f"epoch=3.{ending}")
    assert holds(folder / f"epoch=3.{ending}", state)
    if ending not in ("th", "tar"):  # no ending of weights by which a folder's only file is found
        assert holds(folder, state)


@both
def test_the_only_state_dict_of_a_file_is_found_by_any_name(
    tmp_path: Path, bare: tuple[Path, State], container: str
) -> None:
    folder, state = bare
    torch_save({"net": state, "epoch": 3}, folder / "x.pt", container)
    assert holds(folder, state)


def test_one_of_several_state_dicts_is_saved_by_itself_as_advised(bare: tuple[Path, State]) -> None:
    folder, state = bare
    torch.save({"net": state, "ema": {name: tensor + 1 for name, tensor in state.items()}}, folder / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"x\.pt holds several state dicts \('net', 'ema'\); .*\(…\)\['net'\], …\)$"
    ):
        open_checkpoint(folder)
    torch.save(torch.load(folder / "x.pt")["net"], folder / "x.pt")
    assert holds(folder, state)


def test_a_model_file_of_transformers_name_may_be_a_trainer_s_too(bare: tuple[Path, State], tmp_path: Path) -> None:
    folder, state = bare
    torch.save({"state_dict": state, "epoch": 1}, folder / "pytorch_model.bin")
    converter.convert(folder, tmp_path / "out")
    report = converter.check(folder, tmp_path / "out")
    assert report.passed
    assert any("the mapping is not independently proven" in note for note in report.notes)


def test_objects_beside_the_weights_are_neither_created_nor_imported(
    bare: tuple[Path, State], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = bare
    module = types.ModuleType("lightning.fabric.utilities.data")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": module.__name__})  # type: ignore[attr-defined]
    with monkeypatch.context() as there:
        for name in ("lightning", "lightning.fabric", "lightning.fabric.utilities", module.__name__):
            there.setitem(sys.modules, name, module)
        parameters = module.AttributeDict(lr=0.1, config=transformers.GPT2Config(), folder=Path("x"))
        beside = {"hyper_parameters": parameters, "args": argparse.Namespace(n=1)}
        torch.save({"state_dict": state} | beside, folder / "last.ckpt")
    assert holds(folder, state)
    assert "lightning" not in sys.modules


@pytest.mark.parametrize(
    "value",
    [
        {1, 2}, frozenset("a"), 1j, bytearray(b"x"), slice(1, 2), range(3), collections.Counter("aab"), float, str,
        collections.deque([1], maxlen=3), collections.defaultdict(list, a=[1]), datetime.datetime(2026, 1, 2),
        datetime.timedelta(1), decimal.Decimal(1), uuid.UUID(int=1), functools.partial(int, base=2),
        {1.5: 2, None: 3, (1, 2): 4, b"x": 5},
    ],
    ids=repr,
)  # fmt: skip
@both
def test_values_of_the_standard_library_may_lie_beside_the_weights(
    bare: tuple[Path, State], value: object, container: str
) -> None:
    folder, state = bare
    torch_save({"hyper_parameters": {"x": value, "more": [value]}, "state_dict": state}, folder / "x.ckpt", container)
    assert holds(folder, state)


def test_a_pickle_of_pickle_is_saved_with_torch_as_advised(bare: tuple[Path, State]) -> None:
    folder, state = bare
    with (folder / "weights.pkl").open("wb") as opened:
        pickle.dump(state, opened)
    with pytest.raises(CheckpointError, match=r"weights\.pkl .*: save model\.state_dict\(\) with torch\.save instead"):
        open_checkpoint(folder)
    torch.save(state, folder / "weights.pkl")
    assert holds(folder, state)


def test_what_a_trainer_saves_beside_the_weights_is_not_taken_for_them(bare: tuple[Path, State]) -> None:
    folder, state = bare
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "scaler.pt"):
        torch.save({"x": 1}, folder / name)
    torch.save({"state_dict": state}, folder / "last.ckpt")
    assert holds(folder, state)


def test_one_of_several_files_is_named_as_advised(bare: tuple[Path, State]) -> None:
    folder, state = bare
    for name in ("a.ckpt", "b.ckpt"):
        torch.save({"state_dict": state}, folder / name)
    with pytest.raises(
        CheckpointError, match=r"has several files of weights \(a\.ckpt, b\.ckpt\), .*; name one of them"
    ):
        open_checkpoint(folder)
    assert holds(folder / "b.ckpt", state)


def test_a_nanogpt_checkpoint_beside_a_config_is_nanogpt_s(bare: tuple[Path, State]) -> None:
    """Its projections lie otherwise than those that a config.json describes."""
    folder, state = bare
    arguments = {"n_layer": 3, "n_head": 3, "n_embd": 12, "block_size": 24, "vocab_size": 61, "bias": True}
    torch.save({"model": state, "model_args": arguments}, folder / "ckpt.pt")
    with pytest.raises(ConfigError, match="does not record its activation"):
        open_checkpoint(folder)
    assert open_checkpoint(folder, SourceOptions(activation="gelu")).format == "nanoGPT"


# --- 2019

CONFIG_OF_2019 = {
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-5, "n_ctx": 24, "n_embd": 12, "n_head": 3, "n_layer": 3,
    "n_positions": 24, "vocab_size": 61,
}  # fmt: skip


def dialogpt(folder: Path, tensors: Callable[[State], State] = lambda state: state) -> transformers.GPT2LMHeadModel:
    """A model as microsoft/DialoGPT first published it: one .pkl, half precision, the head named decoder."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**CONFIG_OF_2019, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    state = {name.replace("lm_head.", "lm_head.decoder."): t for name, t in model.half().state_dict().items()}
    state |= {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 24, 24).tril().half() for i in range(3)}
    folder.mkdir(exist_ok=True)
    torch.save(tensors(state), folder / "small_ft.pkl", _use_new_zipfile_serialization=False)
    (folder / "config.json").write_text(json.dumps(CONFIG_OF_2019))
    return model.float().eval()


def test_a_model_of_2019_computes_what_transformers_computes(tmp_path: Path) -> None:
    model = dialogpt(tmp_path / "source")
    done = converter.convert(tmp_path / "source", tmp_path / "out")
    assert any("config.json names no model_type; gpt2 was taken for it" in warning for warning in done.warnings)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt2"
    ids = torch.tensor([[5, 60, 0, 17]])
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.tensor(converter.load(tmp_path / "out").logits(ids.tolist())), model(ids).logits
        )
    assert converter.check(tmp_path / "source", tmp_path / "out").passed


@pytest.mark.parametrize("lacking", ["wpe.weight", "h.0.attn.c_attn.weight", "h.0.ln_1.bias"])
def test_a_config_that_names_no_model_beside_other_tensors_is_still_refused(tmp_path: Path, lacking: str) -> None:
    dialogpt(tmp_path / "source", lambda state: {name: t for name, t in state.items() if not name.endswith(lacking)})
    with pytest.raises(ConfigError, match=r"it has no model_type; expected 'gpt2'"):
        open_checkpoint(tmp_path / "source")


# --- what is no checkpoint yet


@pytest.mark.parametrize("magic", [b"lmgg", b"tjgg"])
@pytest.mark.parametrize("name", ["ggml-model.bin", "model.ggml"])
def test_a_ggml_file_is_called_one(bare: tuple[Path, State], magic: bytes, name: str) -> None:
    folder, state = bare
    (folder / name).write_bytes(magic + bytes(100))
    message = rf"{name} is a ggml file, .*; convert the checkpoint that it was made of"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder / name)
    torch.save(state, folder / "pytorch_model.bin")
    assert holds(folder, state)


def deepspeed(folder: Path) -> None:
    """The files of a folder that DeepSpeed saves to, without their contents."""
    (folder / "global_step10").mkdir()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({"module": {}}, folder / "global_step10" / name)
    (folder / "latest").write_text("global_step10")
    (folder / "zero_to_fp32.py").write_text("")
    torch.save({}, folder / "training_args.bin")


@pytest.mark.parametrize("place", ["", "global_step10", "global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_shards_of_deepspeed_are_put_together_by_its_own_script(bare: tuple[Path, State], place: str) -> None:
    """The script asks for DeepSpeed; here the file stands for it that the script writes."""
    folder, state = bare
    deepspeed(folder)
    with pytest.raises(CheckpointError, match=r"holds shards of DeepSpeed; put .* python zero_to_fp32\.py \. \. in"):
        open_checkpoint(folder / place)
    torch.save(state, folder / "pytorch_model.bin")
    assert holds(folder, state)


def test_shards_of_torch_are_put_together_as_advised(bare: tuple[Path, State], tmp_path: Path) -> None:
    folder, state = bare
    dcp.save({"model": state}, checkpoint_id=folder / "shards", no_dist=True)
    for source in (folder / "shards", next((folder / "shards").glob("*.distcp"))):
        with pytest.raises(CheckpointError, match=rf"put .*dcp_to_torch {folder / 'shards'} FILE\.pt, and convert"):
            open_checkpoint(source)
    dcp_to_torch_save(folder / "shards", folder / "FILE.pt")
    assert holds(folder / "FILE.pt", state)


def test_shards_that_the_trainer_puts_into_a_folder_of_their_own_are_found(bare: tuple[Path, State]) -> None:
    folder, state = bare
    shards = folder / "pytorch_model_fsdp_0"
    dcp.save({"model": state}, checkpoint_id=shards, no_dist=True)
    torch.save({}, folder / "rng_state_0.pth")
    with pytest.raises(CheckpointError, match=rf"put .*dcp_to_torch {shards} FILE\.pt, and convert FILE\.pt beside"):
        open_checkpoint(folder)
    dcp_to_torch_save(shards, folder / "FILE.pt")
    assert holds(folder, state)


def test_without_a_config_the_sentence_asks_for_one(bare: tuple[Path, State]) -> None:
    folder, state = bare
    config = (folder / "config.json").read_bytes()
    (folder / "config.json").unlink()
    torch.save({"state_dict": state, "epoch": 1}, folder / "last.ckpt")
    with pytest.raises(GPT2Error, match=r"state dict beside its config\.json$"):
        open_checkpoint(folder)
    (folder / "config.json").write_bytes(config)
    assert holds(folder / "last.ckpt", state)


# --- checkpoints of a training, each in a subfolder


def test_a_folder_of_a_training_names_its_checkpoints_and_advises_the_last(save: Save, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = transformers.GPT2LMHeadModel.from_pretrained(save())
    out = tmp_path / "out"
    settings = transformers.TrainingArguments(
        out, max_steps=10, save_steps=1, save_total_limit=3, per_device_train_batch_size=1, use_cpu=True, report_to=[],
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    batch = {"input_ids": torch.arange(5), "labels": torch.arange(5)}
    transformers.Trainer(model, settings, train_dataset=[batch] * 10).train()
    message = (
        "out holds no weights itself, but the checkpoints of a training: checkpoint-8, checkpoint-9, checkpoint-10; "
        f"name one of them, such as the last: {out / 'checkpoint-10'}$"
    )
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(out)
    assert holds(out / "checkpoint-10", {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"})
    (out / "config.json").write_bytes((out / "checkpoint-10" / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(out)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(out / "checkpoint-10", SourceOptions(adapter=out))


def test_of_many_checkpoints_the_first_and_the_last_are_named(tmp_path: Path) -> None:
    for step in range(1, 13):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    with pytest.raises(CheckpointError, match=r": checkpoint-1, checkpoint-2, checkpoint-3, …, checkpoint-10, .*-12;"):
        open_checkpoint(tmp_path)
