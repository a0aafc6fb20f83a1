"""A zip or legacy file that is truncated, damaged or malformed is refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.torch_file import LEGACY_MAGIC, LEGACY_PROTOCOL, load, read
from converter.errors import CheckpointError
from tests.checkpoint.torch_files import CONTAINERS, both, rewrite, save


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
