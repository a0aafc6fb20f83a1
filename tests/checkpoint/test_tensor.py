"""A lazy tensor gives exactly the bytes of its file, mapped or a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.tensor import CHUNK_BYTES, DTYPES, Computed, LazyTensor, row_major, to_float32, zeros
from converter.errors import CheckpointError

PREFIX = b"\xa5" * 13  # no tensor starts where its type would be aligned


def write(folder: Path, data: bytes) -> Path:
    file = folder / "weights.raw"
    file.write_bytes(PREFIX + data + b"\x5a" * 3)
    return file


def joined(tensor: LazyTensor) -> bytes:
    return b"".join(chunk.tobytes() for chunk in tensor.chunks())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 5, 3)], ids=str)
def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    data = np.random.default_rng(3).integers(0, 2 if dtype == "bool" else 256, size * DTYPES[dtype].itemsize, np.uint8)
    tensor = LazyTensor("x", dtype, shape, write(tmp_path, data.tobytes()), len(PREFIX))
    assert (tensor.size, tensor.nbytes) == (size, data.size)
    mapped = tensor.memmap()
    assert (mapped.shape, mapped.dtype, mapped.tobytes()) == (shape, DTYPES[dtype], data.tobytes())
    assert joined(tensor) == data.tobytes()
    assert all(chunk.dtype == DTYPES[dtype] and chunk.ndim == 1 for chunk in tensor.chunks())


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("beyond", [-1, 0, 1, CHUNK_BYTES // 8 + 1])
def test_a_tensor_around_and_over_one_chunk_comes_in_bounded_pieces(tmp_path: Path, dtype: str, beyond: int) -> None:
    count = CHUNK_BYTES // DTYPES[dtype].itemsize + beyond
    data = np.random.default_rng(count).bytes(count * DTYPES[dtype].itemsize)
    tensor = LazyTensor("x", dtype, (count,), write(tmp_path, data), len(PREFIX))
    assert joined(tensor) == data
    sizes = [chunk.nbytes for chunk in tensor.chunks()]
    assert max(sizes) <= CHUNK_BYTES
    assert len(sizes) == math.ceil(len(data) / CHUNK_BYTES)


def test_a_chunk_is_overwritten_by_the_next(tmp_path: Path) -> None:
    data = np.repeat(np.array([1, 2], np.uint8), CHUNK_BYTES)
    chunks = LazyTensor("x", "uint8", data.shape, write(tmp_path, data.tobytes()), len(PREFIX)).chunks()
    first = next(chunks)
    assert first[0] == 1
    next(chunks)
    assert first[0] == 2


@settings(deadline=None)
@given(data=st.data())
def test_any_strided_view_comes_back_bit_for_bit(
    scratch: Path,
    views: st.SearchStrategy[torch.Tensor],
    bits: Callable[[torch.Tensor], bytes],
    assert_same: Callable[..., None],
    data: st.DataObject,
) -> None:
    view = data.draw(views)
    storage = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
    offset = len(PREFIX) + view.storage_offset() * view.element_size()
    name = str(view.dtype).removeprefix("torch.")
    tensor = LazyTensor("x", name, tuple(view.shape), write(scratch, bits(storage)), offset, view.stride())
    assert_same({"x": tensor}, {"x": view})


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((700, 301), (1, 700)), ((150_001,), (2,)), ((400, 333), (0, 1)), ((90_001, 4), (0, 0))],
    ids=["transposed", "sliced", "expanded", "one element"],
)
def test_a_large_strided_view_comes_in_bounded_pieces(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.checkpoint.tensor.STRIDED_BYTES", CHUNK_BYTES)
    base = np.random.default_rng(5).standard_normal(310_000).astype(np.float32)
    view = np.lib.stride_tricks.as_strided(base, shape, [4 * step for step in strides])
    tensor = LazyTensor("x", "float32", shape, write(tmp_path, base.tobytes()), len(PREFIX), strides)
    pieces = [chunk.copy() for chunk in tensor.chunks()]
    assert len(pieces) > 1
    assert max(piece.nbytes for piece in pieces) <= CHUNK_BYTES
    np.testing.assert_array_equal(np.concatenate(pieces), view.ravel())


@pytest.mark.parametrize("strides", [None, (1, 2)], ids=["contiguous", "transposed"])
def test_writing_to_a_mapped_tensor_never_reaches_the_file(tmp_path: Path, strides: tuple[int, ...] | None) -> None:
    base = np.arange(6, dtype=np.float32)
    file = write(tmp_path, base.tobytes())
    before = file.read_bytes()
    tensor = LazyTensor("x", "float32", (2, 3), file, len(PREFIX), strides)
    mapped = tensor.memmap()
    mapped[1, 2] = -9
    assert mapped[1, 2] == -9
    del mapped
    assert file.read_bytes() == before
    assert tensor.memmap()[1, 2] == 5


def test_a_file_that_shrank_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "shrunk.raw"
    file.write_bytes(bytes(20))
    tensor = LazyTensor("h.1.ln_1.bias", "float32", (6,), file, 0)
    with pytest.raises(CheckpointError, match=r"shrunk\.raw ends within tensor h\.1\.ln_1\.bias"):
        joined(tensor)
    with pytest.raises(CheckpointError, match=r"shrunk\.raw: tensor h\.1\.ln_1\.bias cannot be mapped"):
        tensor.memmap()


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), max_size=4))
def test_row_major_strides_are_numpys(shape: list[int]) -> None:
    assert row_major(tuple(shape)) == tuple(step // 8 for step in np.empty(shape, np.float64).strides)


@pytest.mark.parametrize(
    ("name", "dtype", "bits"),
    [("bfloat16", ml_dtypes.bfloat16, np.uint16), ("float16", np.float16, np.uint16)],
)
def test_every_16_bit_float_widens_to_the_same_number(name: str, dtype: type, bits: type) -> None:
    every = np.arange(1 << 16, dtype=bits)
    widened = to_float32(every.view(DTYPES[name]), name)
    expected = every.view(dtype).astype(np.float32)
    assert widened.dtype == np.float32
    np.testing.assert_array_equal(widened, expected)  # NaN where NaN is
    np.testing.assert_array_equal(np.signbit(widened), np.signbit(expected))


def test_float32_stays_as_it_is() -> None:
    chunk = np.array([1.5, -0.0, np.nan], np.float32)
    assert to_float32(chunk, "float32") is chunk


def on_disk(tmp_path: Path, *shape: int) -> tuple[np.ndarray, LazyTensor]:
    array = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    return array, LazyTensor("x", "float32", shape, write(tmp_path, array.tobytes()), len(PREFIX))


def test_a_transposed_matrix_and_its_transpose_are_views_of_the_same_bytes(tmp_path: Path) -> None:
    array, tensor = on_disk(tmp_path, 5, 3)
    turned = tensor.transposed()
    assert turned.shape == (3, 5)
    assert not turned.in_file
    np.testing.assert_array_equal(turned.memmap(), array.T)
    np.testing.assert_array_equal(np.concatenate(list(turned.chunks())), array.T.ravel())
    assert turned.transposed() == tensor  # so that its bytes are copied and not computed


def test_parts_and_first_rows_of_what_is_stacked_lie_in_the_file_as_they_are(tmp_path: Path) -> None:
    array, tensor = on_disk(tmp_path, 4, 5, 3)
    for index in range(4):
        assert tensor.part(index).in_file
        np.testing.assert_array_equal(tensor.part(index).memmap(), array[index])
        np.testing.assert_array_equal(tensor.part(index).transposed().memmap(), array[index].T)
    np.testing.assert_array_equal(tensor.rows(2).memmap(), array[:2])
    np.testing.assert_array_equal(tensor.reshaped(20, 3).memmap(), array.reshape(20, 3))


def test_a_view_joins_dimensions_that_the_file_has_in_another_order(tmp_path: Path) -> None:
    """As q, k and v of each head side by side become q, k and v one after the other."""
    array, tensor = on_disk(tmp_path, 2, 3, 4, 5)  # head, part, width, input
    steps = (1, 20, 60, 5)
    joined_view = LazyTensor("x", "float32", (5, 24), tensor.file, tensor.offset, steps, view=(5, 3, 2, 4))
    expected = array.transpose(3, 1, 0, 2).reshape(5, 24)
    np.testing.assert_array_equal(joined_view.memmap(), expected)
    np.testing.assert_array_equal(np.concatenate(list(joined_view.chunks())), expected.ravel())
    turned = joined_view.transposed()
    assert turned.shape == (24, 5)
    np.testing.assert_array_equal(turned.memmap(), expected.T)
    np.testing.assert_array_equal(np.concatenate(list(turned.chunks())), expected.T.ravel())
    assert turned.transposed() == joined_view


def test_a_joined_view_comes_in_bounded_pieces_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.checkpoint.tensor.STRIDED_BYTES", 200)
    _, tensor = on_disk(tmp_path, 2, 3, 4, 5)
    steps = (1, 20, 60, 5)
    joined_view = LazyTensor("x", "float32", (5, 24), tensor.file, tensor.offset, steps, view=(5, 3, 2, 4))
    for view in (joined_view, joined_view.transposed()):
        chunks = list(view.chunks())
        assert max(chunk.nbytes for chunk in chunks) <= 200
        np.testing.assert_array_equal(np.concatenate(chunks), view.memmap().ravel())


def test_what_is_computed_comes_in_rows_and_is_never_asked_for_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.checkpoint.tensor.STRIDED_BYTES", 100)
    array, asked = np.arange(60, dtype=np.float32).reshape(12, 5), []

    def compute(first: int, end: int) -> np.ndarray:
        asked.append(end - first)
        return array[first:end]

    tensor = Computed("x", "float32", (12, 5), tmp_path / "nowhere", 0, compute=compute)
    np.testing.assert_array_equal(np.concatenate(list(tensor.chunks())), array.ravel())
    assert max(asked) == 5
    assert not tensor.in_file
    np.testing.assert_array_equal(tensor.memmap(), array)
    turned = tensor.transposed()
    assert (turned.shape, turned.in_file) == ((5, 12), False)
    np.testing.assert_array_equal(turned.memmap(), array.T)
    np.testing.assert_array_equal(np.concatenate(list(turned.chunks())), array.T.ravel())


def test_zeros_need_no_file(tmp_path: Path) -> None:
    tensor = zeros("bias", (7,), tmp_path / "nowhere")
    assert tensor.dtype == "float32"
    np.testing.assert_array_equal(tensor.memmap(), np.zeros(7))
    assert sum(len(chunk) for chunk in tensor.chunks()) == 7
