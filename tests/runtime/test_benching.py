"""What ``bench`` measures, and that it holds together. How fast anything is, is not tested."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors import safe_open

from converter import convert, load
from converter.data import CHECKPOINT
from converter.errors import BenchError
from converter.runtime.benching import rounds
from converter.runtime.benching.amounts import bytes_per_step, weight_bytes
from converter.runtime.benching.bench import bench
from converter.runtime.benching.measuring import Key, decode, prefill
from converter.runtime.benching.results import Spread
from converter.runtime.benching.settings import Cell, Settings, cells_of, clipped
from converter.runtime.opening import config_of
from converter.runtime.session import Model
from converter.weights.precisions import PRECISIONS
from reference.config import GPT2Config
from tests.cli.commands import assert_one_sentence, run

Save = Callable[..., Path]

ROOT = Path(__file__).parents[2]
EVERY = ("fp32", "fp16", "int8", "int4")
TINY = ("--batch-sizes", "2,1", "--contexts", "5,900", "--prompt-lengths", "3", "--new-tokens", "2", "--rounds", "2")
FEW = Settings(batch_sizes=(1,), contexts=(4,), prompt_lengths=(4,), new_tokens=2, rounds=1)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint in every precision."""
    out = tmp_path_factory.mktemp("benching") / "out"
    convert(CHECKPOINT, out, precision=EVERY)
    return out


@pytest.fixture(autouse=True)
def _a_small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "READ_BYTES", 2**20)


