"""The torch reader gives what torch.save wrote, in both containers, and executes nothing."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import sys
import tracemalloc
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
from converter.checkpoint.torch_file import LEGACY_MAGIC, LEGACY_PROTOCOL, is_torch_file, load, parts, read
from converter.errors import CheckpointError

CONTAINERS = ("zip", "legacy")
both = pytest.mark.parametrize("container", CONTAINERS)
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")


def save(value: Any, file: Path, container: str) -> Path:
    torch.save(value, file, _use_new_zipfile_serialization=container == "zip")
    return file


def rewrite(file: Path, change: Callable[[str, bytes], bytes | None], compress: str | None = None) -> Path:
    """Pass every entry of a zip through ``change``, which drops it with None; compress those that match."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            if (changed := change(name, data)) is not None:
                kind = zipfile.ZIP_DEFLATED if compress and re.search(compress, name) else zipfile.ZIP_STORED
                archive.writestr(name, changed, kind)
    return file


def refused(value: Any, message: str, file: Path, container: str) -> None:
    with pytest.raises(CheckpointError, match=f"{re.escape(str(file))}.*{message}"):
        read(save(value, file, container))


@both
@settings(deadline=None)
@given(data=st.data())
def test_any_view_that_torch_saves_reads_back_bit_for_bit(
    container: str,
    scratch: Path,
    views: st.SearchStrategy[torch.Tensor],
    assert_same: Callable[..., None],
    data: st.DataObject,
) -> None:
    tensors = data.draw(st.dictionaries(st.text(max_size=6), views, max_size=4))
    assert_same(read(save(tensors, scratch / "any.bin", container)), tensors)


@both
def test_parameters_and_buffers_of_a_module_are_read(
    tmp_path: Path, assert_same: Callable[..., None], container: str
) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5)).to(torch.bfloat16)
    state = module.state_dict()
    assert isinstance(state, OrderedDict)
    assert hasattr(state, "_metadata")
    assert_same(read(save(state, tmp_path / "state.bin", container)), state)
    parameters = dict(module.named_parameters())
    assert all(isinstance(value, torch.nn.Parameter) for value in parameters.values())
    assert_same(read(save(parameters, tmp_path / "parameters.pt", container)), parameters)


@both
def test_tensors_that_share_a_storage_share_its_bytes(
    tmp_path: Path, assert_same: Callable[..., None], container: str
) -> None:
    wte = torch.arange(12.0).reshape(4, 3)
    tensors = {"wte.weight": wte, "lm_head.weight": wte, "row": wte[2], "column": wte[:, 1]}
    found = read(save(tensors, tmp_path / "tied.bin", container))
    assert_same(found, tensors)
    assert found["lm_head.weight"].offset == found["wte.weight"].offset
    assert found["row"].offset == found["wte.weight"].offset + 6 * 4
    assert (found["row"].strides, found["column"].strides) == (None, (3,))


