"""A pickle executes nothing, and one that asks for more than plain tensors is refused by name."""

from __future__ import annotations

import os
import re
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.checkpoint.torch_file import load, read
from converter.errors import CheckpointError
from tests.checkpoint.torch_files import LAUGHS, Calls, both, refused, save

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")


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
    message = (
        r"asks to import torch\.nn\.modules\.linear\.Linear; .*save model\.state_dict\(\) with torch\.save instead"
    )
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
    with pytest.raises(CheckpointError, match=r"build\.bin .*attributes for an object that has none"):
        read(file)


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


def test_a_deeply_nested_key_is_dropped_unhashed(tmp_path: Path) -> None:
    file = tmp_path / "nested.bin"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02})" + b"\x85" * 3000 + b"Ns.")
    assert read(file) == {}


@pytest.mark.parametrize("reader", [read, load])
@both
def test_an_integer_without_bounds_is_refused(tmp_path: Path, container: str, reader: Callable[[Path], Any]) -> None:
    for value in ({10**5000: torch.ones(2)}, {"n": -(10**5000)}):
        file = save(value, tmp_path / "digits.pt", container)
        with pytest.raises(CheckpointError, match=r"digits\.pt .*an integer of more than 256 bits"):
            reader(file)
