"""Each command as a user meets it: good input, broken input, --help."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from converter.cli import cli
from converter.data import CHECKPOINT
from converter.parity.seeded import mutations
from reference.config import GPT2Config
from reference.model import GPT2

Save = Callable[..., Path]

ROOT = Path(__file__).parents[2]

# Imports of torch and transformers fail, as where the extra `check` is not installed.
WITHOUT_TORCH = """
import sys
sys.modules['torch'] = sys.modules['transformers'] = None
from converter.cli import cli
cli()
"""


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)


def process(*arguments: object, code: str = "from converter.cli import cli; cli()") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def assert_one_sentence(result: Result, *parts: str) -> None:
    """Exit code 2, one line on standard error, no traceback, and all of ``parts`` in it."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("gpt2onnx: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


# --- convert ----------------------------------------------------------------------------------------------------------


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
    run("convert", CHECKPOINT, tmp_path / "out", "--to", "hf")
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
    run("convert", CHECKPOINT, tmp_path / "hf", "--to", "hf", "--max-shard-size", "1MB")
    run("convert", tmp_path / "hf", tmp_path / "ref", "--to", "reference")
    assert "model.safetensors.index.json (Hugging Face)" in run("inspect", tmp_path / "hf").stdout
    assert "64 tensors in reference.safetensors (from-scratch reference)" in run("inspect", tmp_path / "ref").stdout
    for source in ("hf", "ref"):
        assert run("convert", tmp_path / source, tmp_path / f"{source}-onnx").exit_code == 0
        assert run("check", CHECKPOINT, tmp_path / f"{source}-onnx").exit_code == 0


@pytest.mark.parametrize("target", ["hf", "reference"])
def test_a_folder_without_a_graph_says_that_it_is_a_source(tmp_path: Path, target: str) -> None:
    out = tmp_path / "out"
    run("convert", CHECKPOINT, out, "--to", target)
    parts = [f"out holds no ONNX graph: it was written with --to {target}, and is a source", "gpt2onnx convert"]
    for arguments in (("generate", out, "The"), ("check", CHECKPOINT, out), ("verify", out)):
        assert_one_sentence(run(*arguments), *parts)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--to", "hf", "--opset", "17"), "--to hf does not use --opset: omit it"),
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
        "def copy(*_):\n    print('copying', flush=True); time.sleep(60)\n"
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


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_prints_a_table_and_exits_with_0_on_a_match(bundled: Path) -> None:
    result = run("check", CHECKPOINT, bundled)
    assert result.exit_code == 0
    for part in ("64 initializers", "Hugging Face float64 eager", "ONNX Runtime float32", "noise floor", "MATCH: "):
        assert part in result.stdout
    assert "FAIL" not in result.stdout


def test_check_exits_with_1_on_a_mismatch_and_says_why(tmp_path: Path) -> None:
    run("convert", CHECKPOINT, tmp_path / "out", "-q")
    data = tmp_path / "out" / "onnx" / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    result = run("check", CHECKPOINT, tmp_path / "out")
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert "MISMATCH: " in result.stdout
    assert "wte.weight" in result.stdout or "wpe.weight" in result.stdout
    report = json.loads(run("check", CHECKPOINT, tmp_path / "out", "--json").stdout)
    assert report["passed"] is False
    assert len(report["exactness_faults"]) == 1


def test_check_of_nonsense_is_one_sentence(tmp_path: Path, bundled: Path, save: Save) -> None:
    assert_one_sentence(run("check", CHECKPOINT, tmp_path / "nowhere"), "there is no model folder")
    assert_one_sentence(run("check", tmp_path / "nowhere", bundled), "there is no folder")
    assert_one_sentence(run("check", save(), bundled), "is another model than", "vocab_size")
    assert_one_sentence(run("check", CHECKPOINT, bundled, "--provider", "abacus"), "no provider abacus; it offers")


