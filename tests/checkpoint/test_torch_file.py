"""The torch reader gives what torch.save wrote, in both containers, and refuses what is no state dict."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.torch_file import is_torch_file, parts, read
from converter.errors import CheckpointError
from tests.checkpoint.torch_files import CONTAINERS, Calls, both, refused, save

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")


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


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.complex128, "ComplexDoubleStorage"), (torch.float8_e4m3fn, "_rebuild_tensor_v3")]
)
def test_a_type_that_is_not_read_is_named(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    refused({"x": torch.ones(3).to(dtype)}, rf"asks to import torch.*\.{name};", tmp_path / "x.bin", "zip")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"wte.weight": torch.ones(2), "epoch": 3}, "holds 'epoch', which is not a tensor"),
        ({"model": [{"wte.weight": torch.ones(2)}], "epoch": 3}, "holds 'model', which is not a tensor"),
        ({"a": {"x": torch.ones(2)}, "b": {"x": torch.ones(2)}}, r"several state dicts \('a', 'b'\); save the one"),
        ({7: torch.ones(2)}, "holds 7, which is not a tensor"),
        ({"x": None}, "holds 'x', which is not a tensor"),
        ([torch.ones(2)], "holds a list; expected a state dict"),
        (torch.ones(2), "expected a state dict"),
        (5, "holds a int; expected a state dict"),
        (None, "holds a NoneType; expected a state dict"),
    ],
    ids=["epoch", "trainer", "several", "number", "null", "list", "tensor", "int", "none"],
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


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x03\x04", b"<html>", b"version https://git-lfs", bytes(64)])
def test_a_file_of_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.bin is "):
        read(tmp_path / "x.bin")


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
