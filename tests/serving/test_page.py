"""The page, in a real Chromium: it streams, explains each token, cancels, and asks nobody but its server."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from converter import convert
from converter.data import CHECKPOINT
from converter.folder import certificate
from tests.serving.servers import Running, running

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    if found is None:
        pytest.skip("there is no Chromium; Debian has it with: apt-get install chromium")
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture(params=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser: Any, server: Running) -> Iterator[Any]:
    """The page of the shared server, in a dark browser with a mouse or a light one with a finger."""
    phone = request.param == "phone"
    size = {"width": 360, "height": 700} if phone else {"width": 1100, "height": 800}
    context = browser.new_context(viewport=size, has_touch=phone, color_scheme="light" if phone else "dark")
    made = context.new_page()
    made.set_default_timeout(WAIT_MS)
    made.problems, made.requests = [], []
    made.on("console", lambda message: made.problems.append(message.text))
    made.on("pageerror", lambda error: made.problems.append(str(error)))
    made.on("request", lambda asked: made.requests.append(asked.url))
    made.phone = phone
    made.goto(server.url)
    made.locator("#form").wait_for()
    yield made
    assert made.problems == []
    assert {urlsplit(url).netloc for url in made.requests if url.startswith("http")} == {f"127.0.0.1:{server.port}"}
    context.close()


def generate(page: Any, **settings: Any) -> None:
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))
    page.click("#go")


def test_it_shows_the_text_and_what_might_have_come(page: Any, server: Running) -> None:
    generate(page, prompt="The following", temperature=0, max_tokens=12)
    page.locator("#status", has_text="12 tokens in").wait_for()
    expected = server.model.generate("The following", max_new_tokens=12, logprobs=5)
    assert page.locator("#text").text_content() == "The following" + expected.texts[0]
    fourth, chosen = page.locator(".token").nth(3), expected.tokens[0][3]
    fourth.tap() if page.phone else fourth.hover()
    rows = page.locator("#best li")
    assert rows.count() == 5
    assert rows.locator(".number").first.inner_text() == f"{100 * math.exp(chosen.best[0][1]):.1f} %"
    assert rows.locator(".word").first.inner_text() == server.model.piece(chosen.best[0][0]).replace(" ", "␣")
    page.locator("#text").focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "End", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator(".token[aria-selected=true]").inner_text() == expected.tokens[0][10].text


def test_settings_reach_the_model(page: Any, server: Running) -> None:
    asked = {"temperature": 1.2, "top_k": 9, "top_p": 0.9, "seed": 11}
    generate(page, prompt="A class", max_tokens=8, **asked)
    page.locator("#status", has_text="8 tokens in").wait_for()
    text = server.model.generate("A class", max_new_tokens=8, **asked).texts[0]
    assert page.locator("#text").text_content() == "A class" + text


@pytest.mark.parametrize("how", ["button", "key"])
def test_it_cancels(page: Any, server: Running, how: str) -> None:
    generate(page, prompt="The following", temperature=0, max_tokens=250)
    page.locator(".token").first.wait_for()
    page.click("#cancel") if how == "button" else page.keyboard.press("Escape")
    page.locator("#status", has_text="Cancelled after").wait_for()
    server.until(lambda: not server.engine.stats.running)
    assert page.locator("#go").is_enabled()


def test_it_says_what_the_server_refuses(page: Any) -> None:
    page.fill("#prompt", "a" * 3000)
    page.keyboard.press("Control+Enter")
    page.locator("#status", has_text="this server reads at most 256").wait_for()
    assert [text for text in page.problems if "400" in text] == page.problems
    page.problems.clear()


def test_nothing_is_wider_than_the_screen(page: Any) -> None:
    generate(page, prompt="x" * 200, max_tokens=5)
    page.locator("#status", has_text="5 tokens in").wait_for()
    assert page.locator("html").evaluate("html => html.scrollWidth <= html.clientWidth")


def test_it_says_whether_the_folder_is_proven(browser: Any, server: Running, tmp_path: Path) -> None:
    convert(CHECKPOINT, tmp_path / "proven")
    certificate.write(tmp_path / "proven", [CHECKPOINT / "model.safetensors"], True, "a match", {"level": "full"})
    with running(tmp_path / "proven", key="s3cret") as made:
        shown = browser.new_page()
        shown.goto(made.url)
        shown.fill("#key", "wrong")
        shown.keyboard.press("Enter")
        shown.locator("#about", has_text="That was not the key").wait_for()
        shown.fill("#key", "s3cret")
        shown.keyboard.press("Enter")
        shown.locator("#verdict", has_text="Proven").wait_for()
        assert "full" in shown.locator("#figures").inner_text()
        shown.goto(server.url)
        shown.locator("#verdict", has_text="Not proven").wait_for()
        shown.close()
