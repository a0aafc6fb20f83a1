"""Weights move to large pages once a model has run for a while, and stay what they are."""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from converter.runtime import huge_pages, opening
from converter.runtime.huge_pages import AFTER_STEPS, PAGE, Mover, collapse, regions
from converter.runtime.opening import load

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lists a process's memory")


def huge_bytes() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("AnonHugePages:"))


@linux
def test_memory_that_came_since_is_found_in_whole_pages() -> None:
    before = regions()
    with mmap.mmap(-1, 40 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        new = [region for region in regions() - before if region[0] <= address + PAGE and address < region[1]]
    assert new
    assert all(begin % PAGE == end % PAGE == 0 and end - begin >= 32 << 20 for begin, end in new)


@linux
def test_memory_of_files_and_small_memory_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(40 << 20))
    before = regions()
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
        small = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[0] = small[0] = 1
        assert regions() == before


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or tuple(map(int, platform.release().split(".")[:2])) < (6, 1),
    reason="Linux 6.1 brought MADV_COLLAPSE",
)
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="no large pages in this kernel")
def test_a_region_moves_and_its_bytes_stay() -> None:
    memory = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    numbers = np.frombuffer(memory, np.uint8)
    numbers[:] = np.arange(len(numbers)) % 251
    address = numbers.ctypes.data
    region = -(-address // PAGE) * PAGE, (address + len(numbers)) // PAGE * PAGE
    before = huge_bytes()
    if not collapse(region):
        pytest.skip("the kernel has no large page to spare")
    assert huge_bytes() >= before + (region[1] - region[0]) // 2
    np.testing.assert_array_equal(numbers, np.arange(len(numbers)) % 251)


def test_a_region_that_is_not_there_is_no_error() -> None:
    assert not collapse((0, PAGE))


def test_weights_move_once_after_so_many_steps(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[huge_pages.Region] = []
    monkeypatch.setattr(huge_pages, "collapse", lambda region: moved.append(region) or True)
    monkeypatch.setattr(huge_pages, "regions", lambda: frozenset([(0, PAGE), (PAGE, 2 * PAGE)]))
    monkeypatch.setattr(opening, "regions", lambda: frozenset([(0, PAGE)]))
    model = load(bundled, large_pages=True)
    model.generate("The", max_new_tokens=AFTER_STEPS - 1)
    assert not moved
    model.generate("The", max_new_tokens=AFTER_STEPS)
    assert isinstance(model.mover, Mover)
    assert model.mover.thread is not None
    model.mover.thread.join()
    assert moved == [(PAGE, 2 * PAGE)]


def test_a_program_that_loads_a_model_keeps_its_memory_as_it_is(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "collapse", lambda region: pytest.fail("memory was moved"))
    model = load(bundled)
    assert model.mover is None
    model.generate("The", max_new_tokens=AFTER_STEPS + 8)