@pytest.fixture(scope="module")
def found(everything: Path) -> dict[str, Any]:
    """What the command prints as JSON."""
    result = run("bench", everything, *TINY, "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


def spreads(values: Any) -> Iterator[dict[str, float]]:
    """Everything that has a median."""
    if isinstance(values, dict) and "median" in values:
        yield values
    elif isinstance(values, dict | list):
        for part in values.values() if isinstance(values, dict) else values:
            yield from spreads(part)


def test_every_precision_is_measured_by_batch_and_length(found: dict[str, Any]) -> None:
    assert [one["precision"] for one in found["precisions"]] == list(EVERY)
    for one in found["precisions"]:
        assert [(row["batch_size"], row["prompt_length"]) for row in one["prefill"]] == [(1, 3), (2, 3)]
        # 256 positions, of which one token that is not timed and two that are need theirs
        places = [(row["batch_size"], row["context"]) for row in one["decode"]]
        assert places == [(1, 5), (1, 253), (2, 5), (2, 253)]
    assert (found["rounds"], found["new_tokens"], found["threads"], found["provider"]) == (2, 2, 1, "cpu")
    assert found["missing"] == []


def test_figures_are_positive_and_medians_between_extremes(found: dict[str, Any]) -> None:
    every = list(spreads(found))
    assert len(every) == 4 * (3 + 2 + 4)
    for spread in every:
        assert 0 < spread["minimum"] <= spread["median"] <= spread["maximum"]
    assert found["bandwidth"] > 0
    assert found["seconds"] > 0
    for one in found["precisions"]:
        assert one["resident_bytes"]["maximum"] <= one["peak_bytes"]["maximum"]
        assert one["peak_bytes"]["median"] > one["weight_bytes"]


def test_a_share_is_of_the_limit_and_the_limit_of_the_bandwidth(found: dict[str, Any]) -> None:
    for one in found["precisions"]:
        for row in one["decode"]:
            limit = row["batch_size"] * found["bandwidth"] / row["bytes_per_step"]
            assert row["limit"] == pytest.approx(limit)
            assert row["share_of_limit"] == pytest.approx(row["tokens_per_second"]["median"] / limit)


def test_every_key_of_the_json_is_documented(found: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([\w.]+)`", text))
    one = found["precisions"][0]
    for part in (found, found["environment"], one, one["prefill"][0], one["decode"][0], one["load_seconds"]):
        assert set(part) <= documented
    assert found["schema"] in text


# --- the limit --------------------------------------------------------------------------------------------------------


def test_the_limit_of_gpt2_is_made_of_what_the_docs_say() -> None:
    config = GPT2Config()
    every, positions = 124_439_808, 1024 * 768
    assert weight_bytes(config, "fp32") == 4 * (every - positions + 768)
    assert weight_bytes(config, "fp16") == 2 * (every - positions + 768)
    untied = GPT2Config(tie_word_embeddings=False)  # whose head has as many numbers as the table of tokens
    assert weight_bytes(untied, "fp32") == weight_bytes(config, "fp32") + 4 * 768
    assert weight_bytes(untied, "fp32", batch_size=8) == weight_bytes(config, "fp32") + 8 * 4 * 768
    assert weight_bytes(GPT2Config(head="double-heads"), "fp32") == weight_bytes(config, "fp32")
    cache = 2 * 12 * 768 * 900
    assert bytes_per_step(config, "fp32", 1, 900) == weight_bytes(config, "fp32") + 4 * cache
    assert bytes_per_step(config, "fp16", 8, 900) == weight_bytes(config, "fp16") + 8 * 2 * cache
    assert bytes_per_step(config, "int4", 8, 900) == weight_bytes(config, "int4") + 8 * 4 * cache


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_the_data_file_but_rows_that_are_looked_up(
    save: Save, tmp_path: Path, name: str, tied: bool
) -> None:
    out = tmp_path / "out"
    convert(save(vocab_size=61, n_embd=32, n_head=2, tie_word_embeddings=tied), out, precision=name)
    with safe_open(out / PRECISIONS[name].data, "np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
    once = {key for key in tensors if key.startswith("wpe.") or (key.startswith("wte.") and not tied)}
    expected = sum(array[:1].nbytes if key in once else array.nbytes for key, array in tensors.items())
    assert weight_bytes(config_of(out), name) == expected


# --- what is measured -------------------------------------------------------------------------------------------------


class Recorder:
    """A model that remembers what it was fed."""

    def __init__(self, model: Model) -> None:
        self.model, self.config, self.fed = model, model.config, list[tuple[np.ndarray, ...]]()

    def empty_cache(self, batch: int) -> Any:
        return self.model.empty_cache(batch)

    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int = 0) -> Any:
        self.fed.append((ids, mask, positions))
        return self.model.step(ids, mask, positions, cache, keep)


def test_decoding_takes_the_steps_that_generate_takes(bundled: Path) -> None:
    model = Recorder(load(bundled))
    prompts = [[5, 9, 2], [77, 340, 1]]
    _, logits, cache = prefill(model, np.array(prompts))  # type: ignore[arg-type]
    assert logits.shape == (2, 1, 2048)
    decode(model, logits, cache, 3, 4)  # type: ignore[arg-type]
    assert len(model.fed) == 1 + 5
    done = load(bundled).generate(prompts, max_new_tokens=5)
    assert np.hstack([ids for ids, _, _ in model.fed[1:]]).tolist() == done.new_ids
    for number, (_, mask, positions) in enumerate(model.fed[1:]):
        assert mask.shape == (2, 4 + number)
        assert positions.tolist() == [[3 + number]] * 2


def test_lengths_are_cut_to_the_models_positions_and_measured_once() -> None:
    asked = Settings(contexts=(900, 2000, 128), prompt_lengths=(5000, 16, 16, 4000), batch_sizes=(8, 1))
    cut = clipped(asked, GPT2Config())
    assert (cut.contexts, cut.prompt_lengths, cut.batch_sizes) == ((128, 900, 991), (16, 1024), (1, 8))
    assert clipped(Settings(), GPT2Config()).contexts == (128, 900)
    short = clipped(Settings(), GPT2Config(n_positions=3))
    assert (short.contexts, short.prompt_lengths, short.new_tokens) == ((1,), (3,), 1)
    for size in range(3, 80):
        cut = clipped(Settings(), GPT2Config(n_positions=size))
        assert 1 <= min(cut.contexts) <= max(cut.contexts) <= size - 1 - cut.new_tokens


def test_the_cheapest_is_measured_first_and_a_length_for_both_at_once() -> None:
    cells = cells_of(Settings(batch_sizes=(1, 8), contexts=(128, 900), prompt_lengths=(16, 128)))
    assert cells[:3] == [Cell(1, 16, True, False), Cell(1, 128, True, True), Cell(8, 16, True, False)]
    assert cells[-1] == Cell(8, 900, False, True)


def test_quick_is_quick_unless_something_is_asked_for(everything: Path) -> None:
    result = run("bench", everything, "--quick", "--new-tokens", 2, "--precision", "int4, fp32", "--json")
    found = json.loads(result.stdout)
    assert [one["precision"] for one in found["precisions"]] == ["fp32", "int4"]
    assert [row["prompt_length"] for row in found["precisions"][0]["prefill"]] == [16, 128]
    assert [(row["batch_size"], row["context"]) for row in found["precisions"][0]["decode"]] == [(1, 128)]
    assert (found["rounds"], found["new_tokens"]) == (1, 2)


def test_help_names_the_defaults() -> None:
    said = " ".join(run("bench", "--help").stdout.split())
    for name in ("batch_sizes", "contexts", "prompt_lengths", "new_tokens", "rounds", "max_minutes"):
        value = getattr(Settings(), name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert re.search(rf"--{name.replace('_', '-')} [^[]*\[default: {shown}\]", said), name


def test_a_folder_without_our_manifest_is_measured_too(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    (tmp_path / "out" / "gpt2onnx.json").unlink()
    assert [one.precision for one in bench(tmp_path / "out", FEW).precisions] == ["fp32"]


def test_a_model_of_two_heads_is_measured_as_the_language_model_it_is(save: Save, tmp_path: Path) -> None:
    convert(save(head="double-heads"), tmp_path / "out")
    assert bench(tmp_path / "out", FEW).missing == ()


def test_nothing_is_written_into_the_folder(bundled: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in bundled.rglob("*")}
    bench(bundled, FEW)
    assert {file: file.stat().st_mtime_ns for file in bundled.rglob("*")} == before


# --- rounds and time --------------------------------------------------------------------------------------------------


class Stopwatch:
    """In place of processes: every job takes ten minutes, if it gets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ran, self.granted = 0.0, list[str](), list[float]()
        monkeypatch.setattr(rounds, "run", self.run)
        monkeypatch.setattr(rounds.time, "monotonic", lambda: self.now)

    def run(self, job: Any, seconds: float, begin: Any) -> dict[Key, float]:
        self.ran.append(job["steps"][0].partition(":")[0])
        self.granted.append(seconds)
        self.now += min(600.0, max(0.0, seconds))
        if seconds < 600:
            return {("load",): 1.0} if seconds > 60 else {}
        return {("bandwidth",): 1e9} if "read" in job else {("load",): 1.0, ("prefill", 1, 4): 2.0}


def test_rounds_alternate_between_precisions_and_turn_round(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(monkeypatch)
    settings = Settings(precisions=("fp32", "int8"), rounds=3, max_minutes=1000)
    assert bench(everything, settings).rounds == 3
    there, back = ["fp32", "int8"], ["int8", "fp32"]
    assert watch.ran == ["memory bandwidth", *there, "memory bandwidth", *back, "memory bandwidth", *there]


def test_a_round_that_the_time_is_too_short_for_is_not_begun(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(monkeypatch)
    settings = Settings(precisions=("fp32", "int8"), rounds=3, max_minutes=89)
    assert bench(everything, settings).rounds == 2
    assert watch.now == 2 * 3 * 600


def test_what_there_is_no_time_for_is_said_to_be_missing(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(monkeypatch)
    settings = Settings(
        precisions=("fp32", "int8"), max_minutes=15, batch_sizes=(1,), contexts=(4,), prompt_lengths=(4,)
    )
    found = bench(everything, settings)
    assert watch.granted == [300, 300, 300]
    assert watch.now == 15 * 60
    assert found.bandwidth is None
    every = ("prefill, batch 1, 4 tokens", "decode, batch 1, context 4")
    assert found.missing == tuple(f"{name}: {what}" for name in ("fp32", "int8") for what in every)


def test_a_time_that_is_too_short_for_anything_is_one_sentence(bundled: Path) -> None:
    assert_one_sentence(run("bench", bundled, "--max-minutes", 1e-9), "nothing was measured", "--max-minutes")


def test_a_table_has_room_for_what_was_not_measured(
    everything: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Stopwatch(monkeypatch)
    result = run("bench", everything, "--max-minutes", 15, "--plot", tmp_path / "bench.svg")
    assert result.exit_code == 0, result.output
    assert "not measured within 15 minutes: fp32: prefill" in result.stdout
    ElementTree.parse(tmp_path / "bench.svg")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux tells who is whose child")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_process_is_left_behind(bundled: Path, tmp_path: Path, sent: int, code: int) -> None:
    command = [sys.executable, "-m", "converter.cli", "bench", str(bundled), "--rounds", "1000"]

    def heed_interrupts() -> None:
        """Shells have what they run in the background ignore SIGINT."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

    plot = tmp_path / "bench.svg"
    with subprocess.Popen(
        [*command, "--plot", str(plot)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_interrupts,
    ) as running:  # fmt: skip
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        while not (pids := children.read_text().split()):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(sent)
        output, errors = running.communicate(timeout=60)
    assert (running.returncode, output, errors) == (code, "", "")
    for _ in range(600):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert os.listdir(tmp_path) == []


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_a_table_and_a_plot_show_it(everything: Path, tmp_path: Path) -> None:
    result = run("bench", everything, *TINY, "--plot", tmp_path / "bench.svg")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    for heading in ("weights read", "Prefill", "Decoding", "of limit"):
        assert heading in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    for name in EVERY:
        assert sum(name in line for line in lines) == 1 + 2 + 4
    assert re.search(r"Medians and extremes of 2 rounds; memory is read at [\d.]+ .B/s; ONNX Runtime", result.stdout)
    svg = (tmp_path / "bench.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert all(f">{part}<" in svg for part in (*EVERY, "Decoding", "Prefill", "Memory", "2 × 253", "2 × 3"))


def test_the_same_figures_are_the_same_plot(bundled: Path, tmp_path: Path) -> None:
    from converter.runtime.benching import plot

    found = bench(bundled, FEW)
    for name in ("a.svg", "b.svg"):
        plot.write(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_spread_of_nothing_is_none() -> None:
    assert Spread.over([]) is None
    assert Spread.over([3, 1, 2]) == Spread(2, 1, 3)


def test_steps_are_told(bundled: Path) -> None:
    told: list[tuple[str, int, int]] = []
    bench(bundled, FEW, lambda *step: told.append(step))
    assert told == [("memory bandwidth", 0, 3), ("fp32: load", 1, 3), ("fp32: batch 1, 4 tokens", 2, 3)]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--precision", "int8"], ["has no int8, only fp32; add it with gpt2onnx convert SOURCE", "--precision int8"]),
        (["--precision", "fp8"], ["there is no precision 'fp8'"]),
        (["--batch-sizes", "0"], ["batch_sizes is (0,); expected whole numbers of 1 or more"]),
        (["--contexts", "128;900"], ["contexts is '128;900'; expected whole numbers", "such as 1,8"]),
        (["--prompt-lengths", ""], ["prompt_lengths is ''"]),
        (["--new-tokens", "0"], ["new_tokens is 0"]),
        (["--rounds", "-1"], ["rounds is -1"]),
        (["--max-minutes", "0"], ["max_minutes is 0.0; expected more than 0"]),
        (["--max-minutes", "nan"], ["max_minutes is nan"]),
        (["--provider", "abacus"], ["no provider abacus; it offers"]),
    ],
)
def test_nonsense_is_one_sentence(bundled: Path, arguments: list[str], parts: list[str]) -> None:
    assert_one_sentence(run("bench", bundled, *arguments), *parts)


def test_what_is_no_language_model_is_one_sentence(save: Save, tmp_path: Path) -> None:
    assert_one_sentence(run("bench", tmp_path / "nowhere"), "there is no model folder")
    assert_one_sentence(run("bench", CHECKPOINT), "has no onnx/model.onnx")
    convert(save(head="base"), tmp_path / "base")
    parts = ["has the head base, which generates nothing", "bench measures language models"]
    assert_one_sentence(run("bench", tmp_path / "base"), *parts)
    convert(save("two", n_positions=2), tmp_path / "short")
    assert_one_sentence(run("bench", tmp_path / "short"), "has 2 positions", "3 or more")


def test_a_damaged_folder_is_one_sentence(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    (tmp_path / "out" / "onnx" / "model.onnx_data").unlink()
    assert_one_sentence(run("bench", tmp_path / "out"), "model.onnx cannot be opened by ONNX Runtime")


def test_a_process_that_is_ended_by_the_system_is_one_sentence(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PROCESS", "import os; os.kill(os.getpid(), 9)")
    assert_one_sentence(run("bench", bundled), "memory bandwidth: the process was ended by signal 9", "--batch-sizes")
    monkeypatch.setattr(rounds, "PROCESS", "raise SystemExit(7)")
    assert run("bench", bundled).exit_code == 3
    monkeypatch.setattr(rounds, "PROCESS", "print('\"memory ran out\"')")
    with pytest.raises(BenchError, match="memory ran out"):
        bench(bundled)


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "run", lambda *arguments: pytest.fail("it began"))
    refused = run("bench", bundled, "--plot", tmp_path / "no" / "bench.svg")
    assert refused.exit_code == 2
    assert f"there is no folder {tmp_path / 'no'}" in refused.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else name)
    assert_one_sentence(
        run("bench", bundled, "--plot", tmp_path / "bench.svg"), "--plot needs matplotlib; install them with"
    )
