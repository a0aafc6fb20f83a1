"""What README.md and the pages claim in numbers is held against the code."""

from __future__ import annotations

import re
import tomllib
import tracemalloc
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from converter import convert
from converter.checkpoint.open import open_checkpoint
from converter.cli import cli
from converter.data import CHECKPOINT
from converter.folder.convert import DEFAULT_OPSET
from converter.graph.build import MAX_OPSET, MIN_OPSET
from converter.graph.outputs import BEFORE, OPERATIONS, WORDS
from converter.parity.seeded.prove import defects
from converter.parity.verdict.judge import LegReport
from reference.head import ASKED

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOLD = {
    "help": "\n".join(line for command in cli.commands.values() for line in command.examples),
    **{str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in
       (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"))},
}  # fmt: skip


def test_the_number_of_seeded_defects_is_the_same_everywhere() -> None:
    config = open_checkpoint(str(CHECKPOINT)).config
    number = len(defects(config))
    told = {(place, int(n)) for place, text in TOLD.items() for n in re.findall(r"\b(\d+)\s+defects", text)}
    assert {n for _, n in told} == {number}, told
    assert {"README.md", "help", "docs/check.md"} <= {place for place, _ in told}


def test_the_opsets_are_those_of_the_code() -> None:
    assert f"opset {DEFAULT_OPSET}, or {MIN_OPSET} to {MAX_OPSET} with `--opset`" in README
    assert f"opset {MIN_OPSET} to {MAX_OPSET}" in TOLD["CHANGELOG.md"]


def test_a_conversion_makes_no_second_copy_of_the_weights_in_memory(save: Callable[..., Path], tmp_path: Path) -> None:
    source = save(vocab_size=30000, n_embd=240)
    weights = (source / "model.safetensors").stat().st_size
    tracemalloc.start()
    convert(source, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert weights > 25_000_000
    assert peak < weights / 3


def test_every_operation_that_a_graph_can_return_is_explained() -> None:
    page = TOLD["docs/how-to/look-inside.md"]
    told = {name.removeprefix("h.{i}.") for name in re.findall(r"`(?:h\.\{i\})?(\.?[\w.]+)`", page)}
    lacking = {name for name in (*BEFORE, *OPERATIONS, *WORDS) if not {name, f".{name}", f".{name[5:]}"} & told}
    assert not lacking


def test_every_key_of_a_leg_is_explained() -> None:
    told = TOLD["docs/check.md"].partition("\nA leg:\n")[2].partition("\n\n`check --prove")[0]
    keys = {key for row in re.findall(r"^\| (`.*?) \|", told, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    assert keys == {field.name for field in fields(LegReport)} | {"status"}


def section(name: str) -> str:
    """Return README's paragraph that begins with this word in bold."""
    return README.partition(f"\n**{name}**: ")[2].partition("\n\n")[0]


def test_every_source_that_the_readme_names_has_a_row_in_its_page() -> None:
    known = (
        "Hugging Face",
        "PyTorch",
        "TensorFlow",
        "Flax",
        "OpenAI",
        "nanoGPT",
        "llm.c",
        "Megatron-LM",
        "GGUF",
        "LoRA",
    )
    rows = [row for row in TOLD["docs/sources.md"].splitlines() if row.startswith("| ")]
    for name in known:
        assert name in section("Sources")
        assert name == "PyTorch" or any(name in row for row in rows), name


def test_every_client_that_the_readme_names_was_seen_to_run_the_folder() -> None:
    rows = [row for row in TOLD["docs/clients.md"].splitlines() if "| ok |" in row]
    for name in ("Optimum", "onnxruntime-genai", "OpenVINO", "transformers", "transformers.js", "ONNX Runtime"):
        assert name in section("Clients")
        assert any(name in row for row in rows), name


def test_what_the_readme_installs_and_requires_is_what_the_project_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = README.partition("## The tool")[2].partition("The commands:")[0]
    assert set(re.findall(r"`(\w+)`", told)) | {"docs"} == set(project["optional-dependencies"])
    assert f"Python {project['requires-python'].removeprefix('>=')} or newer" in README
    setup = (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8")
    assert f"Python {project['requires-python'].removeprefix('>=')} or newer" in setup


def test_every_head_of_the_readme_is_in_its_page() -> None:
    rows = re.findall(r"^\| \w+ \| `([\w-]+)` \|", TOLD["docs/heads.md"], re.MULTILINE)
    assert set(rows) == set(ASKED)
