"""Name the candidates: how each model is converted, and which worker runs it in which environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from peers.running import HERE

WORKERS = Path(__file__).resolve().parent / "workers"


@dataclass(frozen=True)
class Model:
    """How to convert a model. {bin}, {python}, {environment}, {source} and {out} are filled in."""

    environment: str
    command: tuple[str, ...]
    files: tuple[str, ...] = ("**/*",)  # the files that count as its size on disk


def ours(precision: str, suffix: str) -> Model:
    command = ("{python}", "-m", "converter.cli", "convert", "{source}", "{out}", "-q")
    # A folder may hold several precisions. Only the files of this one count.
    return Model(HERE, (*command, "--precision", precision), (f"onnx/model{suffix}.onnx*",))


def llama(variant: str) -> Model:
    script = "{environment}/source/vendor/llama.cpp/convert_hf_to_gguf.py"
    return Model("llama", ("{python}", str(WORKERS / "convert_llama.py"), script, "{source}", "{out}", variant))


def ctranslate2(variant: str) -> Model:
    command = ("{bin}/ct2-transformers-converter", "--model", "{source}", "--output_dir", "{out}")
    return Model("ctranslate2", (*command, "--quantization", variant))


OPTIMUM = ("{bin}/optimum-cli", "export", "onnx", "--model", "{source}", "--task", "text-generation-with-past", "{out}")
MOBIUS = ("{bin}/mobius", "build", "--config", "{source}", "--ep", "cpu", "--runtime", "ort-genai", "{out}")
EXPORTER = ("{python}", str(WORKERS / "convert_transformers.py"), "{source}", "{out}")
MODELS = {
    "ours": Model(HERE, ("{python}", "-m", "converter.cli", "convert", "{source}", "{out}", "-q")),
    "ours-int8": ours("int8", "_int8"),
    "ours-int4": ours("int4", "_q4"),
    "ours-fp16": ours("fp16", "_fp16"),
    "optimum": Model("optimum", OPTIMUM),
    "mobius": Model("mobius", MOBIUS),
    "exported": Model(HERE, EXPORTER),
    "ctranslate2-float32": ctranslate2("float32"),
    "ctranslate2-int8": ctranslate2("int8"),
    "llama-f32": llama("f32"),
    "llama-q8_0": llama("q8_0"),
    "llama-q4_0": llama("q4_0"),
    "checkpoint": Model(HERE, (), ("model.safetensors",)),
}


@dataclass(frozen=True)
class Candidate:
    """One row of the tables."""

    name: str
    model: str
    environment: str
    worker: str
    variant: str


CANDIDATES = (
    Candidate("ours fp32", "ours", HERE, "run_ours.py", "fp32"),
    Candidate("ours int8", "ours-int8", HERE, "run_ours.py", "int8"),
    Candidate("ours int4", "ours-int4", HERE, "run_ours.py", "int4"),
    Candidate("genai fp32 on our graph", "ours", "genai", "run_genai.py", "fp32"),
    Candidate("genai int8 on our graph", "ours-int8", "genai", "run_genai.py", "int8"),
    Candidate("optimum fp32", "optimum", "optimum", "run_optimum.py", "fp32"),
    Candidate("mobius fp32 in genai", "mobius", "mobius", "run_genai.py", "fp32"),
    Candidate("transformers' exporter fp32", "exported", HERE, "run_exported.py", "fp32"),
    Candidate("CTranslate2 float32", "ctranslate2-float32", "ctranslate2", "run_ctranslate2.py", "float32"),
    Candidate("CTranslate2 int8", "ctranslate2-int8", "ctranslate2", "run_ctranslate2.py", "int8"),
    Candidate("llama.cpp f32", "llama-f32", "llama", "run_llama.py", "f32"),
    Candidate("llama.cpp q8_0", "llama-q8_0", "llama", "run_llama.py", "q8_0"),
    Candidate("llama.cpp q4_0", "llama-q4_0", "llama", "run_llama.py", "q4_0"),
    Candidate("transformers fp32", "checkpoint", HERE, "run_transformers.py", "fp32"),
    Candidate("transformers bf16", "checkpoint", HERE, "run_transformers.py", "bf16"),
)
BASELINE = CANDIDATES[0]

# What runs on a GPU. Its packages are those of this process, as a machine with a GPU often has one set of them.
ON_GPU = (
    Candidate("ours fp16", "ours-fp16", HERE, "run_ours.py", "fp16 cuda graphs"),
    Candidate("ours fp16, the shipped graph", "ours-fp16", HERE, "run_ours.py", "fp16 cuda"),
    Candidate("genai fp16 on our graph", "ours-fp16", HERE, "run_genai.py", "fp16 cuda"),
    Candidate("transformers fp16", "checkpoint", HERE, "run_transformers.py", "fp16 cuda"),
    Candidate("transformers fp16, compiled", "checkpoint", HERE, "run_compiled.py", "fp16"),
)


def chosen(only: str, candidates: Sequence[Candidate] = CANDIDATES) -> list[Candidate]:
    """Return the candidates whose names begin as asked for; by default all of them."""
    beginnings = tuple(part.strip() for part in only.split(",") if part.strip())
    found = [candidate for candidate in candidates if not beginnings or candidate.name.startswith(beginnings)]
    if not found:
        names = ", ".join(candidate.name for candidate in candidates)
        raise click.ClickException(f"no candidate begins with {only}; expected some of {names}")
    return found