def test_a_mismatch_is_traced_to_its_operation_and_named(save: Save, tmp_path: Path) -> None:
    source = save()
    run("convert", source, tmp_path / "out", "-q")
    file = tmp_path / "out" / "onnx" / "model.onnx"
    model = onnx.load(file, load_external_data=False)
    node = next(node for node in model.graph.node if node.output[0] == "h.1.ln_2")
    next(attribute for attribute in node.attribute if attribute.name == "epsilon").f = 1e-3
    onnx.save(model, file)
    result = run("check", source, tmp_path / "out", "--layers")
    assert result.exit_code == 1
    assert "first divergence: h.1.ln_2, in the case 'prefill'" in result.stdout
    assert "cause (epsilon): the epsilon in h.1.ln_2 is 0.001; the source has 1e-05" in result.stdout
    assert "is NOT" in result.stdout
    found = json.loads(run("check", source, tmp_path / "out", "--json").stdout)
    assert found["localisation"]["first"] == "h.1.ln_2"
    assert [finding["cause"] for finding in found["diagnosis"]["findings"]] == ["epsilon"]


def test_every_key_of_the_json_is_documented(save: Save, tmp_path: Path) -> None:
    source = save()
    run("convert", source, tmp_path / "out", "-q")
    found = json.loads(run("check", source, tmp_path / "out", "--layers", "--level", "full", "--json").stdout)
    documented = set(re.findall(r"`([\w.]+)`", (ROOT / "docs" / "check.md").read_text(encoding="utf-8")))
    assert found["schema"] == "gpt2onnx/check/2"
    assert found["schema"] in (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    taps = found["localisation"]
    for part in (found, found["legs"][0], found["limits"], taps, taps["taps"][0]):
        assert set(part) <= documented
    assert {leg["budget"] for leg in found["legs"]} == {"", "float16", "bfloat16"}


def test_check_reads_another_exporters_file_too(save: Save, tmp_path: Path) -> None:
    source = save()
    other = save("other", seed=1)
    for name in (source, other):
        run("convert", name, tmp_path / f"{name.name}-onnx", "-q")
    own, foreign = (tmp_path / f"{name}-onnx" / "onnx" / "model.onnx" for name in ("source", "other"))
    right = run("check", source, tmp_path / "source-onnx", "--also", own)
    assert right.exit_code == 0
    assert "another file" in right.stdout
    wrong = run("check", source, tmp_path / "source-onnx", "--also", foreign)
    assert wrong.exit_code == 1
    assert f"{foreign} is NOT {source}" in wrong.stdout
    assert "MATCH: " in wrong.stdout  # of the folder
    assert json.loads((tmp_path / "source-onnx" / "gpt2onnx.json").read_text())["certificate"]["passed"] is True
    assert_one_sentence(run("check", source, tmp_path / "source-onnx", "--also", "no.onnx"), "there is no ONNX file no")
    (tmp_path / "broken.onnx").write_bytes(b"rubbish")
    assert_one_sentence(run("check", source, tmp_path / "source-onnx", "--also", tmp_path / "broken.onnx"), "broken")


def test_limits_can_be_set_and_are_refused_if_they_mean_nothing(save: Save, tmp_path: Path) -> None:
    source = save()
    run("convert", source, tmp_path / "out", "-q")
    strict = run("check", source, tmp_path / "out", "--limit", "rms=1e-9", "--json")
    assert strict.exit_code == 1
    found = json.loads(strict.stdout)
    assert found["limits"]["rms"] == 1e-9
    assert "at most 1e-09 × is rounding" in found["faults"][0]
    assert_one_sentence(run("check", source, tmp_path / "out", "--limit", "speed=1"), "no limit 'speed'", "rms")
    assert_one_sentence(run("check", source, tmp_path / "out", "--limit", "rms=-1"), "limit rms is -1.0")
    wrong = run("check", source, tmp_path / "out", "--limit", "rms")
    assert wrong.exit_code == 2
    assert "NAME=NUMBER" in wrong.stderr


def test_the_logits_alone_can_decide(save: Save, tmp_path: Path) -> None:
    source = save()
    run("convert", source, tmp_path / "out", "-q")
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"activation_function": "relu"}))
    assert run("check", source, tmp_path / "out").exit_code == 1
    alone = run("check", source, tmp_path / "out", "--logits-only")
    assert alone.exit_code == 0
    assert "initializers" not in alone.stdout
    assert "weights not compared" in alone.stdout


