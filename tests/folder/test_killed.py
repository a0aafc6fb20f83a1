"""A process that is killed leaves a folder as it was before, or as it is after, and never in between.

``strace`` kills it as it changes the file system. By default at a few calls; ``pytest -m sweep`` at every one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from converter.folder.convert import convert
from converter.folder.save import to_huggingface
from converter.folder.staging import counts, settle
from tests.cli.commands import ROOT
from tests.conftest import random_gpt2

STRACE = shutil.which("strace")
pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")

RENAMES = ("rename", "renameat", "renameat2")
REMOVALS = ("rmdir", "unlink", "unlinkat")
CHANGES = (*RENAMES, *REMOVALS, "mkdir", "link", "linkat", "symlink", "symlinkat", "fsync", "ftruncate")

Tree = dict[str, str]


def tree(folder: Path) -> Tree:
    """Every file and link of a folder, but for what a killed process left."""
    names = [path for path in folder.rglob("*") if counts(path.relative_to(folder).as_posix())]
    links = {str(path.relative_to(folder)): os.readlink(path) for path in names if path.is_symlink()}
    files = [path for path in names if path.is_file() and not path.is_symlink()]
    return links | {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def leftovers(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if not counts(path.name)]


@dataclass(frozen=True)
class Operation:
    """Something that changes the folder ``changed``.

    Attributes:
        begin: makes what is there before, in an empty folder with a source.
        code: the operation. It is run in that folder.
        again: the same, where what is done already may be replaced.
        changed: the folder; in one that is changed from within, the next command finishes what was ready.
    """

    begin: Callable[[Path], object]
    code: str
    again: str
    changed: str = "out"

    @property
    def within(self) -> bool:
        return self.changed == "source" or "certificate" in self.code


CONVERT = "from converter import convert; convert('source', {})"
HF = "from converter import to_huggingface; to_huggingface('source', 'out', {})"
CERTIFY = """
from converter.files import read_json
from converter.folder.certificate import write
from pathlib import Path
values = read_json(Path('out/gpt2onnx.json')) | {'model': 'new'}
write(Path('out'), [], True, 'a match', {}, values, {'README.md': 'new'})
"""
OPERATIONS = {
    "convert": Operation(lambda here: None, CONVERT.format("'out'"), CONVERT.format("'out', force=True")),
    "convert --force": Operation(
        lambda here: convert(here / "source", here / "out"), *[CONVERT.format("'out', opset=17, force=True")] * 2
    ),
    "another precision": Operation(
        lambda here: convert(here / "source", here / "out"),
        CONVERT.format("'out', precision='int8'"),
        CONVERT.format("'out', precision='fp32,int8', force=True"),
    ),
    "convert --in-place": Operation(
        lambda here: None, CONVERT.format("in_place=True"), CONVERT.format("in_place=True, force=True"), "source"
    ),
    "convert --in-place --force": Operation(
        lambda here: convert(here / "source", in_place=True),
        *[CONVERT.format("in_place=True, opset=17, force=True")] * 2,
        changed="source",
    ),
    "convert --to hf": Operation(lambda here: None, HF.format(""), HF.format("force=True")),
    "convert --to hf --force": Operation(
        lambda here: to_huggingface(here / "source", here / "out"),
        *[HF.format("max_shard_size='2KB', force=True")] * 2,
    ),
    "check": Operation(lambda here: convert(here / "source", here / "out"), CERTIFY, CERTIFY),
}


@dataclass(frozen=True)
class Prepared:
    """An operation, and what it did when it was let.

    Attributes:
        place: a folder in which it can be run again.
        before, after: the content of the folder that it changes.
        order: its calls, of all threads.
        calls: how often a thread made each of them, at most.
    """

    operation: Operation
    place: Path
    before: Tree
    after: Tree
    order: tuple[str, ...]
    calls: Counter[str]

    def kill(self, place: Path, call: str, number: int) -> None:
        """Kill the operation at its ``number``-th ``call`` in a copy, and look at what is left."""
        shutil.copytree(self.place, place, symlinks=True)
        done = run(self.operation.code, place, f"--inject={call}:signal=KILL:when={number}")
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), (done.returncode, done.stderr)
        changed = place / self.operation.changed
        if self.operation.within:
            settle(changed)
            assert not leftovers(place), "the next command removes what is left"
        assert tree(changed) in (self.before, self.after), (call, number)
        assert run(self.operation.again, place).returncode == 0
        assert (tree(changed), leftovers(place)) == (self.after, [])


def run(code: str, place: Path, *inject: str) -> subprocess.CompletedProcess[str]:
    """Run a program in ``place`` under strace, which counts calls for each thread and kind by itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(STRACE), "-f", "-qq", "-o", "/dev/stdout", f"--trace={','.join(CHANGES)}", *inject]
    return subprocess.run(
        [*command, sys.executable, "-c", code],
        capture_output=True, text=True, check=False, cwd=place, env=environment | {"GPT2ONNX_NO_SYNC": ""},
    )  # fmt: skip


@pytest.fixture(scope="module", params=OPERATIONS)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    place = tmp_path_factory.mktemp("killed") / "place"
    place.mkdir()
    random_gpt2().save_pretrained(place / "source")
    operation = OPERATIONS[request.param]
    operation.begin(place)
    untouched = shutil.copytree(place, place.with_name("untouched"), symlinks=True)
    before = tree(place / operation.changed)
    done = run(operation.code, place)
    if done.returncode and "Operation not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    after = tree(place / operation.changed)
    assert after != before
    traced = re.findall(r"^(\d+) +(\w+)\(", done.stdout, re.MULTILINE)
    calls: Counter[str] = Counter()
    for (_, call), number in Counter(traced).items():
        calls[call] = max(calls[call], number)
    return Prepared(operation, untouched, before, after, tuple(call for _, call in traced), calls)


def points(prepared: Prepared, kinds: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    return ((kind, number) for kind in kinds for number in range(1, prepared.calls[kind] + 1))


def test_killed_at_the_last_renames_a_folder_is_as_before_or_after(prepared: Prepared, tmp_path: Path) -> None:
    for call, number in [*points(prepared, RENAMES)][-2:]:
        prepared.kill(tmp_path / f"{call}-{number}", call, number)


@pytest.mark.sweep
def test_killed_at_any_change_a_folder_is_as_before_or_after(prepared: Prepared, tmp_path: Path) -> None:
    for call, number in points(prepared, CHANGES):
        prepared.kill(tmp_path / f"{call}-{number}", call, number)
        shutil.rmtree(tmp_path / f"{call}-{number}")


def test_files_are_on_the_disk_before_a_rename_shows_them_and_old_ones_go_after_that(prepared: Prepared) -> None:
    shown = next(place for place, call in enumerate(prepared.order) if call in RENAMES)
    new = [
        name for name, content in prepared.after.items() if prepared.before.get(name) != content and len(content) == 64
    ]
    assert prepared.order[:shown].count("fsync") > len(new)
    later = prepared.order[shown:]
    assert "fsync" in later
    removed = [place for place, call in enumerate(later) if call in REMOVALS]
    assert not removed or later.index("fsync") < removed[0]
