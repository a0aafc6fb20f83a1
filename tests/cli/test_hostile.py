"""What strangers hand over: each ends in one sentence and exit code 2, and opens nothing outside."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.torch import load_file, save_file

from converter import convert
from converter.cli.group import CUT as CUT_SHORT
from converter.folder import manifest
from tests.cli.commands import ROOT, assert_one_sentence, run
from tests.conftest import random_gpt2

Spoil = Callable[[Path], object]

posix = pytest.mark.skipif(os.name != "posix", reason="pipes")
IDS = ("1 2", "--ids", "-n", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``source`` and its conversion ``out``."""
    place = tmp_path_factory.mktemp("made")
    random_gpt2().save_pretrained(place / "source")
    convert(place / "source", place / "out")
    return place


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return shutil.copytree(made, tmp_path / "here", symlinks=True)


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


@posix
@pytest.mark.parametrize("kind", ["a pipe", "a link to a device"])
def test_a_source_is_a_file_or_a_folder(tmp_path: Path, kind: str) -> None:
    """A pipe would be waited for, and some devices never end."""
    if kind == "a pipe":
        pipe(tmp_path / "source")
    else:
        (tmp_path / "source").symlink_to("/dev/zero")
    for arguments in (["inspect"], ["convert", tmp_path / "out"]):
        result = run(arguments[0], tmp_path / "source", *arguments[1:])
        assert_one_sentence(result, "is a pipe, a socket or a device; expected a file on a disk")


@posix
@pytest.mark.parametrize("name", ["config.json", "gpt2onnx.json", "onnx/model.onnx", "onnx/model.onnx_data"])
def test_no_command_waits_for_a_pipe_in_a_folder(here: Path, name: str) -> None:
    pipe(here / "out" / name)
    for line in (("generate", here / "out", *IDS), ("check", here / "source", here / "out")):
        if name != "gpt2onnx.json":  # without a manifest it is the folder of another exporter, and whole
            assert run(*line).exit_code in (1, 2)