def test_check_writes_a_page_and_junit(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save()
    run("convert", source, tmp_path / "out", "-q")
    page, xml = tmp_path / "report.html", tmp_path / "junit.xml"
    assert run("check", source, tmp_path / "out", "--report", page, "--junit", xml).exit_code == 0
    assert "MATCH" in page.read_text(encoding="utf-8")
    assert 'failures="0"' in xml.read_text(encoding="utf-8")
    nowhere = tmp_path / "no" / "report.html"
    for option in ("--report", "--junit"):
        refused = run("check", source, tmp_path / "out", option, nowhere)
        assert refused.exit_code == 2
        assert f"{nowhere} cannot be written: there is no folder {nowhere.parent}" in refused.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else name)
    assert_one_sentence(
        run("check", source, tmp_path / "out", "--report", page), "--report needs jinja2 and matplotlib; install"
    )


def test_check_needs_a_source_and_a_folder_or_to_prove_itself(bundled: Path) -> None:
    assert "or --prove" in run("check").stderr
    assert "or --prove" in run("check", CHECKPOINT).stderr
    assert "omit OUT" in run("check", CHECKPOINT, bundled, "--prove").stderr
    assert "omit --logits-only" in run("check", "--prove", "--logits-only").stderr
    assert run("check").exit_code == run("check", CHECKPOINT, bundled, "--prove").exit_code == 2


def test_check_can_prove_that_it_would_have_noticed(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "converter.parity.seeded.prove.MUTATIONS", mutations.MUTATIONS[:2]
    )  # tests/parity tries them all
    monkeypatch.setattr("converter.parity.seeded.prove.elements", lambda config: ())
    result = run("check", save(), "--prove")
    assert result.exit_code == 0, result.stdout
    assert "PROVEN: all" in result.stdout
    assert "square weight transposed" in result.stdout
    assert "is transposed: it lies [out, in] where the graph takes [in, out]" in result.stdout
    assert_one_sentence(run("check", "nowhere", "--prove"), "nowhere")


# --- generate ---------------------------------------------------------------------------------------------------------


def test_generate_prints_prompt_and_continuation_and_its_figures_apart(bundled: Path) -> None:
    result = run("generate", bundled, "The following", "-n", 20)
    assert result.exit_code == 0
    assert result.stdout.startswith("The following")
    assert len(result.stdout) > 30
    assert re.fullmatch(r"20 tokens, \d+ tokens/s after \d+ ms of prefill\n", result.stderr)
    assert run("generate", bundled, "The following", "-n", 20, "--quiet").stderr == ""


def test_generate_reads_standard_input(bundled: Path) -> None:
    piped = run("generate", bundled, "-n", 10, stdin="The following\n").stdout
    assert piped == run("generate", bundled, "The following", "-n", 10).stdout


def test_generate_takes_several_prompts_as_a_batch(bundled: Path) -> None:
    lines = run("generate", bundled, "The following", "An", "-n", 10).stdout
    assert lines.startswith("--- 1 of 2\nThe following")
    assert "--- 2 of 2\nAn" in lines
    rows = json.loads(run("generate", bundled, "The following", "An", "-n", 10, "--json").stdout)["rows"]
    assert [row["prompt"] for row in rows] == ["The following", "An"]
    assert all(len(row["new_ids"]) == 10 for row in rows)
    assert rows[0]["text"] in lines


