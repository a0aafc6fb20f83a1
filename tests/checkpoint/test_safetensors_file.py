"""The safetensors reader gives what the safetensors library saved, and refuses whatever breaks the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from converter.checkpoint.safetensors_file import MAX_HEADER_BYTES, read
from converter.errors import CheckpointError

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
SOUND = save({"h.0.ln_1.bias": torch.arange(3.0) + 1, "wte.weight": torch.arange(10.0).reshape(5, 2).half()})


def write(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


@settings(deadline=None)
@given(data=st.data())
def test_whatever_the_library_saves_reads_back_bit_for_bit(
    scratch: Path, views: st.SearchStrategy[torch.Tensor], assert_same: Callable[..., None], data: st.DataObject
) -> None:
    names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter("__metadata__".__ne__)
    tensors = data.draw(
        st.dictionaries(names, views.map(lambda view: view.clone(memory_format=torch.contiguous_format)), max_size=4)
    )
    tensors = {name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor) for name, tensor in tensors.items()}
    save_file(tensors, scratch / "model.safetensors", data.draw(st.none() | st.just({"format": "pt"})))
    assert_same(read(scratch / "model.safetensors"), tensors)


def test_metadata_is_not_a_tensor(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "m", {"dtype": "F32", "format": "pt"})
    assert list(read(tmp_path / "m")) == ["x"]


def test_the_order_of_header_entries_does_not_matter(tmp_path: Path) -> None:
    second = {"dtype": "I8", "shape": [3], "data_offsets": [8, 11]}
    found = read(write(tmp_path, {"b": second, "a": F32}, bytes(range(11))))
    assert found["b"].memmap().tolist() == [8, 9, 10]


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path, refusal: Callable[..., str | None]) -> None:
    file = tmp_path / "model.safetensors"
    for end in range(len(SOUND)):
        file.write_bytes(SOUND[:end])
        assert str(file) in (refusal(read, file) or ""), end


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sound: sound[:-1], r"is truncated: its header describes 32 bytes of tensors, the file holds 31"),
        (lambda sound: sound + b"\0", r"is too long: its header describes 32 bytes of tensors, the file holds 33"),
        (lambda sound: sound[:30], r"is truncated: its header should be \d+ bytes and ends after 22"),
        (lambda sound: sound[:5], r"is not a safetensors file"),
        (lambda sound: b"", r"is not a safetensors file"),
    ],
    ids=["data short", "data long", "header short", "length short", "empty"],
)
def test_a_file_of_another_length_is_refused_with_both_lengths(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(change(SOUND))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors {message}"):
        read(tmp_path / "model.safetensors")


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 1 << 63, (1 << 64) - 1])
def test_an_absurd_header_length_is_refused_unread(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError, match=rf"not a safetensors file.*{length}"):
        read(write(tmp_path, {"x": F32}, bytes(8), length=length))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "is not JSON"),
        (b"{'x': 1}", "is not JSON"),
        (b'{"x": ', "is not JSON"),
        (b"\xff\xfe\xfd", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        ([1], "is not a JSON object"),
        (b'"wte.weight"', "is not a JSON object"),
        (b"null", "is not a JSON object"),
    ],
    ids=["empty", "quotes", "unfinished", "no text", "nested", "list", "string", "null"],
)
def test_a_header_that_is_no_json_object_is_refused(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"model\.safetensors is corrupt: its header {message}"):
        read(write(tmp_path, header))


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    entry = json.dumps(F32)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt: its header names wte\.weight twice"):
        read(
            write(
                tmp_path, f'{{"wte.weight": {entry}, "wpe.weight": {entry}, "wte.weight": {entry}}}'.encode(), bytes(8)
            )
        )


def test_it_is_found_among_very_many_names(tmp_path: Path) -> None:
    """Counting each name anew took half a minute for 40,000, and grows by the square."""
    names = ", ".join(f'"{number}": 0' for number in (*range(250_000), 249_999))
    with pytest.raises(CheckpointError, match="its header names 249999 twice"):
        read(write(tmp_path, f"{{{names}}}".encode()))


@pytest.mark.parametrize(
    ("begin", "fault"),
    [
        (9, "leaves a gap before it at byte 9"),
        (7, "overlaps its neighbour at byte 7"),
        (0, "overlaps its neighbour at byte 0"),
    ],
)
def test_a_gap_and_an_overlap_are_refused(tmp_path: Path, begin: int, fault: str) -> None:
    second = {"dtype": "U8", "shape": [9], "data_offsets": [begin, begin + 9]}
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: corrupt header: tensor second {fault}"):
        read(write(tmp_path, {"first": F32, "second": second}, bytes(max(8, begin + 9))))


def test_data_that_starts_late_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tensor late leaves a gap before it at byte 4"):
        read(write(tmp_path, {"late": F32 | {"data_offsets": [4, 12]}}, bytes(12)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [3]}, r"tensor x of float32 \[3\] cannot take 8 bytes"),
        ({"dtype": "F16"}, r"tensor x of float16 \[2\] cannot take 8 bytes"),
        ({"shape": [1 << 62, 4]}, r"tensor x of float32 \[4611686018427387904, 4\] cannot take 8 bytes"),
        ({"data_offsets": [8, 0]}, r"tensor x of float32 \[2\] cannot take -8 bytes"),
    ],
    ids=["shape", "dtype", "overflow", "backwards"],
)
def test_a_size_that_contradicts_type_and_shape_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"model\.safetensors is corrupt: {message}"):
        read(write(tmp_path, {"x": F32 | change}, bytes(8)))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4", "U16", "f32", ""])
def test_a_type_no_gpt2_is_trained_in_is_named(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"model\.safetensors: tensor h\.0 is of type {dtype}, .*F32, F16 or BF16"
    ):
        read(write(tmp_path, {"h.0": F32 | {"dtype": dtype}}, bytes(8)))


@pytest.mark.parametrize(
    "entry",
    [
        None, 5, "F32", [], {}, {"dtype": "F32"}, {"dtype": "F32", "shape": [2]},
        F32 | {"shape": None}, F32 | {"shape": 2}, F32 | {"shape": ["2"]}, F32 | {"shape": [-2]},
        F32 | {"shape": [2.0]}, F32 | {"shape": [2, True]}, F32 | {"shape": [[2]]},
        F32 | {"data_offsets": [0]}, F32 | {"data_offsets": [0, 8, 8]}, F32 | {"data_offsets": [-8, 0]},
        F32 | {"data_offsets": [0, 8.0]}, F32 | {"data_offsets": None}, F32 | {"data_offsets": {"begin": 0, "end": 8}},
        F32 | {"dtype": None},
        F32 | {"dtype": ["F32"]},
        F32 | {"dtype": {}},
        {"dtype": "F64", "shape": {}, "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": "", "data_offsets": [0, 8]},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_malformed_entry_is_refused_by_name(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors.* tensor wpe\.weight is"):
        read(write(tmp_path, {"wpe.weight": entry}, bytes(8)))


def test_a_number_of_five_thousand_digits_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": F32}).replace("[2]", f"[{'1' * 5000}]").encode()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt"):
        read(write(tmp_path, header, bytes(8)))


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    scratch: Path,
    bounded_memory: None,
    damaged: Callable[..., st.SearchStrategy[bytes]],
    refusal: Callable[..., str | None],
    data: st.DataObject,
) -> None:
    file = scratch / "damaged.safetensors"
    file.write_bytes(data.draw(damaged(SOUND)))
    assert str(file) in (refusal(read, file) or str(file))


HEADER_PARTS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 20) | st.floats() | st.sampled_from(["F32", "BOOL", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*F32, "__metadata__"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@example(header={"x": F32 | {"dtype": []}})
@given(
    header=HEADER_PARTS | st.dictionaries(st.text(max_size=3), st.fixed_dictionaries(dict.fromkeys(F32, HEADER_PARTS)))
)
def test_any_json_for_a_header_is_refused_or_read(
    scratch: Path, refusal: Callable[..., str | None], header: Any
) -> None:
    file = write(scratch, header, bytes(8))
    message = refusal(read, file)
    assert message is None or str(file) in message
    assert message is not None or sum(tensor.nbytes for tensor in read(file).values()) == 8
