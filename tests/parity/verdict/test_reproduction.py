"""No edit of a folder passes: everything but the weights is derived from the source again, and compared."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from safetensors.torch import load_file

from converter import check, convert
from converter.checkpoint.options import SourceOptions
from converter.data import CHECKPOINT
from converter.errors import CheckError, GPT2Error
from converter.folder.certificate import verify
from converter.parity.verdict.reproduction import Reproduction, parse_allowed, reproduce
from converter.version import VERSION
from converter.weights.ledger import read_source
from tests.editors import edit_graph

Save = Callable[..., Path]
Edit = Callable[[Path], None]

EDITS = 6  # of each file, at places drawn by chance


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint in all precisions."""
    out = tmp_path_factory.mktemp("reproduction") / "out"
    convert(CHECKPOINT, out, precision="fp32,fp16,int8,int4")
    return out


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy to be edited."""
    return Path(shutil.copytree(sound, tmp_path / "out", symlinks=True))


@pytest.fixture
def small(save: Save, tmp_path: Path) -> tuple[Path, Path]:
    """A small random checkpoint and its conversion, for whole checks."""
    convert(save(), tmp_path / "small", precision="fp32,int8")
    return tmp_path / "source", tmp_path / "small"


def held(folder: Path, *allowed: str, source: Path = CHECKPOINT, **options: Any) -> Reproduction:
    return reproduce(folder, *read_source(source, SourceOptions(**options)), parse_allowed(allowed))


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


def test_a_folder_is_what_a_conversion_writes(sound: Path) -> None:
    found = held(sound)
    assert (found.faults, found.notes, found.unproven) == ((), (), "")
    assert found.files == len([file for file in sound.rglob("*") if not file.is_dir()])


@pytest.mark.parametrize("opset", [17, 20, 22])
@pytest.mark.parametrize("head", ["lm", "sequence-classification", "double-heads"])
def test_so_is_one_of_another_opset_and_head(save: Save, tmp_path: Path, opset: int, head: str) -> None:
    source = save(head=head)
    convert(source, tmp_path / "out", precision="fp32,int8", opset=opset)
    assert held(tmp_path / "out", source=source).faults == ()


@pytest.mark.parametrize("head", ["lm", "double-heads"])
def test_so_is_one_whose_graphs_return_more(save: Save, tmp_path: Path, head: str) -> None:
    source = save(head=head)
    convert(source, tmp_path / "out", outputs="attentions,pool" if head == "double-heads" else "attentions")
    convert(source, tmp_path / "out", precision="fp16", outputs="h.*.mlp.act")
    assert held(tmp_path / "out", source=source).faults == ()


def test_so_is_one_that_was_converted_in_place_and_one_that_got_a_precision_later(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, in_place=True)
    assert held(source, source=source).faults == ()
    convert(CHECKPOINT, tmp_path / "out")
    convert(CHECKPOINT, tmp_path / "out", precision="int4")
    assert held(tmp_path / "out").faults == ()


def test_so_is_one_that_was_checked(small: tuple[Path, Path]) -> None:
    source, out = small
    assert check(source, out).passed
    assert held(out, source=source).faults == ()
    assert "kl_mean" in json.loads((out / "gpt2onnx.json").read_text())["precisions"]["int8"]["quality"]


def test_no_edit_of_a_byte_passes(tmp_path: Path) -> None:
    draw, sound = random.Random(0), tmp_path / "sound"
    convert(CHECKPOINT, sound, precision="int8")
    folder = Path(shutil.copytree(sound, tmp_path / "out"))
    files = [file for file in sorted(sound.rglob("*")) if file.is_file() and file.suffix not in (".onnx_data", "")]
    assert {file.suffix for file in files} >= {".json", ".md", ".onnx"}
    for file in files:
        whole, copy = file.read_bytes(), folder / file.relative_to(sound)
        for _ in range(EDITS):
            at = draw.randrange(len(whole))
            edited = whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
            copy.write_bytes(edited)
            with suppress(GPT2Error):  # a config or manifest that cannot be read, or is another model's, is refused
                assert held(folder).faults or same(file, edited), (file.name, at)
        copy.write_bytes(whole)
    assert held(folder).faults == ()


def same(file: Path, edited: bytes) -> bool:
    """Whether an edit changed nothing that a reader of JSON or protobuf sees."""
    with suppress(ValueError, DecodeError):
        if file.suffix == ".json":
            return json.loads(edited) == json.loads(file.read_bytes())
        if file.suffix == ".onnx":
            ours, theirs = onnx.load_from_string(edited), onnx.load(file, load_external_data=False)
            return ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
    return False


FILES: dict[str, tuple[Edit, str]] = {
    "end of text": (
        lambda out: edit_json(out / "genai_config.json", lambda values: values["model"].update(eos_token_id=5)),
        "genai_config.json: model.eos_token_id 5; the source gives 0",
    ),
    "padding side": (
        lambda out: edit_json(out / "tokenizer_config.json", lambda values: values.update(padding_side="right")),
        "tokenizer_config.json: padding_side 'right'; the source gives 'left'",
    ),
    "a merge less": (
        lambda out: edit_json(out / "tokenizer.json", lambda values: values["model"]["merges"].pop()),
        "tokenizer.json: model.merges has 1790 entries; the source gives 1791",
    ),
    "no decoder": (
        lambda out: edit_json(out / "tokenizer.json", lambda values: values.pop("decoder")),
        "tokenizer.json: lacks decoder; the source gives {",
    ),
    "a key more": (
        lambda out: edit_json(out / "config.json", lambda values: values.update(temperature=2)),
        "config.json: temperature 2; the source gives none",
    ),
    "the browser's precision": (
        lambda out: edit_json(out / "config.json", lambda v: v["transformers.js_config"].update(dtype="q4")),
        "config.json: transformers.js_config.dtype 'q4'; the source gives 'fp32'",
    ),
    "a key twice": (
        lambda out: (out / "genai_config.json").write_text('{"search": {}, "search": {}}'),
        "genai_config.json: cannot be read as JSON (the key 'search' occurs twice)",
    ),
    "another encoding": (
        lambda out: (out / "genai_config.json").write_text((out / "genai_config.json").read_text(), encoding="utf-16"),
        "genai_config.json: cannot be read as JSON ('utf-8' codec can't decode",
    ),
    "a byte order mark": (
        lambda out: (out / "genai_config.json").write_text((out / "genai_config.json").read_text(), "utf-8-sig"),
        "genai_config.json: cannot be read as JSON (Unexpected UTF-8 BOM",
    ),
    "the card": (
        lambda out: append(out / "README.md"),
        "README.md: line ",
    ),
    "line ends": (
        lambda out: (out / "README.md").write_bytes((out / "README.md").read_bytes().replace(b"\n", b"\r\n")),
        r"README.md: line 1 is '---\r\n'; the source gives '---\n'",
    ),
    "no last line end": (
        lambda out: (out / "README.md").write_bytes((out / "README.md").read_bytes()[:-1]),
        "README.md: line ",
    ),
    "a link that leads nowhere": (
        lambda out: relink(out / "README.md", "nowhere"),
        "README.md: is no regular file",
    ),
    "a link in a circle": (
        lambda out: relink(out / "genai_config.json", "genai_config.json"),
        "genai_config.json: is no regular file",
    ),
    "a link to a folder": (lambda out: relink(out / "README.md", "onnx"), "README.md: is no regular file"),
    "a file more": (
        lambda out: add_template(out / "chat_template.jinja"),
        "chat_template.jinja: is no file of the conversion: remove it, or accept it with --allow chat_template.jinja",
    ),
    "a file less": (lambda out: (out / "genai_config.json").unlink(), "genai_config.json: is missing"),
    "another link": (
        lambda out: relink(out / "model.safetensors", "onnx/model_fp16.onnx_data"),
        "model.safetensors: is a link to onnx/model_fp16.onnx_data; the source gives onnx/model.onnx_data",
    ),
    "bytes after the weights": (
        lambda out: append(out / "onnx" / "model_q4.onnx_data"),
        "onnx/model_q4.onnx_data: has ",
    ),
    "an epsilon of a graph": (
        lambda out: edit_graph(out / "onnx" / "model_fp16.onnx", lambda graph: epsilon(graph, "h.3.ln_1")),
        "onnx/model_fp16.onnx: h.3.ln_1: LayerNormalization epsilon 0.5; the source gives 9.99",
    ),
    "an output more": (
        lambda out: edit_graph(out / "onnx" / "model.onnx", lambda graph: add_output(graph, "h.0.mlp.act")),
        "onnx/model.onnx: the output h.0.mlp.act is not one that the source gives",
    ),
    "a far end of a long value": (
        lambda out: edit_graph(out / "onnx" / "model.onnx", add_checksum),
        "onnx/model.onnx: wte.weight: FLOAT [2048, 192] at …",
    ),
    "a type that there is not": (
        lambda out: edit_graph(out / "onnx" / "model.onnx", lambda graph: setattr(inline(graph), "data_type", 99)),
        "onnx/model.onnx: num_logits_to_keep: number 99 [] 'a damaged tensor'; the source gives INT64 [] 0",
    ),
    "numbers in a file without a name": (
        lambda out: put_elsewhere(out / "onnx" / "model.onnx"),
        "onnx/model.onnx: num_logits_to_keep: INT64 [] 'in another file'; the source gives INT64 [] 0",
    ),
    "a manifest of something else": (
        lambda out: edit_json(out / "gpt2onnx.json", lambda values: values.update(target="hf")),
        "gpt2onnx.json: target 'hf', which no folder with a graph has",
    ),
    "an empty manifest": (
        lambda out: edit_json(out / "gpt2onnx.json", lambda values: values.clear()),
        "gpt2onnx.json: precisions None; expected some of fp32",
    ),
    "no version": (
        lambda out: edit_json(out / "gpt2onnx.json", lambda values: values.update(versions={})),
        "gpt2onnx.json: it lacks the versions that wrote it",
    ),
    "a number for a text": (
        lambda out: edit_json(out / "gpt2onnx.json", lambda v: v["precisions"]["int8"].update(quality={"text": 5})),
        "gpt2onnx.json: precisions: int8: quality: text is not what gpt2onnx writes there",
    ),
    "the manifest's figures": (
        lambda out: edit_json(out / "gpt2onnx.json", lambda values: values.update(parameters=7)),
        "gpt2onnx.json: parameters 7; the source gives 2667072",
    ),
    "no such precision": (
        lambda out: edit_json(out / "gpt2onnx.json", lambda v: v["precisions"].update(fp8=v["precisions"]["fp32"])),
        "gpt2onnx.json: precisions.fp8 is none of fp32, fp16, int8, int4",
    ),
    "outputs that the graph has not": (
        lambda out: edit_json(out / "gpt2onnx.json", lambda v: v["precisions"]["fp32"].update(outputs=["ln_f"])),
        "onnx/model.onnx: the output ln_f of the source is missing",
    ),
    "no such output": (
        lambda out: edit_json(out / "gpt2onnx.json", lambda v: v["precisions"]["fp32"].update(outputs=["ln_x"])),
        "gpt2onnx.json: precisions.fp32.outputs: nothing in this model is called 'ln_x'",
    ),
}


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


def add_template(file: Path) -> None:
    file.write_text("{{ messages }}", encoding="utf-8")


def relink(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def epsilon(graph: onnx.GraphProto, output: str) -> None:
    node = next(node for node in graph.node if output in node.output)
    next(attribute for attribute in node.attribute if attribute.name == "epsilon").f = 0.5


def add_checksum(graph: onnx.GraphProto) -> None:
    entry = next(tensor for tensor in graph.initializer if tensor.name == "wte.weight").external_data.add()
    entry.key, entry.value = "checksum", "x"


def put_elsewhere(file: Path) -> None:
    model = onnx.load(file, load_external_data=False)
    inline(model.graph).data_location = onnx.TensorProto.EXTERNAL
    file.write_bytes(model.SerializeToString())


def inline(graph: onnx.GraphProto) -> onnx.TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == "num_logits_to_keep")


def add_output(graph: onnx.GraphProto, name: str) -> None:
    graph.output.append(onnx.ValueInfoProto(name=name))


@pytest.mark.parametrize("edit", FILES)
def test_an_edit_is_said_with_its_file_and_key(folder: Path, edit: str) -> None:
    change, sentence = FILES[edit]
    change(folder)
    assert any(fault.startswith(sentence) for fault in held(folder).faults), held(folder).faults


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize("name", ["README.md", "genai_config.json", "tokenizer.json", "LICENSE-PSF.txt"])
def test_a_pipe_in_the_place_of_a_file_is_not_read(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name}: is no regular file" in held(folder).faults


def end_of_text(out: Path) -> None:
    edit_json(out / "genai_config.json", lambda values: values["model"].update(eos_token_id=5))


def test_an_edit_is_a_mismatch_and_one_that_is_allowed_is_none(small: tuple[Path, Path]) -> None:
    source, out = small
    end_of_text(out)
    report = check(source, out)
    assert report.headline == "MISMATCH"
    assert "genai_config.json: model.eos_token_id 5; the source gives" in report.verdict
    report = check(source, out, allow=["genai_config.json:model.eos_token_id"])
    assert report.passed
    assert report.verdict.endswith("genai_config.json allowed to differ")
    assert verify(out).certificate["allowed"] == list(report.allowed)


def test_what_is_allowed_is_the_file_or_the_key_with_all_below_it(folder: Path) -> None:
    edit_json(folder / "genai_config.json", lambda values: values["model"]["decoder"].update(head_size=7))
    assert held(folder, "genai_config.json").faults == ()
    assert held(folder, "genai_config.json:model").faults == ()
    assert held(folder, "genai_config.json:model.decoder.head_size").faults == ()
    assert len(held(folder, "genai_config.json:model.dec").faults) == 1
    assert len(held(folder, "config.json").faults) == 1


@pytest.mark.parametrize("file", ["onnx/model.onnx", "onnx/model_int8.onnx_data", "model.safetensors"])
def test_neither_graph_nor_weights_can_be_allowed_to_differ(file: str) -> None:
    with pytest.raises(CheckError, match="cannot be allowed to differ"):
        parse_allowed([file])


def test_a_folder_that_another_version_writes_otherwise_is_judged_by_its_numbers_and_that_is_said(
    small: tuple[Path, Path], folder: Path
) -> None:
    source, out = small
    edit_json(out / "gpt2onnx.json", lambda values: values["versions"].update(gpt2onnx="0.0.9"))
    card = out / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace(f"gpt2onnx {VERSION}", "gpt2onnx 0.0.9"), encoding="utf-8")
    found = held(out, source=source)
    assert found.faults == found.notes == ()  # this version writes the same
    edit_graph(out / "onnx" / "model.onnx", lambda graph: setattr(graph, "name", "other"))
    report = check(source, out)
    assert report.passed
    assert report.verdict.endswith("files of gpt2onnx 0.0.9, which this version writes otherwise")
    # What the source carries is the source's, whatever version wrote the folder.
    edit_json(folder / "gpt2onnx.json", lambda values: values["versions"].update(gpt2onnx="0.0.9"))
    FILES["a merge less"][0](folder)
    assert any(fault.startswith("tokenizer.json") for fault in held(folder).faults)


def test_what_another_version_may_excuse_is_in_the_certificate_and_its_graph_is_fed_what_it_compares_with(
    small: tuple[Path, Path],
) -> None:
    source, out = small
    edit_json(out / "gpt2onnx.json", lambda values: values["versions"].update(gpt2onnx="0.0.9"))
    edit_json(out / "genai_config.json", lambda values: values.update(added=1))
    assert check(source, out).passed
    assert verify(out).verdict.endswith("files: a match, files of gpt2onnx 0.0.9, which this version writes otherwise")
    (out / "evil.py").write_text("1")  # no version is a reason for a file that is there besides
    assert any(fault.startswith("evil.py: is no file of") for fault in held(out, source=source).faults)
    (out / "evil.py").unlink()
    model = onnx.load(out / "onnx" / "model.onnx", load_external_data=False)
    size = helper.make_node("Shape", ["input_ids"], ["size"], start=1, end=2)
    told = helper.make_node("Equal", ["size", "number"], ["told"])
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[:] = ["right"]
    chosen = helper.make_node("Where", ["told", "none", "right"], ["logits"])
    model.graph.initializer.append(numpy_helper.from_array(np.array([13]), "number"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "none"))
    model.graph.node.extend([size, told, chosen])
    onnx.save(model, out / "onnx" / "model.onnx")
    report = check(source, out, certify=False)
    assert not report.passed
    assert "a prompt of 13 tokens" in {leg.worst_case for leg in report.legs if leg.fault}


def test_a_config_with_another_head_than_the_sources_is_a_fault_unless_it_was_asked_for(folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values.update(architectures=["GPT2DoubleHeadsModel"]))
    assert held(folder).faults == ("config.json: its head is double-heads; the source has lm",)
    assert held(folder, head="lm").unproven == "files not compared, as their head is double-heads, not lm"


def test_a_library_of_another_version_is_the_reason_only_for_what_it_writes(folder: Path) -> None:
    edit_json(folder / "gpt2onnx.json", lambda values: values["versions"].update(onnx="1.0"))
    assert held(folder).faults == ()
    edit_graph(folder / "onnx" / "model.onnx", lambda graph: setattr(graph, "doc_string", "more"))
    found = held(folder)
    assert found.faults == ()
    assert found.unproven == "files of onnx 1.0, which this version writes otherwise"
    append(folder / "README.md")
    (folder / "genai_config.json").unlink()
    (folder / "model.py").write_text("import os", encoding="utf-8")
    assert [fault.partition(":")[0] for fault in held(folder).faults] == ["genai_config.json", "model.py", "README.md"]


def test_another_name_of_the_source_is_said(folder: Path) -> None:
    edit_json(folder / "gpt2onnx.json", lambda values: values["source"].update(name="someone/else"))
    assert held(folder).notes == ("gpt2onnx.json says that it was made of 'someone/else'",)


@pytest.fixture
def in_place(save: Save, tmp_path: Path) -> tuple[Path, Path]:
    """A source with a generation config, and a copy of it that was converted in place."""
    source = save()
    copy = Path(shutil.copytree(source, tmp_path / "in-place"))
    convert(copy, in_place=True)
    assert held(copy, source=source).faults == ()
    return source, copy


def test_in_place_what_is_the_sources_own_is_compared_with_it(in_place: tuple[Path, Path]) -> None:
    source, out = in_place
    edit_json(out / "generation_config.json", lambda values: values.update(temperature=9.0))
    edit_json(out / "config.json", lambda values: values.update(eos_token_id=7))
    (out / "evil.py").write_text("import os", encoding="utf-8")
    said = " ".join(held(out, source=source).faults)
    assert "generation_config.json: temperature 9.0; the source gives none" in said
    assert "config.json: eos_token_id 7; the source gives 0" in said
    assert "evil.py: is no file of the conversion" in said
    assert held(out, source=out).faults == ()  # there, they are the source


def test_in_place_and_beside_itself_a_file_that_the_manifest_disowns_is_said_not_to_be_compared(
    in_place: tuple[Path, Path],
) -> None:
    source, out = in_place
    assert held(out, source=out).unproven == ""
    edit_json(out / "genai_config.json", lambda values: values["model"].update(eos_token_id=5))
    assert held(out, source=out).faults  # it is ours, by the manifest
    edit_json(out / "gpt2onnx.json", lambda values: values["files"].remove("genai_config.json"))
    found = held(out, source=out)
    assert found.unproven == "genai_config.json not compared, as gpt2onnx.json calls it the source's own"
    assert held(out, source=source).faults


@pytest.mark.parametrize("itself", [True, False], ids=["beside itself", "beside its source"])
def test_in_place_no_manifest_hides_a_graph(in_place: tuple[Path, Path], itself: bool) -> None:
    source, out = in_place
    edit_json(out / "gpt2onnx.json", lambda values: values.update(files=[]))
    edit_graph(out / "model.onnx", lambda graph: epsilon(graph, "h.1.ln_1"))
    said = " ".join(held(out, source=out if itself else source).faults)
    assert "model.onnx: h.1.ln_1: LayerNormalization epsilon 0.5" in said
    assert "gpt2onnx.json: files has 0 entries" in said


def test_a_check_against_another_form_of_the_source_compares_the_graph_and_says_so(
    folder: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(CHECKPOINT, tmp_path / "source"))
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    found = held(folder, source=source)
    assert found.faults == ()
    assert found.unproven.startswith("files beside the graph not compared, as they were made with model.safetensors")
    edit_graph(folder / "onnx" / "model.onnx", lambda graph: epsilon(graph, "ln_f"))
    assert any("ln_f: LayerNormalization epsilon 0.5" in fault for fault in held(folder, source=source).faults)


def test_a_wrong_source_leaves_an_earned_certificate_alone(small: tuple[Path, Path], save: Save) -> None:
    source, out = small
    assert check(source, out).passed
    earned = (out / "gpt2onnx.json").read_bytes()
    assert not check(save("wrong", seed=1), out).passed
    assert (out / "gpt2onnx.json").read_bytes() == earned
    end_of_text(out)
    assert not check(source, out).passed
    assert verify(out).certificate["passed"] is False


def test_a_certificate_covers_the_manifest(small: tuple[Path, Path]) -> None:
    source, out = small
    assert check(source, out).passed
    assert verify(out).passed
    edit_json(out / "gpt2onnx.json", lambda v: v["precisions"]["int8"]["quality"].update(kl_mean=1e-9))
    assert verify(out).changed == ("gpt2onnx.json",)
