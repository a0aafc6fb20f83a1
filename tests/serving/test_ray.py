"""Replicas of Ray Serve answer as one server does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray.serve", reason="the extra ray is not installed")

import yaml
from openai import OpenAI
from ray.serve.schema import ServeDeploySchema

from converter.errors import ServeError
from converter.runtime.opening import load
from converter.serving.cluster import sentence_of
from converter.serving.ray import Replica, application, options_in
from converter.serving.settings import KEY_VARIABLE, Settings
from tests.cli.commands import assert_one_sentence, run
from tests.docs.blocks import blocks
from tests.serving.servers import WAIT, Running, raw

ATTEMPTS = 3  # to start Ray, whose parts give up on each other on a machine that is very busy

SCALE = Path(__file__).parents[2] / "docs" / "how-to" / "scale.md"


@pytest.fixture(scope="module")
def replicas(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two replicas of the small model, run by the command."""
    home = tmp_path_factory.mktemp("replicas")
    (home / "replicas.yaml").write_text("num_replicas: 2\nray_actor_options: {num_cpus: 0.5}\n")
    command = [sys.executable, "-m", "converter.cli", "serve", str(bundled), "--ray", str(home / "replicas.yaml")]
    for _ in range(ATTEMPTS):
        process = subprocess.Popen([*command, "--port", "0", "--name", "small"], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = [""]
        while "replicas of Ray" not in said[-1] and (line := process.stderr.readline()):
            said.append(line)
        if port := re.search(r":(\d+) serves", said[-1]):
            break
    assert port is not None, said
    try:
        yield Running(None, int(port[1]))  # type: ignore[arg-type] # it runs in another process
    finally:
        process.send_signal(signal.SIGTERM)
        _, last = process.communicate(timeout=WAIT)
        assert process.returncode == 0, last


def test_each_replica_gives_the_text_of_one_process(replicas: Running, bundled: Path) -> None:
    expected = load(bundled).generate("The following", max_new_tokens=12, temperature=0.8, seed=4).texts[0]
    client = OpenAI(base_url=f"{replicas.url}/v1", api_key="none")
    asked = {"model": "small", "prompt": "The following", "max_tokens": 12, "temperature": 0.8, "seed": 4}
    whole = [client.completions.create(**asked).choices[0].text for _ in range(6)]
    streamed = "".join(event.choices[0].text for event in client.completions.create(**asked, stream=True))
    assert {*whole, streamed} == {expected}


def test_other_addresses_and_refusals_are_those_of_a_server(replicas: Running) -> None:
    assert replicas.ask("GET", "/health/ready")[1]["model"] == "small"
    assert "<title>" in replicas.ask("GET", "/")[1]
    assert replicas.post("/tokenize", prompt="The following")["count"] == 2
    replicas.refused("/v1/completions", {"prompt": 3}, 400, "prompt")
    status, answer, _ = replicas.ask("GET", "/metrics")
    assert (status, answer["error"]["message"]) == (
        404,
        "each replica counts for itself; scrape the metrics of Ray, which count all of them",
    )


def test_a_client_that_goes_away_leaves_room_for_others(replicas: Running) -> None:
    body = json.dumps({"prompt": "The", "max_tokens": 120, "stream": True, "n": 16, "temperature": 1}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    for _ in range(40):  # more texts than both replicas may hold
        connection = raw(replicas.port, head + b"content-length: %d\r\n\r\n" % len(body) + body)
        connection.recv(100)
        connection.close()
    assert replicas.post("/v1/completions", prompt="The following", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_folder_that_no_replica_can_open_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "replicas.yaml").write_text("num_replicas: 1\n")
    result = run("serve", tmp_path, "--ray", tmp_path / "replicas.yaml", "-q", "--port", 0)
    assert_one_sentence(result, "has no onnx/model.onnx")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("num_replica: 2", ["Ray Serve has no option num_replica; it has ", "num_replicas"]),
        ("num_replicas: -2", ["num_replicas", "greater than 0"]),
        ("- 2", ["expected lines such as num_replicas: 2"]),
        ("a: [", ["cannot be read as YAML"]),
        ("autoscaling_config: {min_replicas: 5, max_replicas: 2}", ["max_replicas"]),
        (b"\xff", ["cannot be read as YAML"]),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(content: str | bytes, parts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "replicas.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ServeError) as caught:
        options_in(file, 16)
    assert str(caught.value).startswith(str(file))
    assert str(caught.value).count("replicas.yaml") == 1 or "YAML" in parts[0]  # which says the place once more
    for part in parts:
        assert part in str(caught.value)


def test_a_replica_more_is_wanted_where_more_requests_run_than_have_rows(tmp_path: Path) -> None:
    file = tmp_path / "replicas.yaml"
    for given, wanted in (({"max_replicas": 3}, 7), ({"max_replicas": 3, "target_ongoing_requests": 2}, 2)):
        file.write_text(yaml.safe_dump({"autoscaling_config": given}))
        assert options_in(file, 7)["autoscaling_config"]["target_ongoing_requests"] == wanted


def test_arguments_of_a_configuration_file_are_options_of_the_command() -> None:
    assert application({"out": "somewhere", "require-certificate": True, "rows": 3}) is not None
    for arguments, part in (({"out": "a", "row": 3}, "no option row"), ({"out": "a", "rows": "x"}, "rows")):
        with pytest.raises(ServeError, match=part):
            application(arguments)


def test_a_cluster_that_others_reach_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(ServeError, match=rf"no API key: set {KEY_VARIABLE} on its machines, or write without_key"):
        Replica(Settings(out="anything"), needs_key=True)
    for arguments, needs in (({}, True), ({"without_key": True}, False), ({"without-key": False}, True)):
        assert application({"out": "somewhere", **arguments})._bound_deployment.init_args[2] is needs


def test_of_a_long_story_the_sentence_is_shown() -> None:
    assert sentence_of("ray::init\n  converter.errors.ConfigError: /a/config.json is empty\n  more") == (
        "/a/config.json is empty"
    )
    assert sentence_of("first\n last ") == "last"


def test_the_manifest_for_kubernetes_is_sound() -> None:
    (block,) = [block for block in blocks(SCALE) if block.language == "yaml"]
    manifest = yaml.safe_load(block.text)
    served = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    (one,) = served.applications
    assert one.import_path == "converter.serving.ray:application"
    assert application(one.args) is not None
    if "RAYSERVICE_CRD" in os.environ:  # KubeRay's own definition of a RayService
        import jsonschema_rs

        definition = yaml.safe_load(Path(os.environ["RAYSERVICE_CRD"]).read_text())
        version = next(each for each in definition["spec"]["versions"] if each["name"] == "v1")
        jsonschema_rs.validate(version["schema"]["openAPIV3Schema"], manifest)