def test_generate_draws_the_same_text_for_the_same_seed(bundled: Path) -> None:
    def draw(seed: int) -> str:
        return run("generate", bundled, "The", "-n", 30, "--temperature", 1, "--seed", seed).stdout

    assert draw(1) == draw(1) != draw(2)


def test_generate_stops_at_the_last_position_and_says_so(bundled: Path) -> None:
    result = run("generate", bundled, "The", "-n", 9999)
    assert result.exit_code == 0
    assert "stopped at the model's 256 positions" in result.stderr


def test_generate_gives_several_texts_of_each_prompt(bundled: Path) -> None:
    drawn = run("generate", bundled, "The", "An", "-n", 8, "--temperature", 1, "--seed", 2, "--best", 2)
    assert re.findall(r"--- (\d) of 4\n(The|An)", drawn.stdout) == [
        ("1", "The"),
        ("2", "The"),
        ("3", "An"),
        ("4", "An"),
    ]
    found = run("generate", bundled, "The", "-n", 8, "--beams", 3, "-k", 2, "--length-penalty", 0.5)
    assert re.findall(r"--- (\d) of 2 \(-\d+\.\d{4}\)\nThe", found.stdout) == ["1", "2"]
    facts = json.loads(run("generate", bundled, "The", "-n", 8, "--beams", 3, "-k", 2, "--json").stdout)
    assert facts["rows"][0]["score"] > facts["rows"][1]["score"]


def test_generate_says_how_good_its_guesses_were(bundled: Path) -> None:
    arguments = ("generate", bundled, "The following", "-n", 100)
    plain, fast = run(*arguments), run(*arguments, "--speculate")
    assert fast.stdout == plain.stdout == run(*arguments, "--speculate=3").stdout
    assert re.search(r"; \d+ of \d+ proposals right, \d\.\d\d tokens a run\n", fast.stderr)
    facts = json.loads(run(*arguments, "--json", "--speculate").stdout)["speculation"]
    assert list(facts) == ["runs", "proposed", "accepted", "acceptance", "tokens_per_run"]
    assert "speculation" not in json.loads(run(*arguments, "--json").stdout)


def test_generate_ends_before_a_stop_string(bundled: Path) -> None:
    whole = run("generate", bundled, "The following", "-n", 40, "-q").stdout
    cut = run("generate", bundled, "The following", "-n", 40, "--stop", "zzz", "--stop", whole[20:26]).stdout
    assert cut == whole[: whole.index(whole[20:26])] + "\n"


def test_generate_takes_and_gives_token_ids(bundled: Path) -> None:
    result = run("generate", bundled, "340, 794", "--ids", "-n", 3, "-q")
    assert re.fullmatch(r"340 794 \d+ \d+ \d+\n", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["word " * 300], ["the model's 256 positions leave no room for a new one"]),
        (["2048", "--ids"], ["token id 2048 is not one of the model's 2048 tokens (0 to 2047)"]),
        (["-5", "--ids"], ["token id -5"]),
        (["x y", "--ids"], ["'x y' is not a list of token ids"]),
        (["x", "--temperature", "-1"], ["temperature is -1.0; expected 0 or more"]),
        (["x", "--top-p", "2"], ["top_p is 2.0"]),
        (["x", "-n", "0"], ["max_new_tokens is 0; expected 1 or more"]),
        (["x", "--min-p", "1.5"], ["min_p is 1.5; expected 0 to 1"]),
        (["x", "--repetition-penalty", "0"], ["repetition_penalty is 0.0; expected above 0"]),
        (["x", "--beams", "-1"], ["beams is -1; expected 1 or more"]),
        (["x", "--beams", "2", "--temperature", "1"], ["beams pursue the likeliest texts and draw nothing"]),
        (["x", "--beams", "2", "-k", "3"], ["best is 3, more than the 2 beams that there are"]),
        (["x", "--best", "2"], ["best needs texts that differ"]),
        (["x", "--early-stopping", "yes"], ["early_stopping", "are for beams"]),
        (["x", "y", "--speculate"], ["speculate is for one prompt at a time, and these are 2"]),
        (["x", "--temperature", "1", "--speculate"], ["speculate", "leave temperature at 0"]),
        (["x", "--stop", ""], ["stop is ('',); expected texts, none of them empty"]),
        (["x", "--provider", "cuda"], ["no provider cuda", "install onnxruntime-gpu"]),
    ],
)
def test_generate_refuses_in_one_sentence(bundled: Path, arguments: list[str], parts: list[str]) -> None:
    at = arguments.index("-5") if "-5" in arguments else None
    if at is not None:
        arguments = [*arguments[:at], *arguments[at + 1 :], "--", "-5"]
    result = run("generate", bundled, *arguments)
    assert_one_sentence(result, *parts)