CONFIGS: dict[str, dict[str, Any]] = {
    "half a character": {"_name_or_path": "\ud800"},
    "half a character in a key": {"\udfff": 1},
    "more than float32": {"layer_norm_epsilon": 1e308},
    "less than float32": {"layer_norm_epsilon": 1e-50},
    "no number": {"layer_norm_epsilon": float("nan")},
    "infinity": {"n_embd": float("inf")},
    "beyond a float": {"resid_pdrop": 10**400},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_no_graph_can_be_made_of_is_refused(here: Path, changes: dict[str, Any]) -> None:
    rewrite(here / "source" / "config.json", **changes)
    assert_one_sentence(run("convert", here / "source", here / "new"), "config.json")
    assert not (here / "new").exists()


def test_pairs_of_halves_are_characters(here: Path) -> None:
    rewrite(here / "source" / "config.json", _name_or_path="\U0001f600")
    assert run("convert", here / "source", here / "new").exit_code == 0


def test_an_epsilon_may_be_a_whole_number(here: Path) -> None:
    """In JSON 1 is as good as 1.0; in ONNX an attribute has one type."""
    rewrite(here / "source" / "config.json", layer_norm_epsilon=1)
    assert run("convert", here / "source", here / "new").exit_code == 0
    assert run("generate", here / "new", *IDS).exit_code == 0


@pytest.mark.parametrize("changes", [{"temperature": 10**400, "do_sample": True}, {"stop_strings": ["\ud800"]}])
def test_a_generation_config_that_makes_no_sense_is_named(here: Path, changes: dict[str, Any]) -> None:
    rewrite(here / "out" / "generation_config.json", **changes)
    assert_one_sentence(run("generate", here / "out", *IDS), "generation_config.json")


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja"])
def test_a_tokenizer_that_is_not_utf8_is_named(here: Path, name: str) -> None:
    (here / "source" / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (here / "source" / "merges.txt").write_text("#version: 0.2\na b\n")
    (here / "source" / name).write_bytes(b'{"\xe9": 0}\n\xe9 a\n')
    assert_one_sentence(run("convert", here / "source", here / "new"), name)


def test_a_name_of_half_a_character_is_no_name_of_a_tensor(here: Path) -> None:
    """JSON can hold one, and so can a pickle; none of our files can."""
    file = here / "source" / "model.safetensors"
    save_file(load_file(file) | {"x" * 6: load_file(file)["transformer.ln_f.bias"].clone()}, file)
    file.write_bytes(file.read_bytes().replace(b"xxxxxx", rb"\ud800"))
    result = run("convert", here / "source", here / "new", "--ignore", "*")
    assert_one_sentence(result, r"the name of its tensor '\ud800' is no text")


@posix
def test_a_folder_may_have_a_name_that_is_not_utf8(here: Path) -> None:
    source = Path(os.fsdecode(os.fsencode(here) + b"/s\xff"))
    (here / "source").rename(source)
    assert run("convert", source, here / "new").exit_code == 0
    assert manifest.read(here / "new")["source"]["name"] == "s\\xff"


@pytest.mark.parametrize("shape", [[1] * 1_000_000, [1 << 62] * 100_000, [1 << 1000]], ids=["many", "large", "absurd"])
def test_shapes_without_end_are_refused_before_they_are_multiplied(here: Path, shape: list[int]) -> None:
    header = json.dumps({"t": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (here / "source" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert_one_sentence(run("inspect", here / "source"), "tensor t has ", "dimensions")


@posix
def test_links_out_of_a_source_are_left_behind(here: Path) -> None:
    source = here / "source"
    (here / "secret").write_text("not the source's")
    (source / "LICENSE").symlink_to(here / "secret")
    (source / "NOTICE").write_text("its own")
    (source / "NOTICE.md").symlink_to("NOTICE")
    result = run("convert", source, here / "new")
    assert result.exit_code == 0
    assert f"{source / 'LICENSE'} is a link out of the source: left behind\n" in result.stderr
    assert sorted(file.name for file in (here / "new").glob("[LN]*")) == ["NOTICE", "NOTICE.md"]


@posix
def test_links_in_the_cache_of_the_hub_are_the_files_themselves(here: Path) -> None:
    snapshot, blobs = here / "models--a" / "snapshots" / "c0ffee", here / "models--a" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (here / "source" / "LICENSE").write_text("its own")
    for number, file in enumerate((here / "source").iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert run("convert", snapshot, here / "new").exit_code == 0
    assert (here / "new" / "LICENSE").read_text() == "its own"


OUTSIDE = ("/etc/hostname", "../../source/model.safetensors", "link", "pipe", "nul\0", "x" * 5000)


def with_weights_at(file: Path, place: str) -> None:
    model = onnx.load(file, load_external_data=False)
    for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
        entry.value = place if entry.key == "location" else entry.value
    onnx.save(model, file)


@posix
@pytest.mark.parametrize("place", OUTSIDE, ids=["absolute", "above", "a link", "a pipe", "NUL", "too long"])
def test_weights_outside_the_folder_of_a_graph_are_not_opened(here: Path, place: str) -> None:
    graph = here / "out" / "onnx" / "model.onnx"
    (graph.parent / "link").symlink_to(here / "source" / "model.safetensors")
    pipe(graph.parent / "pipe")
    with_weights_at(graph, place)
    for line in (("generate", here / "out", *IDS), ("check", here / "source", here / "out"),
                 ("check", here / "source", graph)):  # fmt: skip
        result = run(*line)
        assert_one_sentence(result)
        assert "outside its folder" in result.stderr or "is a pipe" in result.stderr


def test_a_tensor_of_an_attribute_is_not_opened_outside_either(here: Path) -> None:
    """A constant may have its numbers in another file, too, and so may what is in branches and functions."""
    from converter.errors import ModelFolderError
    from converter.runtime.external import refuse_outside

    tensor = onnx.TensorProto(name="t", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    inner = onnx.helper.make_graph([constant], "inner", [], [])
    branch = onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    function = onnx.helper.make_function("d", "F", [], ["c"], [constant], [])
    for nodes, functions in (([constant], []), ([branch], []), ([], [function])):
        model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []), functions=functions)
        with pytest.raises(ModelFolderError, match="outside its folder, at '/etc/hostname'"):
            refuse_outside(model.SerializeToString(), here)


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 5000, b"\x3a\x02\x3a\x00" * 1000], ids=range(4))
def test_a_damaged_graph_is_no_error_of_ours(here: Path, content: bytes) -> None:
    graph = here / "out" / "onnx" / "model.onnx"
    graph.write_bytes(content)
    assert_one_sentence(run("generate", here / "out", *IDS), "model.onnx")
    assert run("check", here / "source", here / "out").exit_code in (1, 2)
    assert_one_sentence(run("check", here / "source", graph), "model.onnx")
    assert run("inspect", here / "out").exit_code == 0


MANIFESTS: dict[str, dict[str, Any]] = {
    "precisions": {"precisions": {"fp32": 5}},
    "a precision without its files": {"precisions": {"fp32": {"model": "onnx/model.onnx"}}},
    "files outside": {"precisions": {"fp32": {"model": "../x", "data": "/etc/passwd", "bytes": 1, "heads": {}}}},
    "source": {"source": "x"},
    "parameters": {"parameters": "many"},
    "versions": {"versions": 5},
    "model": {"model": ["onnx/model.onnx"]},
}


@pytest.mark.parametrize("changes", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_we_do_not_write_is_refused_and_can_be_replaced(here: Path, changes: dict[str, Any]) -> None:
    rewrite(here / "out" / "gpt2onnx.json", **changes)
    lines = [("generate", *IDS), ("inspect",), ("inspect", "--json"), ("verify",)]
    for command, *rest in lines:
        assert_one_sentence(run(command, here / "out", *rest), str(here / "out"))
    assert_one_sentence(run("convert", here / "source", here / "out", "--precision", "int8"), "gpt2onnx.json")
    assert run("convert", here / "source", here / "out", "--force").exit_code == 0


CUT = """
import os, sys
import numpy as np
from converter.cli import cli

@cli.command()
def read():
    numbers = np.memmap(sys.argv[2], mode="r")
    os.truncate(sys.argv[2], 10)
    numbers[50_000:].sum()

cli(["read"])
"""


@posix
def test_a_file_that_is_cut_while_it_is_mapped_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    command = [sys.executable, "-c", CUT, "read", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"gpt2onnx: {CUT_SHORT}\n"


def test_a_pattern_that_takes_too_many_steps_ends(things: Path, tmp_path: Path) -> None:
    """The library gives up after ten million, with a panic that is no Exception."""
    folder = shutil.copytree(things / "my-gpt2-onnx", tmp_path / "out", symlinks=True)
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    rewrite(folder / "tokenizer.json", pre_tokenizer=split)
    result = run("generate", folder, "a" * 40 + "b", "-n", 1)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("gpt2onnx: a library gave up on the tokenizer or the text")


def test_memory_that_is_not_there_is_no_error_of_ours(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("converter.weights.ledger.open_checkpoint", no_memory)
    assert_one_sentence(run("inspect", here / "source"), "there is not enough memory for this")


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
def test_a_limit_of_memory_ends_a_command_in_a_sentence(here: Path) -> None:
    """Of 350 MB of addresses torch alone would take more, which its loader says in words of its own."""
    command = f"{shlex.quote(sys.executable)} -m converter.cli check source out"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 350000; exec {command}"], cwd=here, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("gpt2onnx: there is not enough memory for this")
