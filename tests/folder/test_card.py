"""The model card: how each client opens the folder, as far as the folder lets it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from converter import convert
from converter.folder.clients import UNSUPPORTED
from converter.folder.snippets import SNIPPETS
from converter.texts import one_line

Save = Callable[..., Path]
EVERY = [snippet.client for snippet in SNIPPETS]


def programs(folder: Path) -> dict[str, str]:
    """The programs of a model card's clients, by their headings."""
    card = (folder / "README.md").read_text()
    found = re.findall(r"^### ([^\n]+)\n\n`[^\n]+`\n\n```\w+\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    return dict(found)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_has_a_program_for_each_client_that_runs_the_folders_precision(
    save: Save, tmp_path: Path, precision: str
) -> None:
    convert(save(), tmp_path / "out", precision=precision)
    found = programs(tmp_path / "out")
    assert list(found) == [client for client in EVERY if (client, precision) not in UNSUPPORTED]
    for client, program in found.items():
        assert not re.search(r"@\w+@", program)  # nothing is left to be filled in
        if client != "transformers.js":
            compile(program, client, "exec")


def test_names_the_graph_where_it_is_not_the_one_that_a_client_looks_for(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "both", precision="fp32,int8")
    convert(source, tmp_path / "int8", precision="int8")
    assert 'from_pretrained(".")' in programs(tmp_path / "both")["Optimum"]
    assert 'from_pretrained(".", file_name="model_int8.onnx")' in programs(tmp_path / "int8")["Optimum"]


def test_asks_for_no_more_tokens_than_the_model_has_positions(save: Save, tmp_path: Path) -> None:
    convert(save(n_positions=24), tmp_path / "out")
    assert "max_new_tokens=12" in programs(tmp_path / "out")["transformers"]


def test_a_graph_beside_the_weights_is_no_folder_for_transformers_js(save: Save) -> None:
    source = save()
    convert(source, in_place=True)
    found = programs(source)
    assert list(found) == [client for client in EVERY if client != "transformers.js"]
    assert 'compile_model("model.onnx"' in found["OpenVINO"]


def test_says_where_a_precision_does_not_run(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "fp32")
    convert(source, tmp_path / "both", precision="fp32,int8")
    said = f"int8 does not run in transformers: {UNSUPPORTED['transformers', 'int8']}."
    assert said in (tmp_path / "both" / "README.md").read_text()
    assert "does not run" not in (tmp_path / "fp32" / "README.md").read_text()


@pytest.mark.parametrize(
    "name",
    [
        "my_model-v1.2 (copy)",
        "<img src=x onerror=alert(1)>",
        "[a](https:b) ![b](c) **c** _d_ # e",
        "`a` ``b``",
        "a\n\n# MATCH\n\x1b[31m\u202e",
        "a | b & $c$ ~~d~~ \\",
    ],
)
def test_a_name_is_shown_as_it_is_and_cannot_become_markup(save: Save, tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    save().rename(source)
    convert(source, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text().partition("---\n# ")[2]
    tokens = [token for token in MarkdownIt("gfm-like", {"linkify": False}).parse(f"# {card}") if token.children]
    title, line = tokens[0].children, tokens[1].children
    assert "".join(token.content for token in title) == f"{one_line(name)} for ONNX"
    assert {token.type for token in title} == {"text"} | {token.type for token in title if token.type == "text_special"}
    assert [token.content for token in line if token.type == "code_inline"] == [one_line(name)]