@pytest.mark.parametrize("protocol", range(2, 6))
@both
def test_any_pickle_protocol_is_read(
    tmp_path: Path, assert_same: Callable[..., None], protocol: int, container: str
) -> None:
    tensors = {"wpe.weight": torch.arange(6.0).reshape(2, 3).t()}
    file = tmp_path / "p.bin"
    torch.save(tensors, file, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    assert_same(read(file), tensors)


def test_a_lazily_negated_view_is_negated_or_refused(tmp_path: Path, assert_same: Callable[..., None]) -> None:
    tensors = {"x": torch.tensor([1 + 2j, 3 - 4j]).conj().imag}
    assert tensors["x"].is_neg()
    file = save(tensors, tmp_path / "neg.bin", "zip")
    try:
        found = read(file)
    except CheckpointError:
        return
    assert found["x"].memmap().tolist() == tensors["x"].tolist() == [-2, 4]


class Calls:
    """Pickles as a call of ``function``, with ``state`` put into what it returns."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


@pytest.mark.parametrize("place", ["value", "key", "whole", "beside"])
@both
def test_a_pickle_that_runs_a_command_is_refused_by_name_and_runs_nothing(
    tmp_path: Path, container: str, place: str
) -> None:
    marker = tmp_path / "marker"
    attack = Calls(os.system, f"touch {marker}")
    tensor = torch.ones(2)
    values = {"value": {"x": attack}, "key": {attack: tensor}, "whole": attack, "beside": {"x": tensor, "y": [attack]}}
    file = tmp_path / "hostile.bin"
    refused(
        values[place], rf"asks to import {os.system.__module__}\.system; .*save model\.state_dict\(\)", file, container
    )
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()  # the attack is a real one


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (eval, r"(__builtin__|builtins)\.eval"),
        (getattr, r"(__builtin__|builtins)\.getattr"),
        (os.getcwd, r"posix\.getcwd"),
        (torch.load, r"torch\.serialization\.load"),
        (torch._utils._rebuild_qtensor, r"torch\._utils\._rebuild_qtensor"),
    ],
    ids=["eval", "getattr", "getcwd", "load", "qtensor"],
)
@both
def test_any_global_but_those_of_plain_tensors_is_refused_by_name(
    tmp_path: Path, container: str, function: Callable[..., Any], name: str
) -> None:
    refused({"x": Calls(function, "1")}, rf"asks to import {name}; ", tmp_path / "h.bin", container)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("collections", "OrderedDict.fromkeys"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch", "nn.Module"),
    ],
)
def test_a_dotted_global_is_no_way_around(tmp_path: Path, module: str, name: str) -> None:
    file = tmp_path / "dotted.bin"
    text = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)]
    file.write_bytes(b"\x80\x04" + text[0] + text[1] + b"\x93.")  # STACK_GLOBAL
    with pytest.raises(CheckpointError, match=rf"dotted\.bin asks to import {re.escape(module)}\.{re.escape(name)};"):
        read(file)


@both
def test_a_pickled_module_is_refused(tmp_path: Path, container: str) -> None:
    message = r"asks to import torch\.nn\.modules\.linear\.Linear; .*save model\.state_dict\(\) instead"
    refused(torch.nn.Linear(2, 3), message, tmp_path / "module.bin", container)


@pytest.mark.parametrize("state", [{"offset": 1}, (None, {"offset": 1}), {"shape": (99,)}], ids=str)
@both
def test_a_pickle_cannot_alter_a_tensor_once_it_is_made(tmp_path: Path, container: str, state: Any) -> None:
    storage = torch.arange(3.0).storage()
    altered = Calls(torch._utils._rebuild_tensor_v2, storage, 0, (2,), (1,), False, OrderedDict(), state=state)
    refused({"x": altered}, "truncated or corrupt", tmp_path / "altered.bin", container)


@pytest.mark.parametrize("name", ["_rebuild_tensor_v2", "_rebuild_parameter"])
def test_a_pickle_cannot_alter_the_reader(tmp_path: Path, name: str) -> None:
    file = tmp_path / "build.bin"
    state = b"N}X\x0c\x00\x00\x00__defaults__K\x07\x85s\x86"  # (None, {"__defaults__": (7,)})
    file.write_bytes(b"\x80\x02ctorch._utils\n" + name.encode() + b"\n" + state + b"b.")
    with pytest.raises(CheckpointError, match=r"build\.bin .*attributes for what has none"):
        read(file)


# A tuple that holds itself twice, sixty times over: 2^60 elements for whoever walks through it.
LAUGHS = b"\x80\x04)\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(60))


@pytest.mark.parametrize(
    "end",
    [b"\x8c\x01x\x93.", b"h\x3c\x93.", b"h\x3c)R.", b"(\x8c\x07storageh\x3c\x8c\x010\x8c\x03cpuK\x01tQ.", b"}h\x3cNs."],
    ids=["a global's module", "a global", "a call", "a storage's type", "a key"],
)
def test_a_tuple_of_endless_copies_is_not_walked_through(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "laughs.bin").write_bytes(LAUGHS + end)
    with pytest.raises(CheckpointError, match=r"laughs\.bin"):
        read(tmp_path / "laughs.bin")


@pytest.mark.parametrize(
    "pickled",
    [b"\x80\x02Nr\xff\xff\xff\x0f.", b"\x80\x02})" + b"\x85" * 10**5 + b"Ns."],
    ids=["a memo of 2^28 places", "a key nested 100,000 deep"],
)
def test_a_small_pickle_cannot_exhaust_the_machine(tmp_path: Path, pickled: bytes) -> None:
    (tmp_path / "bomb.bin").write_bytes(pickled)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"bomb\.bin"):
        read(tmp_path / "bomb.bin")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.complex128, "ComplexDoubleStorage"), (torch.float8_e4m3fn, "_rebuild_tensor_v3")]
)
def test_a_type_that_is_not_read_is_named(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    refused({"x": torch.ones(3).to(dtype)}, rf"asks to import torch.*\.{name};", tmp_path / "x.bin", "zip")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"wte.weight": torch.ones(2), "epoch": 3}, "holds 'epoch', which is not a tensor"),
        ({"model": {"wte.weight": torch.ones(2)}, "epoch": 3}, "holds 'model', which is not a tensor"),
        ({7: torch.ones(2)}, "holds 7, which is not a tensor"),
        ({"x": None}, "holds 'x', which is not a tensor"),
        ([torch.ones(2)], "holds a list; expected a state dict"),
        (torch.ones(2), "expected a state dict"),
        (5, "holds a int; expected a state dict"),
        (None, "holds a NoneType; expected a state dict"),
    ],
    ids=["epoch", "trainer", "number", "null", "list", "tensor", "int", "none"],
)
@both
def test_what_is_no_state_dict_of_tensors_is_refused(tmp_path: Path, container: str, value: Any, found: str) -> None:
    refused(value, found, tmp_path / "x.bin", container)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": -1}, {"offset": True}, {"offset": "0"}, {"shape": (-2,)}, {"shape": (2.0,)}, {"shape": (2, 1)},
        {"shape": 2}, {"strides": (-1,)}, {"strides": ()}, {"storage": 5}, {"storage": "FloatStorage"},
    ],
    ids=str,
)  # fmt: skip
@both
def test_a_malformed_tensor_is_refused(tmp_path: Path, container: str, change: dict[str, Any]) -> None:
    sound = {"storage": torch.arange(3.0).storage(), "offset": 0, "shape": (2,), "strides": (1,)}
    args = (sound | change).values()
    crooked = Calls(torch._utils._rebuild_tensor_v2, *args, False, OrderedDict())
    refused({"x": crooked}, "truncated or corrupt", tmp_path / "crooked.bin", container)


@pytest.mark.parametrize(("offset", "shape", "strides"), [(2, (2,), (1,)), (0, (2, 2), (2, 1)), (1, (2,), (2,))])
@both
def test_a_tensor_that_reaches_past_its_storage_is_refused(
    tmp_path: Path, container: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    storage = torch.arange(3.0).storage()
    greedy = Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict())
    refused({"wte": greedy}, "truncated: tensor wte reaches past the end", tmp_path / "greedy.bin", container)


@both
def test_a_file_from_a_big_endian_machine_is_refused(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "byteorder", "big")
        file = save({"x": torch.ones(2)}, tmp_path / "big.bin", container)
    with pytest.raises(CheckpointError, match=r"big\.bin was written on a big-endian machine; save it again"):
        read(file)


@both
def test_a_file_truncated_anywhere_is_refused(
    tmp_path: Path, container: str, refusal: Callable[..., str | None]
) -> None:
    file = save({"a": torch.arange(5.0), "b": torch.arange(40, dtype=torch.int16)}, tmp_path / "cut.bin", container)
    sound = file.read_bytes()
    for end in range(len(sound)):
        file.write_bytes(sound[:end])
        assert str(file) in (refusal(read, file) or ""), end


def test_a_legacy_file_that_ends_within_a_storage_says_so(tmp_path: Path) -> None:
    file = save({"a": torch.ones(9)}, tmp_path / "cut.bin", "legacy")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cut\.bin is truncated within storage \d+; download or save it again"):
        read(file)


def test_a_zip_without_a_pickle_is_refused(tmp_path: Path) -> None:
    file = save({"x": torch.ones(2)}, tmp_path / "model.bin", "zip")
    rewrite(file, lambda name, data: None if name.endswith("data.pkl") else data)
    with pytest.raises(
        CheckpointError, match=r"model\.bin is a zip archive without a data\.pkl; expected .*torch\.save"
    ):
        read(file)


def test_a_zip_without_a_tensors_storage_is_refused(tmp_path: Path) -> None:
    file = save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "model.bin", "zip")
    rewrite(file, lambda name, data: None if name.endswith("data/1") else data)
    with pytest.raises(CheckpointError, match=r"model\.bin is corrupt: the storage of tensor b is missing"):
        read(file)


def test_a_zip_entry_shorter_than_its_tensor_is_refused(tmp_path: Path) -> None:
    file = save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "model.bin", "zip")
    rewrite(file, lambda name, data: data[:-1] if name.endswith("data/1") else data)
    with pytest.raises(CheckpointError, match=r"model\.bin is truncated: tensor b reaches past the end of its storage"):
        read(file)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../model/data/9", "model/../../x", "..", "C:/x", "C:\\x", "model\\..\\x", "../data.pkl"]
)
@pytest.mark.parametrize("reader", [read, load])
def test_a_zip_whose_members_lead_out_of_it_is_refused(
    tmp_path: Path, reader: Callable[[Path], Any], name: str
) -> None:
    file = save({"a": torch.ones(2)}, tmp_path / "model.bin", "zip")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(CheckpointError, match=r"model\.bin holds '.*', which leads out of the archive"):
        reader(file)


@pytest.mark.parametrize("shape", [(1 << 28, 2), (1 << 57, 12), (3, 1 << 40)])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_few_bytes_that_stand_for_exabytes_are_refused(
    tmp_path: Path, container: str, shape: tuple[int, ...]
) -> None:
    file = save({"a": torch.ones(2), "b": torch.ones(1).expand(shape)}, tmp_path / "model.bin", container)
    with pytest.raises(CheckpointError, match=r"model\.bin: tensor b .* repeats the 4 bytes of its storage"):
        read(file)


def test_a_compressed_storage_is_refused_by_name(tmp_path: Path) -> None:
    file = save({"a": torch.zeros(99), "b": torch.zeros(3)}, tmp_path / "model.bin", "zip")
    rewrite(file, lambda name, data: data, compress="data/0$")
    with pytest.raises(CheckpointError, match=r"model\.bin: model/data/0 is compressed; torch\.save never does that"):
        read(file)


def test_a_compressed_pickle_is_refused(tmp_path: Path) -> None:
    file = save({"a": torch.zeros(3)}, tmp_path / "model.bin", "zip")
    rewrite(file, lambda name, data: data, compress=r"data\.pkl")
    with pytest.raises(CheckpointError, match=r"model\.bin: model/data\.pkl is compressed"):
        read(file)


def test_a_zip_rewritten_without_alignment_is_read(tmp_path: Path, assert_same: Callable[..., None]) -> None:
    tensors = {"x": torch.arange(7.0)}
    file = save(tensors, tmp_path / "model.bin", "zip")
    rewrite(file, lambda name, data: data)
    found = read(file)
    assert found["x"].offset % 4  # not where torch would put it
    assert_same(found, tensors)


def legacy(folder: Path, state: Any, keys: Any, magic: int = LEGACY_MAGIC, protocol: int = LEGACY_PROTOCOL) -> Path:
    parts = magic, protocol, {"little_endian": True}, state, keys
    (folder / "made.bin").write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    return folder / "made.bin"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"magic": 5}, "is not a file written by torch.save"),
        ({"protocol": 1002}, "is not a file written by torch.save"),
        ({"keys": ["0"]}, "is corrupt: it names storages that no tensor uses"),
        ({"keys": "0"}, "is corrupt: it names storages that no tensor uses"),
        ({"keys": [["0"]]}, "is corrupt: it names storages that no tensor uses"),
    ],
    ids=["magic", "protocol", "surplus key", "no list", "no string"],
)
def test_a_legacy_file_with_a_broken_frame_is_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    assert read(legacy(tmp_path, {}, [])) == {}
    with pytest.raises(CheckpointError, match=rf"made\.bin {message}"):
        read(legacy(tmp_path, **{"state": {}, "keys": []} | parts))


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x03\x04", b"<html>", b"version https://git-lfs", bytes(64)])
def test_a_file_of_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.bin is "):
        read(tmp_path / "x.bin")


def saved(container: str) -> bytes:
    buffer = io.BytesIO()
    tensors = OrderedDict(a=torch.arange(6.0).reshape(2, 3).t(), b=torch.ones(3, dtype=torch.float16))
    torch.save(tensors, buffer, _use_new_zipfile_serialization=container == "zip")
    return buffer.getvalue()


SOUND = {container: saved(container) for container in CONTAINERS}


def patched(at: int, value: int, record: bytes = b"PK\x01\x02") -> bytes:
    """The zip with another byte in data.pkl's directory entry, or in another of its records."""
    at += SOUND["zip"].index(record)
    return SOUND["zip"][:at] + bytes([value]) + SOUND["zip"][at + 1 :]


ZIP_DAMAGE = {
    "encrypted": patched(8, 1),
    "patch data": patched(8, 0x20),
    "strong encryption": patched(8, 0x40),
    "deflated": patched(10, 8),
    "bzip2": patched(10, 12),
    "unknown method": patched(10, 99),
    "version": patched(6, 99),
    "name that is not UTF-8": patched(30, 0xC8, b"PK\x03\x04"),
}


@pytest.mark.parametrize("field", [20, 24])  # of the directory's entry: the sizes compressed and not
def test_a_zip_entry_that_is_larger_than_the_file_is_refused_unread(
    tmp_path: Path, bounded_memory: None, field: int
) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(patched(field + 3, 0x7F))  # of data.pkl: two gigabytes
    with pytest.raises(CheckpointError, match=r"x\.bin is truncated or corrupt: .*/data\.pkl reaches past its end"):
        read(file)


@pytest.mark.parametrize("damage", ZIP_DAMAGE)
def test_a_damaged_zip_is_refused(tmp_path: Path, refusal: Callable[..., str | None], damage: str) -> None:
    file = tmp_path / "damaged.bin"
    file.write_bytes(ZIP_DAMAGE[damage])
    assert str(file) in (refusal(read, file) or "")


def test_a_deeply_nested_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "nested.bin"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02})" + b"\x85" * 3000 + b"Ns.")
    with pytest.raises(CheckpointError, match=r"nested\.bin .* keys that are no names"):
        read(file)


