"""Feed damaged files to the readers, guided by the code that they run (atheris, which is libFuzzer for Python).

    pip install atheris
    python scripts/fuzz.py safetensors --seconds 600    # one reader
    python scripts/fuzz.py --seconds 60                 # all of them, one after the other

A finding is an error that is none of ours, or an input that takes more than two seconds or half a gigabyte. It is
printed with its traceback and written to a file, and the script ends with 1. Inputs that reach new code are kept in
build/fuzz; tests/fuzzing/corpus has the few to begin with, which the tests read, too.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
CORPUS, KEPT = ROOT / "tests" / "fuzzing" / "corpus", ROOT / "build" / "fuzz"

SLOW_SECONDS, LARGE_MB, BASE_MB = 2, 500, 300  # what reading may take, and the memory of the libraries themselves
TRIES = 3  # the first reading imports modules, and a busy machine once counted 2.7 s for what takes 4 ms
HANG_SECONDS = 60  # by the clock, so that a search beside other work ends only for an input that really hangs
LONGEST = 4096  # bytes of an input: structure, and not size, is what is searched

CONFIG = {"model_type": "gpt2", "vocab_size": 3, "n_positions": 2, "n_embd": 2, "n_layer": 1, "n_head": 1, "n_inner": 3}

Read = Callable[[Path, bytes], object]


def file(name: str) -> Read:
    """The input is a file of weights beside a config."""

    def read(here: Path, data: bytes) -> None:
        (here / "config.json").write_text(json.dumps(CONFIG))
        (here / name).write_bytes(data)
        read_source(here)

    return read


def alone(name: str) -> Read:
    """The input is a file by itself."""

    def read(here: Path, data: bytes) -> None:
        (here / name).write_bytes(data)
        read_source(here / name)

    return read


STORAGES = 8  # of an archive


def pickled(name: str, beside_config: bool) -> Read:
    """The input is the pickle in an archive of torch, whose checksum would not survive."""

    def read(here: Path, data: bytes) -> None:
        if beside_config:
            (here / "config.json").write_text(json.dumps(CONFIG))
        with zipfile.ZipFile(here / name, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            for key in range(STORAGES):
                archive.writestr(f"archive/data/{key}", bytes(64))
        if beside_config:
            read_source(here)
        for activation in (None, "gelu") if not beside_config else ():  # nanoGPT records none, Megatron-LM does
            with suppressed():
                read_source(here / name, activation)

    return read


def read_source(path: Path, activation: str | None = None) -> None:
    """Read a source, its tokenizer and the first numbers of each tensor."""
    from converter import tokenizer
    from converter.checkpoint.options import SourceOptions
    from converter.weights import ledger

    checkpoint, found = ledger.read_source(path, SourceOptions(activation=activation))
    for weight in found.weights.values():
        next(iter(weight.chunks()), None)
    tokenizer.from_source(checkpoint.companions, checkpoint.tokenizer)


def openai(here: Path, data: bytes) -> None:
    """The input is an index without checksums, which would not survive."""
    from converter.checkpoint import openai as reader

    sizes = {"n_vocab": 3, "n_ctx": 2, "n_embd": 2, "n_head": 1, "n_layer": 1}
    (here / "hparams.json").write_text(json.dumps(sizes))
    (here / "model.ckpt.index").write_bytes(data)
    (here / "model.ckpt.data-00000-of-00001").write_bytes(bytes(512))
    with mock.patch.multiple(reader, crc32c=lambda _: 0, unmasked=lambda _: 0):
        read_source(here)


def adapter(here: Path, data: bytes) -> None:
    """The input is the weights of an adapter, after its config and a zero byte."""
    from converter.checkpoint.open import open_checkpoint
    from converter.checkpoint.options import SourceOptions

    shutil.copytree(made(), here / "base", symlinks=True)
    (here / "adapter").mkdir()
    config, _, weights = data.partition(b"\0")
    (here / "adapter" / "adapter_config.json").write_bytes(config)
    (here / "adapter" / "adapter_model.safetensors").write_bytes(weights)
    open_checkpoint(here / "base" / "source", SourceOptions(adapter=str(here / "adapter")))


def manifest(here: Path, data: bytes) -> None:
    """The input is the manifest of a model folder."""
    from converter.cli import inspect_folder
    from converter.folder import certificate
    from converter.runtime.opening import model_file

    out = shutil.copytree(made() / "out", here / "out", symlinks=True)
    (out / "gpt2onnx.json").write_bytes(data)
    if inspect_folder.holds_model(out):
        inspect_folder.print_folder(out, inspect_folder.folder_facts(out))
    model_file(out)
    certificate.verify(out)


def onnx(here: Path, data: bytes) -> None:
    """The input is a graph: what is read of it before ONNX Runtime opens it."""
    from converter.checkpoint.config import parse_config
    from converter.runtime import in_place
    from converter.runtime.exports.open import read_export
    from converter.runtime.external import refuse_outside
    from converter.runtime.gpu import graph

    file = here / "model.onnx"
    file.write_bytes(data)
    for read in (
        lambda: refuse_outside(str(file), here),
        lambda: in_place.rewritten(file),
        lambda: graph.rewritten(file),
        lambda: read_export(file, parse_config(CONFIG, here / "config.json")),
    ):
        with suppressed():  # what one of them refuses, another may read
            read()


def prompts(here: Path, data: bytes) -> None:
    """The input is a file of prompts, and one of texts."""
    from converter.texts import read_prompts, read_texts

    (here / "x.jsonl").write_bytes(data)
    for read in (read_texts, read_prompts):
        with suppressed():
            read(here / "x.jsonl")


def tokenizer(here: Path, data: bytes) -> None:
    """The input is a tokenizer."""
    from converter.tokenizer import load

    (here / "tokenizer.json").write_bytes(data)
    load(here)


def generation_config(here: Path, data: bytes) -> None:
    """The input says how to generate."""
    from converter.runtime.generation_config import GenerationConfig

    (here / "generation_config.json").write_bytes(data)
    found = GenerationConfig.read(here)
    found.left_aside(found.with_given({}))


def config(here: Path, data: bytes) -> None:
    """The input is a config."""
    from converter.checkpoint.config import dead_keys, parse_config
    from converter.files import read_json

    (here / "config.json").write_bytes(data)
    values = read_json(here / "config.json")
    parse_config(values, here / "config.json")
    dead_keys(values)


def index(here: Path, data: bytes) -> None:
    """The input is an index of shards."""
    (here / "config.json").write_text(json.dumps(CONFIG))
    shutil.copy(made() / "source" / "model.safetensors", here / "a.safetensors")
    (here / "model.safetensors.index.json").write_bytes(data)
    read_source(here)


READERS: dict[str, Read] = {
    "safetensors": file("model.safetensors"),
    "torch": file("pytorch_model.bin"),
    "pickle": pickled("pytorch_model.bin", beside_config=True),
    "training": pickled("ckpt.pt", beside_config=False),  # nanoGPT, Megatron-LM, and state dicts beside a state
    "megatron": alone("model_optim_rng.pt"),
    "gguf": alone("model.gguf"),
    "h5": file("tf_model.h5"),
    "msgpack": file("flax_model.msgpack"),
    "llmc": alone("model.bin"),
    "openai": openai,
    "adapter": adapter,
    "config": config,
    "index": index,
    "manifest": manifest,
    "onnx": onnx,
    "prompts": prompts,
    "tokenizer": tokenizer,
    "generation_config": generation_config,
}


def suppressed() -> contextlib.suppress:
    """Return what lets our own errors pass."""
    from reference.errors import GPT2Error

    return contextlib.suppress(GPT2Error)


@functools.cache
def made() -> Path:
    """Return a folder with a small source and its conversion, which no input changes."""
    import numpy as np
    from safetensors.numpy import save_file

    from converter import convert
    from converter.checkpoint.config import parse_config
    from converter.weights.table import parameters

    place = Path(tempfile.mkdtemp(prefix="gpt2onnx-fuzz-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    source = place / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    rows = parameters(parse_config(CONFIG, source / "config.json"))
    weights = {f"transformer.{name}": np.ones(shape, np.float32) for name, _, shape in rows}
    save_file(weights, source / "model.safetensors")
    convert(source, place / "out")
    return place


def try_one(name: str, data: bytes) -> None:
    """Give an input to a reader. Anything but an error of ours is a finding, and so is what is slow again and again."""
    for _ in range(TRIES):
        taken = read_once(name, data)
        if taken <= SLOW_SECONDS:
            return
    raise TimeoutError(f"{name}: {len(data)} bytes took {taken:.1f} s of processor time")


def read_once(name: str, data: bytes) -> float:
    """Give an input to a reader; returns the seconds of processor time that it took."""
    begin = time.process_time()
    with tempfile.TemporaryDirectory(prefix="gpt2onnx-fuzz-", dir=SHARED if SHARED.is_dir() else None) as folder:
        with suppressed():
            READERS[name](Path(folder), data)
    return time.process_time() - begin


SHARED = Path("/dev/shm")  # in memory, where there is one


def fuzz(name: str, seconds: int) -> None:
    """Search in this process; it ends with it."""
    import atheris

    with atheris.instrument_imports(include=["converter", "reference"]):
        import converter.checkpoint.open
        import converter.cli.inspect_folder
        import converter.runtime.exports.open
        import converter.runtime.generation_config
        import converter.runtime.in_place
        import converter.tokenizer
        import converter.weights.ledger  # noqa: F401
    made()
    kept = KEPT / name
    kept.mkdir(parents=True, exist_ok=True)
    limits = {
        "max_total_time": seconds,
        "max_len": LONGEST,
        "timeout": HANG_SECONDS,
        "rss_limit_mb": BASE_MB + LARGE_MB,
        "artifact_prefix": f"{kept}-",
        "print_final_stats": 1,
    }
    options = [f"-{key}={value}" for key, value in limits.items()]
    atheris.Setup([sys.argv[0], *options, str(kept), str(CORPUS / name)], lambda data: try_one(name, data))
    atheris.Fuzz()


@click.command(help=__doc__)
@click.argument("readers", nargs=-1, type=click.Choice(list(READERS)))
@click.option("--seconds", default=60, show_default=True, help="For each reader.")
def main(readers: tuple[str, ...], seconds: int) -> None:
    if len(readers) == 1:
        os.environ["GPT2ONNX_NO_SYNC"] = "1"
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            fuzz(readers[0], seconds)
    failed = [
        name
        for name in readers or READERS
        if subprocess.run([sys.executable, __file__, name, "--seconds", str(seconds)], check=False).returncode
    ]
    if failed:
        sys.exit(f"findings in {', '.join(failed)}; the inputs are beside {KEPT}/")


if __name__ == "__main__":
    main()