def test_generate_without_a_tokenizer_asks_for_ids(save: Save, tmp_path: Path) -> None:
    run("convert", save(), tmp_path / "out", "-q")
    assert_one_sentence(run("generate", tmp_path / "out", "text"), "has no tokenizer", "token ids")
    assert run("generate", tmp_path / "out", "1 2", "--ids", "-n", 2).exit_code == 0


def test_generate_in_a_broken_folder_is_one_sentence(tmp_path: Path) -> None:
    assert_one_sentence(run("generate", tmp_path / "nowhere", "x"), "there is no model folder", "gpt2onnx convert")
    assert_one_sentence(run("generate", CHECKPOINT, "x"), "has no onnx/model.onnx")


# --- inspect and demo -------------------------------------------------------------------------------------------------


def test_inspect_shows_config_size_and_ledger() -> None:
    result = run("inspect", CHECKPOINT)
    assert result.exit_code == 0
    assert "2,667,072 parameters" in result.stdout
    assert "n_layer 5" in result.stdout
    row = next(line for line in result.stdout.splitlines() if "transformer.h.2.mlp.c_fc.weight" in line)
    for part in (" h.2.mlp.c_fc.weight", "used", "conv1d", "float16", "192 × 768", "294,912", "model.safetensors"):
        assert part in row
    facts = json.loads(run("inspect", CHECKPOINT, "--json").stdout)
    assert len(facts["tensors"]) == 64
    assert facts["parameters"] == 2667072


def test_demo_does_the_whole_job(tmp_path: Path) -> None:
    result = run("demo", tmp_path / "out")
    assert result.exit_code == 0
    for part in ("$ gpt2onnx convert", "2,667,072 parameters", "$ gpt2onnx check", "MATCH", "$ gpt2onnx generate"):
        assert part in result.stdout
    assert (tmp_path / "out" / "onnx" / "model.onnx").is_file()


# --- what holds for all -----------------------------------------------------------------------------------------------