@pytest.mark.parametrize("container", ["legacy", "zip"])
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damage_to_a_file_is_refused_or_harmless(
    container: str,
    scratch: Path,
    bounded_memory: None,
    damaged: Callable[..., st.SearchStrategy[bytes]],
    refusal: Callable[..., str | None],
    data: st.DataObject,
) -> None:
    file = scratch / "damaged.bin"
    file.write_bytes(data.draw(damaged(SOUND[container])))
    assert str(file) in (refusal(read, file) or str(file))


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damage_to_the_pickle_of_a_sound_zip_is_refused_or_harmless(
    scratch: Path,
    bounded_memory: None,
    damaged: Callable[..., st.SearchStrategy[bytes]],
    refusal: Callable[..., str | None],
    data: st.DataObject,
) -> None:
    file = scratch / "damaged.bin"
    file.write_bytes(SOUND["zip"])
    rewrite(file, lambda name, sound: data.draw(damaged(sound)) if name.endswith("data.pkl") else sound)
    assert str(file) in (refusal(read, file) or str(file))


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
    with pytest.raises(CheckpointError, match=r"x\.pt asks to import argparse\.Namespace"):
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
    with pytest.raises(CheckpointError, match=r"x\.pt asks to import megatron\.enums\.ModelType"):
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


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_of_torch_save_is_known_by_its_beginning(tmp_path: Path, container: str) -> None:
    for protocol in range(2, 6):
        torch.save(
            {"x": 1}, tmp_path / "x", pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip"
        )
        assert is_torch_file(tmp_path / "x")
        assert parts(tmp_path / "x") == {"x": 1}
    for data in (b"", b"PK\x03\x04", b"\x80", b"\x80\x02}.", bytes(64)):
        (tmp_path / "x").write_bytes(data)
        assert not is_torch_file(tmp_path / "x")
        assert parts(tmp_path / "x") == {}
    assert not is_torch_file(tmp_path)


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


@pytest.mark.parametrize("reader", [read, load])
@both
def test_an_integer_without_bounds_is_refused(tmp_path: Path, container: str, reader: Callable[[Path], Any]) -> None:
    for value in ({10**5000: torch.ones(2)}, {"n": -(10**5000)}):
        file = save(value, tmp_path / "digits.pt", container)
        with pytest.raises(CheckpointError, match=r"digits\.pt .*an integer of more than 256 bits"):
            reader(file)
