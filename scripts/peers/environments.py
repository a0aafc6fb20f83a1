"""Install each peer in an environment of its own, with the versions that are named here."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from processes import measure

from peers.errors import PeerError
from peers.running import THREADS, last_line, surroundings

INSTALL_SECONDS = 3600  # llama.cpp is compiled


@dataclass(frozen=True)
class Environment:
    """The packages of a peer. One of them may be compiled here; its source is kept beside it."""

    packages: tuple[str, ...]
    compiled: str = ""


TORCH = "torch==2.13.0"
ONNXRUNTIME = "onnxruntime==1.32.0"
GENAI = "onnxruntime-genai==0.18.0"
LLAMA = "llama-cpp-python==0.3.36"
ENVIRONMENTS = {
    # optimum-onnx needs accelerate; without it, it writes the token embedding twice
    "optimum": Environment(
        ("optimum-onnx[onnxruntime]==0.1.0", "transformers==4.57.6", "accelerate==1.15.0", TORCH, ONNXRUNTIME)
    ),
    "mobius": Environment(("mobius-onnx==0.1.0", "transformers==5.23.0", TORCH, ONNXRUNTIME, GENAI)),
    "ctranslate2": Environment(("ctranslate2==4.8.5", "transformers==5.23.0", TORCH)),
    "llama": Environment((LLAMA, "transformers==4.57.6", "sentencepiece==0.2.3", "protobuf", TORCH), compiled=LLAMA),
    "genai": Environment((GENAI, ONNXRUNTIME, "numpy==2.4.6")),
}
# Compiled for this processor, but without AMX: with AMX llama.cpp's quantized models ended in a segmentation fault.
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if platform.machine() in ("x86_64", "AMD64") else ""
COMPILER = {
    "CMAKE_ARGS": f"-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DCMAKE_C_FLAGS='{NO_AMX}' -DCMAKE_CXX_FLAGS='{NO_AMX}'",
    "CMAKE_BUILD_PARALLEL_LEVEL": str(THREADS),
}


def install(folder: Path, environment: Environment) -> None:
    """Make an environment with its packages, once."""
    done = folder / "installed.json"
    wanted = json.dumps(asdict(environment))
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    log = folder / "install.log"

    def run(*command: str | Path) -> None:
        try:
            measure([*map(str, command)], log=log, limit=INSTALL_SECONDS, env=surroundings(folder.name) | COMPILER)
        except (click.ClickException, OSError) as error:
            raise PeerError(f"its packages cannot be installed ({last_line(log)})") from error

    if not python.is_file():
        run(sys.executable, "-m", "venv", folder)
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check"]
    name = environment.compiled.partition("==")[0]
    from_source = ["--no-binary", name, "--no-cache-dir"] if name else []  # a cached wheel has other flags
    run(*pip, "install", "--quiet", *from_source, *environment.packages)
    if name and not (folder / "source").is_dir():
        run(*pip, "download", "--quiet", "--no-deps", *from_source, "--dest", folder, environment.compiled)
        unpack(next(folder.glob("*.tar.gz")), folder / "source")
    run(*pip, "freeze")
    shutil.copyfile(log, folder / "packages.txt")
    done.write_text(wanted, encoding="utf-8")


def unpack(archive: Path, out: Path) -> None:
    """Unpack a source package; its only folder becomes ``out``."""
    beside = out.with_name("unpacked")
    shutil.rmtree(beside, ignore_errors=True)
    with tarfile.open(archive) as opened:
        opened.extractall(beside, filter="data")
    next(beside.iterdir()).rename(out)
    beside.rmdir()
    archive.unlink()