def test_convert_inspect_and_generate_need_no_torch(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments in (
        ("convert", CHECKPOINT, out),
        ("convert", CHECKPOINT, tmp_path / "hf", "--to", "hf"),
        ("convert", CHECKPOINT, tmp_path / "ref", "--to", "reference"),
        ("inspect", tmp_path / "ref"),
        ("inspect", CHECKPOINT),
        ("generate", out, "The", "-n", 3),
    ):
        done = process(*arguments, code=WITHOUT_TORCH)
        assert done.returncode == 0, done.stderr
    demo = process("demo", code=WITHOUT_TORCH)
    assert demo.returncode == 0, demo.stderr
    assert "skipped: it needs torch and transformers" in demo.stdout
    check = process("check", CHECKPOINT, out, code=WITHOUT_TORCH)
    assert check.returncode == 2
    assert "pip install 'gpt2onnx[check]'" in check.stderr


def test_generate_imports_nothing_that_only_a_conversion_needs(bundled: Path) -> None:
    heavy = "('onnx_ir', 'onnxscript', 'huggingface_hub', 'rich', 'torch', 'converter.runtime.beams')"
    run_it = "import sys; from converter.cli import cli; cli(standalone_mode=False)"
    code = f"{run_it}; assert not {{*{heavy}}} & {{*sys.modules}}"
    done = process("generate", bundled, "The", "-n", 3, code=code)
    assert done.returncode == 0, done.stderr


def test_generate_without_onnx_runtime_says_what_to_install(bundled: Path) -> None:
    without = "import sys; sys.modules['onnxruntime'] = None; from converter.cli import cli; cli()"
    done = process("generate", bundled, "x", code=without)
    assert done.returncode == 2
    assert "pip install 'gpt2onnx[cpu]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from converter.cli import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    loaded = set(process(code=code).stdout.split())
    assert "click" in loaded
    assert not loaded & {"numpy", "onnx", "onnxruntime", "onnxscript", "torch", "transformers", "rich", "tokenizers"}


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
def test_a_terminal_gets_colour_and_a_pipe_does_not(bundled: Path) -> None:
    arguments = [sys.executable, "-m", "converter.cli", "check", str(CHECKPOINT), str(bundled)]
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm-256color"}
    for extra, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        master, slave = pty.openpty()
        with subprocess.Popen(arguments, stdout=slave, stderr=slave, env=environment | extra) as running:
            os.close(slave)
            shown = b""
            while chunk := read(master):
                shown += chunk
            running.wait(60)
        assert (b"\x1b[32m" in shown or b"\x1b[1;32m" in shown) == coloured
        assert b"MATCH" in shown
    piped = subprocess.run(arguments, capture_output=True, check=True)
    assert b"\x1b" not in piped.stdout
    assert piped.stderr == b""


def read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end of a pseudo-terminal is closed
        return b""


def test_a_reader_that_goes_away_is_no_error(bundled: Path) -> None:
    command = f"{sys.executable} -m converter.cli inspect {CHECKPOINT} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_a_reader_that_goes_away_is_not_taken_for_a_mismatch(bundled: Path) -> None:
    script = f"{sys.executable} -m converter.cli inspect {CHECKPOINT} | true; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", script], check=False, capture_output=True).returncode in (0, 141)


def test_debug_keeps_the_exit_code(tmp_path: Path) -> None:
    assert process("check", tmp_path / "nowhere", tmp_path / "out", "--debug").returncode == 2


def test_text_that_is_not_unicode_is_one_sentence(bundled: Path) -> None:
    command = [sys.executable, "-m", "converter.cli", "generate", str(bundled)]
    done = subprocess.run(command, input=b"\xff\xfeabc", capture_output=True, check=False)
    assert done.returncode == 2
    assert b"a prompt is not UTF-8 text" in done.stderr


