"""Who may ask, what every answer carries, and what the log and the figures tell."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from converter import convert
from converter.data import CHECKPOINT
from converter.errors import ModelFolderError
from converter.folder import certificate
from converter.serving.routes import ROUTES
from converter.serving.served import open_folder
from converter.serving.server import Lines
from tests.serving.servers import Running, running

PATH = "/v1/completions"
ONE = {"prompt": "The", "max_tokens": 1}


@pytest.fixture(scope="module")
def locked(bundled: Path) -> Any:
    with running(bundled, key="s3cret", origins=("https://example.org",)) as made:
        yield made


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_address_but_health_page_and_document_needs_the_key(locked: Running, route: Any) -> None:
    path = route.path.replace("{model}", "m")
    status, answer, response = locked.ask(route.method, path, b"{}")
    assert (status == 401) == (
        not path.startswith("/health") and path not in ("/", "/page.js", "/page.css", "/openapi.json")
    )
    if status == 401:
        assert answer["error"]["code"] == "invalid_api_key"
        assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("given", ["Bearer s3cre", "Bearer s3crets", "s3cret", "Basic s3cret", "Bearer", "Bearer é"])
def test_another_key_is_refused(locked: Running, given: str) -> None:
    locked.refused(PATH, ONE, 401, "API key", authorization=given)


def test_the_key_opens(locked: Running) -> None:
    assert locked.ask("POST", PATH, ONE, authorization="Bearer s3cret")[0] == 200


def test_an_answer_carries_the_id_of_its_request(server: Running) -> None:
    assert server.ask("GET", "/v1/models", x_request_id="mine-1")[2].headers["X-Request-Id"] == "mine-1"
    for unsound in ("", "a b", "x" * 65, "é"):
        given = server.ask("GET", "/nowhere", x_request_id=unsound)[2].headers["X-Request-Id"]
        assert re.fullmatch(r"[0-9a-f]{16}", given)
    assert server.ask("POST", PATH, ONE, x_request_id="mine-2")[1]["id"] == "cmpl-mine-2"


def test_an_address_or_method_that_is_not_there_is_told_in_openais_form(server: Running) -> None:
    status, answer, _ = server.ask("GET", "/v1/nothing")
    assert (status, answer["error"]["type"]) == (404, "not_found_error")
    status, answer, response = server.ask("GET", PATH)
    assert (status, response.headers["Allow"]) == (405, "POST")
    assert answer["error"]["message"]
    assert server.ask("HEAD", "/health/live")[2].status == 200


def test_pages_of_other_origins_may_not_ask(server: Running, locked: Running) -> None:
    server.refused(PATH, ONE, 403, "--allow-origin https://evil.example", origin="https://evil.example")
    own = f"http://127.0.0.1:{server.port}"
    assert server.ask("POST", PATH, ONE, origin=own)[0] == 200
    # A name that another site gave to this address is not ours, unless a key protects it.
    server.refused(PATH, ONE, 403, "may not ask", origin="http://evil.example", host="evil.example")
    key = {"authorization": "Bearer s3cret"}
    assert locked.ask("POST", PATH, ONE, origin="http://model.example", host="model.example", **key)[0] == 200
    assert server.ask("POST", PATH, ONE)[2].headers["Access-Control-Allow-Origin"] is None


def test_pages_of_an_allowed_origin_may_ask(locked: Running) -> None:
    origin = "https://example.org"
    status, _, response = locked.ask("OPTIONS", PATH, origin=origin, access_control_request_method="POST")
    assert status == 204
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert "authorization" in response.headers["Access-Control-Allow-Headers"]
    status, _, response = locked.ask("POST", PATH, ONE, origin=origin, authorization="Bearer s3cret")
    assert (status, response.headers["Access-Control-Allow-Origin"]) == (200, origin)


def test_the_page_may_load_and_ask_nothing_from_elsewhere(server: Running) -> None:
    _, page, response = server.ask("GET", "/")
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
    assert "unsafe" not in policy
    assert not re.search(r"https?://|\bstyle=|<style|\bon\w+=", page)
    assert {response.headers[name] for name in ("X-Content-Type-Options", "Referrer-Policy")} == {
        "nosniff",
        "no-referrer",
    }


def test_no_answer_names_a_path(server: Running) -> None:
    home = str(server.server.served.folder.parent)
    for path, body in (
        (PATH, {"prompt": []}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}]}),
    ):
        assert home not in server.ask("POST", path, body)[1]["error"]["message"]
    for path in ("/v1/models", "/health/ready", "/openapi.json"):
        assert home not in json.dumps(server.ask("GET", path)[1])


def after(lines: list[str], name: str) -> list[dict[str, Any]]:
    """The lines of a log from that of the request ``name`` on."""
    found = [*map(json.loads, lines)]
    return found[next((at for at, line in enumerate(found) if line["id"] == name), len(found)) :]


def test_the_log_has_a_line_for_each_request_and_no_text(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="converter.serving")

    def lines() -> list[str]:
        return [Lines().format(record) for record in caplog.records if record.name == "converter.serving"]

    asked: list[tuple[Any, ...]] = [
        ("POST", PATH, {"prompt": "The secret", "max_tokens": 2}),
        ("POST", PATH, {"prompt": "The secret", "max_tokens": 2, "stream": True}),
        ("POST", PATH, {"prompt": "The secret", "max_tokens": -1}),
        ("GET", "/secret"),
    ]
    for number, each in enumerate(asked):
        server.ask(*each, **({} if number else {"x_request_id": "logged"}))
        # A line is written when its answer has been sent. An earlier test's may come late.
        server.until(lambda number=number: len(after(lines(), "logged")) > number)
    server.ask("GET", "/health/live")
    first, streamed, *others = after(lines(), "logged")
    assert first | {"time": "", "seconds": 0} == {
        "time": "", "level": "info", "event": "request", "id": "logged", "method": "POST", "route": PATH, "status": 200,
        "seconds": 0, "prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6,
    }  # fmt: skip
    assert (streamed["prompt_tokens"], streamed["completion_tokens"]) == (4, 2)
    assert [(line["status"], line["route"]) for line in others] == [(400, PATH), (404, "other")]
    assert "secret" not in "".join(lines())


def test_figures_count_what_was_done(bundled: Path) -> None:
    with running(bundled, rows=3, queue=7) as made:
        made.post(PATH, prompt="The following", max_tokens=5, n=2)
        made.refused(PATH, {"prompt": []}, 400)
        made.until(lambda: not made.engine.stats.running)  # the last token is told before its place is free
        text = made.ask("GET", "/metrics")[1]
    found = {name: float(value) for name, value in re.findall(r"^(gpt2onnx_\S+) (\S+)$", text, re.MULTILINE)}
    expected = {
        'requests_total{route="/v1/completions",status="200"}': 1,
        'requests_total{route="/v1/completions",status="400"}': 1,
        "time_to_first_token_seconds_count": 2,
        "time_between_tokens_seconds_count": 8,
        'request_seconds_count{route="/v1/completions"}': 2,
        "generated_tokens_total": 10,
        "running": 0,
        "rows": 3,
        "queue": 7,
        "cache_bytes": made.engine.stats.cache_bytes,
        "certificate_verified": 0,
    }
    assert {name: found[f"gpt2onnx_{name}"] for name in expected} == expected
    assert found["gpt2onnx_prompt_tokens_total"] + found["gpt2onnx_shared_prompt_tokens_total"] == 4


# --- the certificate --------------------------------------------------------------------------------------------------


@pytest.fixture
def proven(tmp_path: Path) -> Path:
    convert(CHECKPOINT, tmp_path / "proven")
    certificate.write(tmp_path / "proven", [CHECKPOINT / "model.safetensors"], True, "a match", {"level": "quick"})
    return tmp_path / "proven"


def test_ready_says_whether_the_folder_is_proven(server: Running, proven: Path) -> None:
    _, answer, _ = server.ask("GET", "/health/ready")
    assert (answer["status"], answer["certificate"]["verified"]) == ("ready", False)
    with running(proven) as made:
        told = made.ask("GET", "/health/ready")[1]["certificate"]
        assert told["verified"]
        assert re.fullmatch(r"proven is what was checked on .*: a match", told["sentence"])
        assert "certificate_verified 1.0" in made.ask("GET", "/metrics")[1]


def test_a_folder_that_is_not_proven_can_be_refused(bundled: Path, proven: Path) -> None:
    from converter.serving.limits import Limits

    def opened(folder: Path) -> Any:
        return open_folder(folder, rows=1, queue=1, limits=Limits(), certified=True)

    assert opened(proven).proven
    with pytest.raises(ModelFolderError, match="has no certificate"):
        opened(bundled)
    (proven / "config.json").write_text((proven / "config.json").read_text() + "\n")
    with pytest.raises(ModelFolderError, match="is NOT what was checked"):
        opened(proven)
