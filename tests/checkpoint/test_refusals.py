"""Of every format: what is encrypted, cut short, or asks for absurd sizes is refused in one sentence, and at once."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.errors import CheckpointError, GPT2Error
from converter.folder.convert import convert
from converter.weights.ledger import account
from tests.checkpoint.writers import gguf_files as gguf
from tests.checkpoint.writers import megatron, nanogpt
from tests.checkpoint.writers.matrix import ROWS, Case, Row, as_openai, saved

every_format = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def files_of(case: Case) -> list[Path]:
    """The files that hold weights or lead to them."""
    source = case.options.get("adapter", case.source)
    if source.is_file():
        return [source]
    return [file for file in sorted(source.iterdir()) if file.suffix not in (".json", ".md")]


def refusal(case: Case) -> str:
    """What is said of a source that is refused."""
    with pytest.raises(GPT2Error) as error:
        account(open_checkpoint(case.source, SourceOptions(**case.options)))
    return str(error.value)


def encrypt(file: Path) -> None:
    file.write_bytes(random.Random(0).randbytes(file.stat().st_size))


def scan_of(case: Case) -> str:
    """What is said of OpenAI's data, which has no structure: only its numbers show that they are none of a GPT-2."""
    with pytest.raises(CheckpointError, match=r"holds (nan|-?inf) at") as error:
        convert(case.source, case.source / "out")
    return str(error.value)


@every_format
def test_an_encrypted_file_is_refused_by_name(tmp_path: Path, row: Row) -> None:
    case = row.make(tmp_path, True, True)
    for file in files_of(case):
        sound = file.read_bytes()
        encrypt(file)
        message = refusal(case) if ".data-" not in file.name else scan_of(case)
        assert str(file.parent) in message
        assert "\n" not in message
        file.write_bytes(sound)


@every_format
def test_a_file_that_ends_early_is_refused_by_name(tmp_path: Path, row: Row) -> None:
    case = row.make(tmp_path, True, True)
    for file in files_of(case):
        sound = file.read_bytes()
        for end in (0, 1, 8, 100, len(sound) // 2, len(sound) - 1):
            file.write_bytes(sound[:end])
            message = refusal(case)
            assert file.name.partition(".data-")[0] in message
            assert "\n" not in message
        file.write_bytes(sound)


# --- absurd sizes

ABSURD = (10**9, 10**12, 12 * 10**12, 2**62, 12 * 10**40)
SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")

# In a process that may take a quarter of a gigabyte more than it has, and some seconds in all.
OPEN = """
import json, resource, sys
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.errors import GPT2Error
from converter.weights.ledger import account
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 28),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for source in sys.argv[1:]:
    try:
        account(open_checkpoint(source, SourceOptions(activation="gelu" if source.endswith("ckpt.pt") else None)))
    except GPT2Error as error:
        print(json.dumps([source, str(error)]))
"""


def assert_refused(sources: list[Path]) -> None:
    done = subprocess.run([sys.executable, "-c", OPEN, *sources], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    messages = dict(json.loads(line) for line in done.stdout.splitlines())
    assert list(messages) == [str(source) for source in sources]
    for source, message in messages.items():
        assert source in message
        assert len(message) < len(source) + 350


def with_sizes(make: Callable[[Path, dict[str, int]], Path], folder: Path, **names: str) -> list[Path]:
    """A source for every size in turn, as the format calls it, and every absurd value."""
    found = []
    for name, own in names.items():
        for i, value in enumerate(ABSURD):
            place = folder / f"{name}-{i}"
            place.mkdir()
            found.append(make(place, {own: value}))
    return found


def rewrite_json(file: Path, change: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def test_absurd_sizes_in_a_config_are_refused_at_once(tmp_path: Path) -> None:
    def make(folder: Path, change: dict[str, int]) -> Path:
        saved(folder, True, True)
        rewrite_json(folder / "config.json", change)
        return folder

    assert_refused(with_sizes(make, tmp_path, **dict(zip(SIZES, SIZES, strict=True))))


def test_absurd_sizes_in_hparams_are_refused_at_once(tmp_path: Path) -> None:
    def make(folder: Path, change: dict[str, int]) -> Path:
        found = as_openai(folder, True, True).source
        rewrite_json(found / "hparams.json", change)
        return found

    names = dict(zip(SIZES, ("n_vocab", "n_ctx", "n_embd", "n_layer", "n_head"), strict=False))
    assert_refused(with_sizes(make, tmp_path, **names))


def test_absurd_sizes_in_training_arguments_are_refused_at_once(tmp_path: Path) -> None:
    def nano(folder: Path, change: dict[str, int]) -> Path:
        return nanogpt.save(nanogpt.checkpoint(nanogpt.state_dict(bias=False), bias=False, **change), folder)

    def mega(folder: Path, change: dict[str, int]) -> Path:
        state = megatron.layers(megatron.NEW, bias=False)
        return megatron.save(megatron.checkpoint(state, add_bias_linear=False, kv_channels=None, **change), folder)

    names = dict(zip(SIZES, ("vocab_size", "block_size", "n_embd", "n_layer", "n_head"), strict=False))
    arguments = ("padded_vocab_size", "max_position_embeddings", "hidden_size", "num_layers", "num_attention_heads",
                 "ffn_hidden_size")  # fmt: skip
    (tmp_path / "mega").mkdir()
    sources = with_sizes(nano, tmp_path, **names)
    assert_refused(sources + with_sizes(mega, tmp_path / "mega", **dict(zip(SIZES, arguments, strict=True))))


@pytest.mark.parametrize("size", ["n_positions", "n_embd", "n_layer", "n_head"])
def test_absurd_sizes_in_a_gguf_header_are_refused_at_once(tmp_path: Path, size: str) -> None:
    sources = []
    for value in (10**9, 2**29, 12 * 10**7):  # its numbers have 32 bits, and the width of the MLP is four times that
        found = gguf.writer(tmp_path / f"{value}.gguf", **{size: value})
        for name, array in gguf.arrays(gguf.random_gpt2()).items():
            found.add_tensor(name, np.ascontiguousarray(array))
        gguf.finish(found)
        sources.append(tmp_path / f"{value}.gguf")
    assert_refused(sources)