def test_a_narrow_terminal_still_shows_every_verdict(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.cli.terminal.PIPED_WIDTH", 70)
    lines = run("check", CHECKPOINT, bundled).stdout.splitlines()
    row = next(line for line in lines if "ONNX Runtime float32" in line)
    assert row.rstrip().endswith("pass")


def test_json_of_an_overflowing_model_is_still_json(save: Save, tmp_path: Path) -> None:
    source = save()
    weights = load_file(source / "model.safetensors")
    large = {f"transformer.{name}": weights[f"transformer.{name}"] * 1e38 for name in ("ln_f.weight", "wte.weight")}
    save_file(weights | large, source / "model.safetensors", metadata={"format": "pt"})
    run("convert", source, tmp_path / "out", "-q")
    result = run("check", source, tmp_path / "out", "--json")
    assert result.exit_code in (1, 2)
    if result.exit_code == 1:
        json.loads(result.stdout, parse_constant=pytest.fail)


# --- run --------------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?Ġ"
NAMES = {0: "good", 1: "bad", 2: "so so"}
NAMED = {"id2label": NAMES, "label2id": {name: i for i, name in NAMES.items()}}


@pytest.fixture
def made(save: Save, tmp_path: Path) -> Callable[..., Path]:
    """``made(head, **config)``: a model folder with this head, which reads letters."""

    def make(head: str, **config: object) -> Path:
        source = save(head=head, **{"vocab_size": 80, "n_positions": 60, "n_layer": 1} | config)
        tokenizer = Tokenizer(models.BPE(vocab={letter: 79 - i for i, letter in enumerate(LETTERS)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.save(str(source / "tokenizer.json"))
        assert run("convert", source, tmp_path / "out", "--quiet").exit_code == 0
        return tmp_path / "out"

    return make


def test_run_prints_labels_with_their_probabilities_the_likeliest_first(made: Callable[..., Path]) -> None:
    out = made("sequence-classification", **NAMED)
    result = run("run", out, "What a film.")
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = [re.fullmatch(r" *([\d.]+)%  (good|bad|so so)", line) for line in result.stdout.splitlines()]
    assert len(lines) == 3
    shares = [float(line[1]) for line in lines if line]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.02)
    assert len(run("run", out, "What a film.", "--top", 2).stdout.splitlines()) == 2
    facts = json.loads(run("run", out, "What a film.", "Ada", "--json").stdout)
    assert [fact["text"] for fact in facts] == ["What a film.", "Ada"]
    assert sum(facts[1]["labels"].values()) == pytest.approx(1)
    assert next(iter(facts[0]["labels"])) in result.stdout.splitlines()[0]
    assert run("run", out, stdin="What a film.\n").stdout == result.stdout
    two = run("run", out, "What a film.", "Ada").stdout
    assert two.startswith(f"--- 1 of 2\n{result.stdout}--- 2 of 2\n")


def test_run_prints_the_values_of_a_regression_as_they_are(made: Callable[..., Path]) -> None:
    out = made("sequence-classification", num_labels=1, problem_type="regression")
    result = run("run", out, "What a film.")
    assert re.fullmatch(r" *-?[\d.]+  LABEL_0\n", result.stdout)
    value = json.loads(run("run", out, "What a film.", "--json").stdout)[0]["labels"]["LABEL_0"]
    assert float(result.stdout.split()[0]) == pytest.approx(value, rel=1e-5)


def test_run_prints_a_mark_for_every_token(made: Callable[..., Path]) -> None:
    out = made("token-classification", **NAMED)
    lines = run("run", out, "Ada a").stdout.splitlines()
    assert len(lines) == 5
    for i, line in enumerate(lines):
        assert re.fullmatch(rf" +{i}–{i + 1} +'{'Ada a'[i]}'  (good|bad|so so)  [\d.]+%", line), line
    facts = json.loads(run("run", out, "Ada a", "--json").stdout)[0]["tokens"]
    assert [(fact["start"], fact["end"], fact["text"]) for fact in facts] == [
        (i, i + 1, letter) for i, letter in enumerate("Ada a")
    ]
    assert all(set(fact) == {"start", "end", "text", "label", "probability"} for fact in facts)


def test_run_prints_the_span_that_answers_a_question(made: Callable[..., Path]) -> None:
    out = made("question-answering")
    text = "Ada was born in London."
    result = run("run", out, text, "--question", "Where?")
    assert result.exit_code == 0
    found = re.fullmatch(r"(.*)  \(([\d.]+)%, characters (\d+) to (\d+)\)\n", result.stdout)
    assert found is not None
    assert text[int(found[3]) : int(found[4])].strip() == found[1]
    facts = json.loads(run("run", out, text, "--question", "Where?", "--json").stdout)[0]
    assert facts["text"] == text[facts["start"] : facts["end"]]
    assert 0 < facts["probability"] <= 1
    assert run("run", out, "5 7 9 11", "--ids").exit_code == 0
    for arguments in ((text,), ("1 2", "--ids", "--question", "Where?")):
        result = run("run", out, *arguments)
        assert result.exit_code == 2
        assert "--question" in result.stderr
    assert_one_sentence(run("run", out, "", "--question", "Where?"), "a text is empty")


def test_run_says_how_choices_compare(made: Callable[..., Path]) -> None:
    out = made("double-heads")
    result = run("run", out, "one ending", "another")
    lines = [re.fullmatch(r" *([\d.]+)%  (one ending|another)", line) for line in result.stdout.splitlines()]
    assert [line[2] for line in lines if line] == ["one ending", "another"]
    assert sum(float(line[1]) for line in lines if line) == pytest.approx(100, abs=0.02)
    facts = json.loads(run("run", out, "one ending", "another", "--json").stdout)
    assert [set(fact) for fact in facts] == [{"text", "probability", "score"}] * 2
    assert run("generate", out, "one", "-n", 2, "-q").exit_code == 0


def test_run_prints_an_embedding_as_numbers(made: Callable[..., Path]) -> None:
    out = made("base")
    result = run("run", out, "Ada")
    numbers = [float(number) for number in result.stdout.split()]
    assert len(numbers) == 12
    facts = json.loads(run("run", out, "Ada", "--json").stdout)[0]
    assert numbers == pytest.approx(facts["mean"], rel=1e-5)
    assert [len(facts["tokens"]), len(facts["tokens"][0])] == [3, 12]


@pytest.mark.parametrize("head", ["base", "sequence-classification", "token-classification", "double-heads"])
def test_run_refuses_in_a_sentence_what_it_cannot_answer_for(made: Callable[..., Path], head: str) -> None:
    out = made(head)
    assert_one_sentence(run("run", out, ""), "a text is empty")
    assert_one_sentence(run("run", out, "", "--ids"), "a text is empty")
    assert_one_sentence(run("run", out, "a" * 61), "a text of 61 tokens is longer than the model's 60 positions")
    assert_one_sentence(run("run", out, "1 80", "--ids"), "token id 80 is not one of the model's 80 tokens")
    assert_one_sentence(run("run", out, "one", "--ids"), "'one' is not a list of token ids")
    result = run("run", out, "a", "--question", "Who?")
    assert result.exit_code == 2
    assert "--question is for texts of a model that answers questions" in result.stderr
    (out / "tokenizer.json").unlink()
    assert_one_sentence(run("run", out, "a"), "has no tokenizer; give token ids (--ids)")
    assert run("run", out, "1 2 3", "4", "--ids").exit_code == 0


def test_run_and_generate_send_to_each_other(bundled: Path, made: Callable[..., Path]) -> None:
    assert_one_sentence(run("run", bundled, "a"), f"gpt2onnx generate {bundled} PROMPT")
    out = made("base")
    assert_one_sentence(run("generate", out, "a"), "has the head base", f"gpt2onnx run {out} TEXT")


@pytest.mark.parametrize("command", ["convert", "inspect", "check"])
def test_a_head_that_there_is_not_is_refused(save: Save, bundled: Path, tmp_path: Path, command: str) -> None:
    out = {"convert": [tmp_path / "new"], "inspect": [], "check": [bundled]}[command]
    assert_one_sentence(run(command, CHECKPOINT, *out, "--head", "nonsense"), "there is no head 'nonsense'", "lm, base")
    assert not (tmp_path / "new").exists()


def test_a_head_that_is_asked_for_is_converted_checked_and_shown(save: Save, tmp_path: Path) -> None:
    source = save()
    result = run("convert", source, tmp_path / "out", "--head", "base", "--check")
    assert result.exit_code == 0, result.output
    facts = json.loads(run("inspect", source, "--head", "base", "--json").stdout)
    assert facts["config"]["head"] == "base"
    assert_one_sentence(run("check", source, tmp_path / "out"), "its head is base, the source's lm; --head says")
    assert run("check", source, tmp_path / "out", "--head", "base").exit_code == 0
    assert_one_sentence(run("check", "--prove", save("b", head="base")), "has the head base")
