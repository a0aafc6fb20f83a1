"""The files of an export are found by the names that exporters give them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper

from converter.errors import ModelFolderError
from converter.runtime.exports.files import data_files, find

PAIR = ("decoder_model.onnx", "decoder_with_past_model.onnx")


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (["model.onnx"], ["model.onnx"]),
        (["onnx/model.onnx", "onnx/model_fp16.onnx"], ["onnx/model.onnx"]),
        (["prefill.onnx", "decode.onnx"], ["prefill.onnx", "decode.onnx"]),
        (
            ["decoder_model.onnx", "decoder_with_past_model.onnx"],
            ["decoder_model.onnx", "decoder_with_past_model.onnx"],
        ),
        (
            [*(f"onnx/{name}" for name in PAIR), "onnx/decoder_model_merged.onnx"],
            ["onnx/decoder_model_merged.onnx"],
        ),
        (["anything.onnx"], ["anything.onnx"]),
    ],
)
def test_files_are_found_by_their_names(tmp_path: Path, there: list[str], found: list[str]) -> None:
    write(tmp_path, *there)
    assert [str(file.relative_to(tmp_path)) for file in find(tmp_path)] == found


def test_the_file_that_genai_names_is_taken_unless_it_is_outside(tmp_path: Path) -> None:
    write(tmp_path, "out/a.onnx", "out/model.onnx", "b.onnx")
    settings = tmp_path / "out" / "genai_config.json"
    settings.write_text(json.dumps({"model": {"decoder": {"filename": "a.onnx"}}}))
    assert find(tmp_path / "out") == (tmp_path / "out" / "a.onnx",)
    settings.write_text(json.dumps({"model": {"decoder": {"filename": "../b.onnx"}}}))
    assert find(tmp_path / "out") == (tmp_path / "out" / "model.onnx",)


def test_several_files_of_unknown_names_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="there is no ONNX file or folder"):
        find(tmp_path / "absent")
    with pytest.raises(ModelFolderError, match="holds no ONNX file"):
        find(tmp_path)
    write(tmp_path, "a.onnx", "b.onnx")
    with pytest.raises(ModelFolderError, match=r"holds 2 ONNX files \(a.onnx, b.onnx\); name one of them"):
        find(tmp_path)


def test_the_data_files_of_branches_are_files_of_the_export(tmp_path: Path) -> None:
    def holding(location: str, *nodes: object) -> GraphProto:
        tensor = TensorProto(name=location, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        return helper.make_graph(list(nodes), "graph", [], [], [tensor])

    branch = helper.make_node("If", ["told"], ["out"], then_branch=holding("b.bin"), else_branch=holding("../c.bin"))
    (tmp_path / "model.onnx").write_bytes(ModelProto(graph=holding("a.bin", branch)).SerializeToString())
    assert [file.name for file in data_files(tmp_path / "model.onnx")] == ["a.bin", "b.bin"]
