"""``convert`` as a user meets it: good input, broken input, other targets."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.data import CHECKPOINT
from reference.config import GPT2Config
from reference.model import GPT2
from tests.cli.commands import assert_one_sentence, process, run, succeed
from tests.conftest import Save


def test_convert_ends_with_one_line_of_facts(tmp_path: Path) -> None:
    result = run("convert", CHECKPOINT, tmp_path / "out")
    assert result.exit_code == 0
    assert result.stderr == ""
    pattern = r".*out: 2,667,072 parameters, 10\.8 MB written in \d+\.\d\d s, peak memory [\d.]+ [MG]B\n"
    assert re.fullmatch(pattern, result.stdout)


def test_convert_is_silent_with_quiet_and_speaks_json_with_json(tmp_path: Path) -> None:
    assert run("convert", CHECKPOINT, tmp_path / "a", "--quiet").output == ""
    facts = json.loads(run("convert", CHECKPOINT, tmp_path / "b", "--json").stdout)
    assert facts["parameters"] == 2667072
    assert facts["bytes_written"] == sum(
        file.stat().st_size for file in (tmp_path / "b").rglob("*") if file.is_file() and not file.is_symlink()
    )
    assert facts.keys() == {
        "out",
        "parameters",
        "bytes_written",
        "seconds",
        "peak_memory_bytes",
        "quantized",
        "warnings",
    }


def test_convert_warns_of_a_head_of_its_own(save: Save, tmp_path: Path) -> None:
    source = save(tie_word_embeddings=False)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    result = run("convert", source, tmp_path / "out")
    assert result.exit_code == 0
    assert "warning" in result.stderr
    assert "lm_head.weight" in result.stderr


def test_convert_leaves_tensors_aside_that_are_named(save: Save, tmp_path: Path) -> None:
    source = save()
    weights = load_file(source / "model.safetensors") | {"v_head.weight": torch.ones(3)}
    save_file(weights, source / "model.safetensors")
    assert_one_sentence(run("convert", source, tmp_path / "out"), "v_head.weight", "--ignore 'v_head.weight'")
    assert run("convert", source, tmp_path / "out", "--ignore", "v_head.*").exit_code == 0


def spoil(source: Path, **values: object) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | values))


def truncated(source: Path) -> None:
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def corrupt(source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"{not json at all" + bytes(99))


def no_config(source: Path) -> None:
    (source / "config.json").unlink()


def emptied(source: Path) -> None:
    shutil.rmtree(source)
    source.mkdir()


def no_shard(source: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weights = load_file(source / "model.safetensors")
    save_file(weights, source / names[0])
    (source / "model.safetensors").unlink()
    index = {"weight_map": {name: names[i % 2] for i, name in enumerate(weights)}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def index_outside(source: Path) -> None:
    shutil.move(source / "model.safetensors", source.parent / "elsewhere.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../elsewhere.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def no_weights(source: Path) -> None:
    (source / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (emptied, ["source is empty", "config.json"]),
        (no_config, ["source has no config.json"]),
        (no_weights, ["source has no weights", "model.safetensors", "found config.json"]),
        (lambda s: spoil(s, model_type="gpt_neo"), ["config.json", "model_type is 'gpt_neo'", "expected 'gpt2'"]),
        (lambda s: spoil(s, n_layer=4), ["model.safetensors has no tensor h.3.ln_1.weight [12]"]),
        (lambda s: spoil(s, n_layer=2), ["h.2.", "beyond what config.json describes"]),
        (lambda s: spoil(s, n_embd=15), ["wte.weight is [61, 12]; config.json asks for [61, 15]"]),
        (lambda s: spoil(s, n_head=5), ["n_head 5 does not divide n_embd 12"]),
        (lambda s: spoil(s, activation_function="gelo"), ["activation_function 'gelo' is unknown", "gelu_new"]),
        (lambda s: spoil(s, quantization_config={"bits": 4}), ["quantization_config", "convert the original"]),
        (lambda s: spoil(s, auto_map={"AutoModel": "x.Y"}), ["auto_map", "code of its own"]),
        (lambda s: spoil(s, multi_query=True), ["multi_query", "GPTBigCode"]),
        (lambda s: spoil(s, add_cross_attention=True), ["add_cross_attention", "only decoders"]),
        (truncated, ["model.safetensors is truncated", "download or save it again"]),
        (corrupt, ["model.safetensors is corrupt", "not JSON"]),
        (no_shard, ["model-00002-of-00002.safetensors is missing", "index.json names it"]),
        (index_outside, ["points outside its folder: '../elsewhere.safetensors'"]),
    ],
)
def test_a_broken_source_is_one_sentence(
    save: Save, tmp_path: Path, damage: Callable[[Path], None], parts: list[str]
) -> None:
    source = save()
    damage(source)
    assert_one_sentence(run("convert", source, tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()
    assert_one_sentence(run("inspect", source), *parts)


def test_a_source_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    parts = ["there is no folder", "a Hub id such as openai-community/gpt2"]
    assert_one_sentence(run("convert", tmp_path / "nowhere", tmp_path / "out"), *parts)


def test_an_out_that_exists_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file.txt").touch()
    assert_one_sentence(run("convert", CHECKPOINT, tmp_path), "gpt2onnx did not write it", "choose another OUT")
    succeed("convert", CHECKPOINT, tmp_path / "out", "--to", "hf")
    assert_one_sentence(run("convert", CHECKPOINT, tmp_path / "out"), "choose another OUT, or --force to replace it")


def test_an_out_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_one_sentence(run("convert", CHECKPOINT, tmp_path / "file" / "out"), "out was not written")


@pytest.mark.parametrize("arguments", [(), ("OUT", "--in-place")])
def test_convert_wants_either_a_folder_or_in_place(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = run("convert", CHECKPOINT, *arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


# --- convert --to -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["hf", "reference"])
def test_convert_to_another_target_ends_with_one_line_of_facts(tmp_path: Path, target: str) -> None:
    result = run("convert", CHECKPOINT, tmp_path / "out", "--to", target)
    assert (result.exit_code, result.stderr) == (0, "")
    pattern = r".*out: 2,667,072 parameters, 5\.4 MB written in \d+\.\d\d s, peak memory [\d.]+ [MG]B\n"
    assert re.fullmatch(pattern, result.stdout)
    facts = json.loads(run("convert", CHECKPOINT, tmp_path / "b", "--to", target, "--json").stdout)
    assert facts["bytes_written"] == sum(file.stat().st_size for file in (tmp_path / "b").iterdir())
    assert json.loads((tmp_path / "b" / "gpt2onnx.json").read_text())["target"] == target
    assert run("convert", CHECKPOINT, tmp_path / "b", "--to", target, "--force", "-q").output == ""


def test_what_was_converted_is_a_source_again(tmp_path: Path) -> None:
    succeed("convert", CHECKPOINT, tmp_path / "hf", "--to", "hf", "--max-shard-size", "1MB")
    succeed("convert", tmp_path / "hf", tmp_path / "ref", "--to", "reference")
    assert "model.safetensors.index.json (Hugging Face)" in run("inspect", tmp_path / "hf").stdout
    assert "64 tensors in reference.safetensors (from-scratch reference)" in run("inspect", tmp_path / "ref").stdout
    for source in ("hf", "ref"):
        assert run("convert", tmp_path / source, tmp_path / f"{source}-onnx").exit_code == 0
        assert run("check", CHECKPOINT, tmp_path / f"{source}-onnx").exit_code == 0


@pytest.mark.parametrize("target", ["hf", "reference"])
def test_a_folder_without_a_graph_says_that_it_is_a_source(tmp_path: Path, target: str) -> None:
    out = tmp_path / "out"
    succeed("convert", CHECKPOINT, out, "--to", target)
    parts = [f"out holds no ONNX graph: it was written with --to {target}, and is a source", "gpt2onnx convert"]
    for arguments in (("generate", out, "The"), ("check", CHECKPOINT, out), ("verify", out)):
        assert_one_sentence(run(*arguments), *parts)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--to", "hf", "--opset", "17"), "--to hf does not use --opset: omit it"),
        (("--to", "hf", "--outputs", "attentions"), "--to hf does not use --outputs: omit it"),
        (("--to", "hf", "--check"), "--to hf does not use --check: omit it"),
        (("--to", "reference", "--in-place"), "--to reference does not use --in-place: omit it"),
        (("--to", "reference", "--max-shard-size", "5GB"), "--to reference does not use --max-shard-size"),
        (("--max-shard-size", "5GB"), "--to onnx does not use --max-shard-size"),
        (("--to", "tflite"), "'tflite' is not one of"),
    ],
)
def test_options_that_a_target_does_not_heed_are_refused(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    result = run("convert", CHECKPOINT, tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not (tmp_path / "out").exists()


def test_another_target_wants_a_folder_of_its_own(tmp_path: Path) -> None:
    assert "give a folder to write to (OUT)\n" in run("convert", CHECKPOINT, "--to", "hf").stderr
    assert_one_sentence(run("convert", CHECKPOINT, tmp_path, "--to", "hf", "--max-shard-size", "5XB"), "'5XB'", "5GB")
    (tmp_path / "file.txt").touch()
    assert_one_sentence(run("convert", CHECKPOINT, tmp_path, "--to", "reference"), "gpt2onnx did not write it")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = process("convert", tmp_path / "nowhere", tmp_path / "out", "--debug")
    assert "Traceback" in done.stderr
    assert "CheckpointError" in done.stderr


def test_an_error_of_ours_is_called_internal_and_exits_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.folder.convert.convert", lambda *args, **options: 1 / 0)
    result = run("convert", CHECKPOINT, tmp_path / "out")
    assert result.exit_code == 3
    assert result.stderr == "gpt2onnx: internal error: ZeroDivisionError: division by zero (--debug shows where)\n"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_conversion_tidies_up(tmp_path: Path, sent: int, code: int) -> None:
    slow = (
        "import time; from converter.weights import data_file\n"
        # Python looks for signals between two sleeps, and would sleep on if one came just before a long one.
        "def copy(*_):\n    print('copying', flush=True)\n    for _ in range(600): time.sleep(0.1)\n"
        "data_file._write_tensor = copy\n"
        "from converter.cli import cli; cli()"
    )
    command = [sys.executable, "-c", slow, "convert", str(CHECKPOINT), str(tmp_path / "out")]

    def heed_interrupts() -> None:
        """Shells have what they run in the background ignore SIGINT."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "copying\n"
        running.send_signal(sent)
        running.wait(30)
    assert running.returncode == code
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_of_another_project_is_converted_and_checked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=61, n_positions=24, n_embd=12, n_layer=3, n_head=3))
    state = {name if name.startswith("lm_head") else f"transformer.{name}": w for name, w in model.state_dict().items()}
    sizes = {"n_layer": 3, "n_head": 3, "n_embd": 12, "block_size": 24, "bias": True, "vocab_size": 61}
    file, out = tmp_path / "ckpt.pt", tmp_path / "out"
    torch.save({"model": state, "model_args": sizes, "iter_num": 3}, file)
    assert_one_sentence(run("convert", file, out), "does not record its activation", "--activation gelu_new")
    assert run("convert", file, out, "--activation", "gelu_new").exit_code == 0
    found = run("check", file, out, "--activation", "gelu_new")
    assert found.exit_code == 0
    assert "transformers does not read nanoGPT checkpoints" in found.stdout
    assert found.stderr == ""
    wrong = run("check", file, out, "--activation", "gelu")
    assert wrong.exit_code == 1
    assert "the activation in h.0.mlp.act and 2 more is gelu_new; the source has gelu" in wrong.stdout
    facts = json.loads(run("inspect", file, "--activation", "gelu", "--json").stdout)
    assert (facts["format"], facts["dead_keys"]) == ("nanoGPT", [])
    assert_one_sentence(
        run("convert", CHECKPOINT, tmp_path / "other", "--activation", "relu"), "records its activation, gelu_new"
    )
