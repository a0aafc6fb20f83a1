"""What README.md and the pages claim in numbers is held against the code."""

from __future__ import annotations

import re
import tomllib
import tracemalloc
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

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


CLIENTS = ("Optimum", "onnxruntime-genai", "OpenVINO", "transformers", "transformers.js", "ONNX Runtime")


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
    for name in CLIENTS:
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


# --- beside other tools -----------------------------------------------------------------------------------------------

# A tool of the table → its rows in docs/benchmarks.md: float32, 8 bits, 4 bits.
TOOLS = {
    "gpt2onnx": ("ours fp32", "ours int8", "ours int4"),
    "Optimum": ("optimum fp32", None, None),
    "mobius": ("mobius fp32 in genai", None, None),
    "CTranslate2": ("CTranslate2 float32", "CTranslate2 int8", None),
    "llama.cpp": ("llama.cpp f32", "llama.cpp q8_0", "llama.cpp q4_0"),
    "transformers": ("transformers fp32", None, None),
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def measured(heading: str) -> dict[str, dict[str, str]]:
    """A table of docs/benchmarks.md: row → column → the median as it is printed."""
    text = TOLD["docs/benchmarks.md"].partition(f"## {heading}")[2].partition("\n## ")[0]
    header, _, *rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
    return {row[0]: {name: cell.partition(" (")[0] for name, cell in zip(header, row, strict=True)} for row in rows}


def beside() -> dict[str, list[str]]:
    """README's table: tool → its cells."""
    text = README.partition("## Beside other tools")[2].partition("\n\n## ")[0]
    _, _, *rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_the_figures_beside_other_tools_are_those_of_the_benchmarks() -> None:
    conversion, decode = measured("Conversion"), measured("Decode")
    columns = {"convert s": " s", "peak MB": " MB", "on disk MB": " MB"}
    assert beside().keys() == TOOLS.keys()
    for tool, names in TOOLS.items():
        row = conversion[str(names[0])]
        costs = ["–" if row[column] == "–" else row[column] + unit for column, unit in columns.items()]
        speeds = ["–" if name is None else f"{float(decode[name]['1 × 128']):.0f}" for name in names]
        assert beside()[tool][:6] == costs + speeds, tool
    assert beside()["gpt2onnx"][-1] == f"{len(CLIENTS)} clients"


def test_what_the_readme_says_of_its_speed_is_what_was_measured() -> None:
    conversion, decode = measured("Conversion"), measured("Decode")
    ours = conversion["ours fp32"]
    assert "in about four seconds and 140 MB of memory" in README
    assert (round(float(ours["convert s"])), round(float(ours["peak MB"]), -1)) == (4, 140)
    assert "most other programs open their file sooner" in README
    loads = {name: float(row["load s"]) for name, row in conversion.items() if not name.startswith("ours")}
    assert sum(seconds < float(ours["load s"]) for seconds in loads.values()) > len(loads) / 2
    assert "onnxruntime-genai\ndecodes one text somewhat faster with our own float32 graph" in README
    assert 0.8 < float(decode["ours fp32"]["1 × 128"]) / float(decode["genai fp32 on our graph"]["1 × 128"]) < 1
    assert "CTranslate2 is faster with 8 texts\nat once in 8 bits" in README
    assert float(decode["CTranslate2 int8"]["8 × 128"]) > float(decode["ours int8"]["8 × 128"])
    assert "fast on CPUs" in README
    for precision in range(3):
        speeds = {tool: float(decode[name]["1 × 128"]) for tool, names in TOOLS.items() if (name := names[precision])}
        assert max(speeds, key=lambda tool: speeds[tool]) == "gpt2onnx"


# --- the shape of README ----------------------------------------------------------------------------------------------

WIDEST, WIDEST_SHOWN = 100, 110  # characters of a line: of the page, and of what commands print
MOST_BYTES = 200_000  # of the picture


def test_no_line_of_the_readme_is_too_wide() -> None:
    shown = re.sub(r"^```text.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    assert [line for line in shown.splitlines() if len(line) > WIDEST] == []
    assert [line for line in README.splitlines() if len(line) > WIDEST_SHOWN] == []


def test_the_comments_of_the_commands_are_short() -> None:
    block = README.partition("The commands:\n\n```bash\n")[2].partition("```")[0]
    commands = [line for line in block.splitlines() if line.startswith("gpt2onnx ")]
    assert len(commands) > 10
    assert [line for line in commands if len(line.partition(" # ")[2]) > 60] == []


def test_the_picture_is_small_and_described() -> None:
    [(description, file)] = re.findall(r"!\[([^\]]+)\]\((.+?)\)", README)
    assert len(description) > 100
    assert (ROOT / file).stat().st_size < MOST_BYTES


def test_what_the_picture_shows_and_hides_is_in_the_page() -> None:
    shown = (ROOT / "scripts" / "docs" / "picture.py").read_text(encoding="utf-8").partition("<style>")[2]
    page = (ROOT / "converter" / "parity" / "report" / "page.html.j2").read_text(encoding="utf-8")
    for kind, name in re.findall(r"(?<!\w)([.#])([a-z]+)", shown.partition("</style>")[0]):
        assert re.search(rf'{"class" if kind == "." else "id"}="{name}', page), name
    assert "figcaption" in page


def test_what_is_installed_takes_the_oldest_python_that_readme_names() -> None:
    assert "You need Python 3.11 or newer" in README
    assert (
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"] == ">=3.11"
    )
    names = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    asked = {name: metadata(name)["Requires-Python"] for name in names}
    assert len(names) > 100
    assert {name: spec for name, spec in asked.items() if spec and "3.11.0" not in SpecifierSet(spec)} == {}
