"""A training checkpoint is loaded whole; its objects stay inert."""

from __future__ import annotations

import argparse
import io
import os
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.pickle_machine import Global, Inert
from converter.checkpoint.tensor import LazyTensor
from converter.checkpoint.torch_file import load, parts, read
from converter.errors import CheckpointError
from tests.checkpoint.torch_files import CONTAINERS, LAUGHS, Calls, both, save


def tensors_in(value: Any, seen: set[int]) -> dict[str, LazyTensor]:
    """Every lazy tensor of a structure, by its name."""
    if isinstance(value, LazyTensor):
        return {value.name: value}
    inside: list[Any] = []
    if type(value) in (dict, list, tuple, Inert) and id(value) not in seen:
        seen.add(id(value))
        attributes = value.attributes if isinstance(value, Inert) else value
        inside = list(attributes.values() if isinstance(attributes, dict) else attributes)
    return {name: tensor for item in inside for name, tensor in tensors_in(item, seen).items()}


@both
def test_a_training_checkpoint_is_loaded_whole(
    tmp_path: Path, assert_same: Callable[..., None], container: str
) -> None:
    module = torch.nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.25, betas=(0.5, 0.75))
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    saved = {
        "model": module.state_dict(), "optimizer": optimizer.state_dict(), "best_val_loss": torch.tensor(2.5),
        "iter_num": 7, "config": {"compile": True, "dropout": 0.125, "out_dir": "out", "seed": None},
        "size": torch.ones(2, 3).shape, 3: [(torch.arange(4)[1:], "x"), ()],
    }  # fmt: skip
    found = load(save(saved, tmp_path / "ckpt.pt", container))
    assert {key: found[key] for key in ("iter_num", "config", "size")} == {
        key: saved[key] for key in ("iter_num", "config", "size")
    }
    assert found["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    assert (type(found[3]), type(found[3][0]), found[3][0][1], found[3][1]) == (list, tuple, "x", ())
    state = saved["optimizer"]["state"]
    expected = {f"model.{name}": tensor for name, tensor in saved["model"].items()}
    expected |= {f"optimizer.state.{i}.{name}": state[i][name] for i in state for name in state[i]}
    assert_same(tensors_in(found, set()), expected | {"best_val_loss": torch.tensor(2.5), "3.0.0": torch.arange(1, 4)})


@both
def test_tensors_with_attributes_are_loaded_without_them(
    tmp_path: Path, assert_same: Callable[..., None], container: str
) -> None:
    tensor, parameter = torch.arange(3.0), torch.nn.Parameter(torch.ones(2))
    tensor.shared, parameter.partition_dim = True, 0
    saved = {"a": tensor, "b": parameter}
    assert_same(load(save(saved, tmp_path / "x.pt", container)), saved)


@both
def test_objects_of_known_classes_are_inert(tmp_path: Path, container: str) -> None:
    args = argparse.Namespace(
        layers=3, dtype=torch.float16, names=["a"], weight=torch.ones(2), device=torch.device("cpu")
    )
    values = {"args": args, "array": np.arange(3), "scalar": np.float64(2), "bytes": io.BytesIO(b"x"), "raw": b"x"}
    file = save(values, tmp_path / "x.pt", container)
    found = load(file)
    assert found["args"].kind == Global("argparse", "Namespace")
    attributes = found["args"].attributes
    assert (attributes["layers"], attributes["dtype"], attributes["names"]) == (3, Global("torch", "float16"), ["a"])
    assert attributes["weight"].name == "args.weight"
    assert all(isinstance(found[key], Inert) for key in ("array", "scalar", "bytes", "raw"))
    with pytest.raises(CheckpointError, match=r"x\.pt holds 'args', which is not a tensor"):
        read(file)


def test_tensors_that_share_a_storage_share_its_bytes_when_loaded(tmp_path: Path) -> None:
    wte = torch.arange(12.0).reshape(4, 3)
    found = load(save({"model": {"wte": wte, "head": wte}, "again": [wte[1]]}, tmp_path / "tied.pt", "zip"))
    assert found["model"]["wte"].offset == found["model"]["head"].offset == found["again"][0].offset - 12


@pytest.mark.parametrize("place", ["value", "key", "whole", "args", "deep"])
@both
def test_loading_runs_no_command(tmp_path: Path, container: str, place: str) -> None:
    marker = tmp_path / "marker"
    attack = Calls(os.system, f"touch {marker}")
    values = {
        "value": {"model": {}, "x": attack}, "key": {attack: 1}, "whole": attack, "args": argparse.Namespace(x=attack),
        "deep": {"model": {"optimizer": [({"x": [attack]},)]}},
    }  # fmt: skip
    file = save(values[place], tmp_path / "hostile.pt", container)
    with pytest.raises(CheckpointError, match=rf"asks to import {os.system.__module__}\.system; .*nothing is executed"):
        load(file)
    assert parts(file) == {}
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()  # the attack is a real one


@pytest.mark.parametrize(
    "function",
    [eval, getattr, torch.load, torch.nn.Linear, np.load, argparse.FileType, torch._utils._rebuild_qtensor],
    ids=lambda function: function.__name__,
)
@both
def test_any_global_but_those_of_training_checkpoints_is_refused(
    tmp_path: Path, container: str, function: Callable[..., Any]
) -> None:
    file = save({"x": Calls(function, "1")}, tmp_path / "h.pt", container)
    with pytest.raises(CheckpointError, match=rf"asks to import [\w.]+\.{function.__name__}; "):
        load(file)


@pytest.mark.parametrize("instruction", [b"R", b"\x81"], ids=["a call", "a new object"])
def test_inert_classes_are_not_even_imported(tmp_path: Path, instruction: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02cmegatron.enums\nModelType\nK\x01\x85" + instruction + b".")
    assert load(tmp_path / "x.pt") == Inert(Global("megatron.enums", "ModelType"))
    assert "megatron" not in sys.modules
    with pytest.raises(CheckpointError, match=r"x\.pt holds a ModelType; expected a state dict"):
        read(tmp_path / "x.pt")


@pytest.mark.parametrize("key", ["", "a", "k" * 100])
def test_a_structure_that_is_nested_too_deep_is_refused(tmp_path: Path, key: str) -> None:
    nested = pickle_of_nested_dicts(key, 50_000)
    with zipfile.ZipFile(tmp_path / "deep.pt", "w") as archive:
        archive.writestr("x/data.pkl", nested)
    with pytest.raises(CheckpointError, match=r"deep\.pt is nested deeper than any checkpoint"):
        load(tmp_path / "deep.pt")


def pickle_of_nested_dicts(key: str, depth: int) -> bytes:
    name = b"X" + len(key).to_bytes(4, "little") + key.encode() + b"\x94"
    return b"\x80\x04" + b"}" + name + (b"}h\x00" * depth) + b"N" + b"s" * (depth + 1) + b"."


@pytest.mark.parametrize("cyclic", ["list", "dict"])
def test_a_structure_that_holds_itself_comes_to_an_end(tmp_path: Path, cyclic: str) -> None:
    value: Any = [torch.ones(2)] if cyclic == "list" else {"x": torch.ones(2)}
    value.append((value,)) if cyclic == "list" else value.update(self=(value,))
    found = load(save(value, tmp_path / "cyclic.pt", "zip"))
    assert len(tensors_in(found, set())) == 1


def test_a_tuple_of_endless_copies_is_loaded_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "laughs.pt", "w") as archive:
        archive.writestr("x/data.pkl", LAUGHS + b"\x8c\x01x\x94}h\x3dh\x3cs.")
    assert list(load(tmp_path / "laughs.pt")) == ["x"]


def training(container: str) -> bytes:
    buffer = io.BytesIO()
    args = argparse.Namespace(n=3, dtype=torch.float16, seed=np.float64(1))
    state = {"model": OrderedDict(a=torch.arange(6.0).reshape(2, 3).t()), "args": args, "size": torch.ones(2).shape}
    torch.save(state, buffer, _use_new_zipfile_serialization=container == "zip")
    return buffer.getvalue()


TRAINING = {container: training(container) for container in CONTAINERS}


@pytest.mark.parametrize("container", CONTAINERS)
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_damage_to_a_training_checkpoint_is_refused_or_harmless(
    container: str,
    scratch: Path,
    bounded_memory: None,
    damaged: Callable[..., st.SearchStrategy[bytes]],
    refusal: Callable[..., str | None],
    data: st.DataObject,
) -> None:
    file = scratch / "damaged.pt"
    file.write_bytes(data.draw(damaged(TRAINING[container])))
    assert str(file) in (refusal(lambda path: tensors_in(load(path), set()), file) or str(file))
