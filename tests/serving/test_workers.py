"""Files of many texts are computed by workers of Ray as by one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.data", reason="the extra ray is not installed")

import ray

from converter.errors import ClusterError
from converter.runtime.generation import Copies, options_of
from converter.runtime.opening import load
from converter.serving import cluster as clusters
from converter.serving.workers import Workers
from tests.cli.commands import assert_one_sentence, run, succeed

PROMPTS = ["The following", "In a class", "The following", "def", "A name", "The following"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine, which commands in this process find as their own."""
    with clusters.joined(processors=2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "joined", nullcontext)
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [json.dumps({"prompt": text, "id": n}) for n, text in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return tmp_path / "prompts.jsonl"


def generated(folder: Path, *options: object) -> list[dict[str, Any]]:
    result = succeed("generate", folder, "-n", 6, "-q", "--threads", 1, "--batch-size", 1, *options)
    return [json.loads(line) for line in result.stdout.splitlines()]


RAY = ("--engine", "ray", "--workers", 2)


@pytest.mark.parametrize(
    "options", [(), ("--temperature", 1, "--seed", 5, "--best", 2, "--logprobs", 1), ("--beams", 2)], ids=str
)
def test_texts_are_those_of_one_process(
    cluster: None, bundled: Path, file: Path, options: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.serving.workers.PROMPTS", 2)  # so that the copies of a prompt lie in several tasks
    assert generated(bundled, "--prompts", file, *RAY, *options) == generated(bundled, "--prompts", file, *options)


def test_what_was_interrupted_goes_on(cluster: None, bundled: Path, file: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    options = ("--prompts", file, "--temperature", 1, "--seed", 7)
    assert generated(bundled, *options, *RAY, "-o", whole) == []
    cut.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:3]) + b'{"prompt": "de')
    generated(bundled, *options, *RAY, "-o", cut)
    assert cut.read_bytes() == whole.read_bytes()


def test_parquet_is_read_with_all_its_columns(cluster: None, bundled: Path, file: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"text": PROMPTS, "id": range(len(PROMPTS))}), tmp_path / "p.parquet", row_group_size=2
    )
    found = generated(bundled, "--prompts", tmp_path / "p.parquet", *RAY)
    assert found == generated(bundled, "--prompts", file)
    scored = succeed("score", bundled, tmp_path / "p.parquet", *RAY, "--threads", 1, "-q").stdout
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in PROMPTS))
    assert scored == succeed("score", bundled, tmp_path / "t.jsonl", "--threads", 1, "-q").stdout


def test_what_cannot_be_is_said_in_a_sentence(cluster: None, bundled: Path, file: Path, tmp_path: Path) -> None:
    def refused(*options: object) -> Any:
        return run("generate", bundled, "-q", *options)

    (tmp_path / "p.parquet").write_bytes(b"PAR1 and nothing else")
    assert_one_sentence(refused("--prompts", tmp_path / "p.parquet", *RAY), "p.parquet cannot be read as Parquet")
    assert_one_sentence(refused("--prompts", file, *RAY, "--threads", 3), "6 processors", "the cluster has 2")
    for options, part in (
        (("--prompts", file, "--workers", 2), "add --engine ray"),
        (("text", *RAY), "--engine ray is for --prompts FILE"),
    ):
        result = refused(*options)
        assert result.exit_code == 2
        assert part in result.stderr


def test_a_worker_that_fails_ends_the_command_with_its_sentence(
    cluster: None, bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundled, tmp_path / "out", symlinks=True)
    model = load(tmp_path / "out")
    (tmp_path / "out" / "config.json").unlink()
    asked = options_of(model, {"max_new_tokens": 2})
    with pytest.raises(ClusterError, match=r"a worker of Ray has failed: .*config\.json"):
        list(Workers(1, 1, {}).generate_each(model, [[1, 2]], asked, 1, Copies(0)))


def test_a_cluster_that_runs_already_is_joined_and_left_running(cluster: None, bundled: Path, file: Path) -> None:
    command = ["generate", str(bundled), "--prompts", str(file), "-n", "6", "-q", "--batch-size", "1", *map(str, RAY)]
    done = subprocess.run(
        [sys.executable, "-m", "converter.cli", *command, "--threads", "1"],
        env={**os.environ, clusters.ADDRESS: ray.get_runtime_context().gcs_address}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == generated(bundled, "--prompts", file)
    assert ray.cluster_resources()["CPU"] == 2


def test_an_address_without_a_cluster_is_said_in_a_sentence(
    bundled: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(clusters.ADDRESS, "127.0.0.1:1")
    arguments = ["generate", str(bundled), "--prompts", str(file), *map(str, RAY)]
    done = subprocess.run([sys.executable, "-m", "converter.cli", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the cluster of Ray at 127.0.0.1:1 cannot be joined" in done.stderr
    assert done.stderr.count("\n") == 1
