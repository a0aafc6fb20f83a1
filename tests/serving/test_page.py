"""The page: what its files hold; and in a real Chromium that it streams, explains each token, cancels, and is safe."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from converter import convert
from converter.data import CHECKPOINT
from converter.folder import certificate
from tests.serving.servers import Running, running

WAIT_MS = 60_000
READABLE = 4.5  # contrast of text, and of the edges of controls: WCAG 2.2, level AA
VISIBLE = 3.0

PAGE = files("converter.serving") / "page"
HTML, CSS, JS = ((PAGE / name).read_text("utf-8") for name in ("index.html", "page.css", "page.js"))


# --- its files, without a browser -------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """The tags of a page, each with its attributes and the tags around it."""

    VOID = ("meta", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.around: list[str] = []
        self.all: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        assert not self.around

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs), list(self.around)))
        if tag not in self.VOID:
            self.around.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.around.pop() == tag


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]
)
def test_a_file_comes_with_a_policy_under_which_nothing_else_runs(server: Running, path: str, kind: str) -> None:
    status, _, response = server.ask("GET", path)
    assert (status, response.headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    rules = dict(rule.strip().split(" ", 1) for rule in response.headers["Content-Security-Policy"].split(";"))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'"


def test_nothing_stands_in_the_page_that_the_policy_forbids() -> None:
    tags = Tags(HTML).all
    assert not [name for _, given, _ in tags for name in given if name == "style" or name.startswith("on")]
    assert all(given.get("src") for tag, given, _ in tags if tag == "script")
    assert not [tag for tag, _, _ in tags if tag == "style"]
    assert "://" not in HTML + CSS + JS
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|new Function", JS)


def test_every_field_has_a_label_and_every_reference_leads_somewhere() -> None:
    tags = Tags(HTML).all
    ids = [given["id"] for _, given, _ in tags if "id" in given]
    assert len(ids) == len(set(ids))
    labelled = {given["for"] for tag, given, _ in tags if tag == "label" and "for" in given}
    fields = [(given["id"], around) for tag, given, around in tags if tag in ("input", "textarea")]
    assert len(fields) == 7
    assert all(name in labelled or "label" in around for name, around in fields)
    referred = [
        given[name] for _, given, _ in tags for name in ("aria-describedby", "aria-labelledby") if name in given
    ]
    asked = re.findall(r'\$\("(\w[\w-]*)"\)', JS)
    assert {*referred, *asked, *labelled} <= set(ids)


def colours(scheme: str) -> dict[str, tuple[float, ...]]:
    """The colours of a scheme as red, green and blue of 0 to 1, and how strong the strongest mark of a token is."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    found = dict[str, tuple[float, ...]]()
    for block in blocks[: 1 + (scheme == "dark")]:
        for name, value in re.findall(r"--([\w-]+): ([^;]+);", block):
            numbers = [value[i : i + 2] for i in (1, 3, 5)] if value.startswith("#") else value.split()
            found[name] = tuple(
                int(each, 16) / 255 if value.startswith("#") else float(each) / (255 if len(numbers) == 3 else 1)
                for each in numbers
            )
    return found


def mixed(above: tuple[float, ...], below: tuple[float, ...], share: float) -> tuple[float, ...]:
    return tuple(share * a + (1 - share) * b for a, b in zip(above, below, strict=True))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_both_schemes(scheme: str) -> None:
    found = colours(scheme)
    hot = mixed(found["heat"], found["panel"], *found["most"])
    texts = {
        **{
            f"{text} on {ground}": (found[text], found[ground])
            for text in ("ink", "soft")
            for ground in ("page", "panel")
        },
        "link": (found["good"], found["page"]),
        "error": (found["bad"], found["page"]),
        "button": (found["on-good"], found["good"]),
        "the least likely token": (found["ink"], hot),
        "the sign of a line's end": (mixed(found["ink"], hot, 0.85), hot),
    }
    assert {name: contrast(*pair) for name, pair in texts.items() if contrast(*pair) < READABLE} == {}
    assert contrast(found["edge"], found["page"]) >= VISIBLE


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    if found is None:
        pytest.skip("there is no Chromium; Debian has it with: apt-get install chromium")
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture
def visit(browser: Any, server: Running) -> Iterator[Callable[..., Any]]:
    """``visit(phone=False)`` opens the page of the shared server: dark and with a mouse, or light and with a finger.

    Afterwards the browser must have complained of nothing, and have asked nobody else.
    """
    pages = list[Any]()

    def go(phone: bool = False) -> Any:
        size = {"width": 360, "height": 700} if phone else {"width": 1100, "height": 800}
        context = browser.new_context(viewport=size, has_touch=phone, color_scheme="light" if phone else "dark")
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.problems, page.requests, page.phone = [], [], phone
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda asked: page.requests.append(asked.url))
        pages.append(page)
        page.goto(server.url)
        page.locator("#form").wait_for()
        return page

    yield go
    for page in pages:
        page.context.close()
        assert page.problems == []
        asked = {urlsplit(url).netloc for url in page.requests if url.startswith("http")}
        assert asked == {f"127.0.0.1:{server.port}"}


@pytest.fixture(params=["desktop", "phone"])
def page(request: pytest.FixtureRequest, visit: Callable[..., Any]) -> Any:
    return visit(phone=request.param == "phone")


@pytest.fixture
def desktop(visit: Callable[..., Any]) -> Any:
    return visit()


def generate(page: Any, **settings: Any) -> None:
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))
    page.click("#go")


def written(page: Any, tokens: int) -> str:
    """What the page says of a run once so many tokens have come and no more will."""
    page.locator("#status", has_text=f"{tokens} tokens\u00a0· first after").wait_for()
    return page.locator("#status").inner_text().replace("\u00a0", " ")


def event(text: str, name: str | None = None, best: dict[str, float] | None = None, ended: str | None = None) -> str:
    """What a server sends of a token with this text."""
    name = text if name is None else name
    likely = {"tokens": [name], "token_logprobs": [-1.0], "top_logprobs": [best or {name: -1.0}], "text_offset": [0]}
    choice = {"index": 0, "text": text, "logprobs": likely, "finish_reason": ended}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def answer(page: Any, *events: str) -> None:
    """Let the page's next runs be answered by these events, in the server's stead."""
    page.route(
        "**/v1/completions",
        lambda route: route.fulfill(body="".join(events), content_type="text/event-stream; charset=utf-8"),
    )


def test_it_shows_the_text_and_what_might_have_come(page: Any, server: Running) -> None:
    generate(page, prompt="The following", temperature=0, max_tokens=12)
    assert re.fullmatch(r"12 tokens · first after [\d.]+ m?s · \d+ tokens/s", written(page, 12))
    expected = server.model.generate("The following", max_new_tokens=12, logprobs=5)
    assert page.locator("#text").text_content() == "The following" + expected.texts[0]
    assert page.locator("#said").text_content() == expected.texts[0]
    fourth, chosen = page.locator(".token").nth(3), expected.tokens[0][3]
    fourth.tap() if page.phone else fourth.hover()
    rows = page.locator("#best li")
    assert rows.locator(".word").all_inner_texts() == [
        server.model.piece(token).replace(" ", "␣").replace("\n", "↵") for token, _ in chosen.best
    ]
    listed = [math.exp(value) for _, value in chosen.best]
    shares = [*listed, 1 - sum(listed)]
    assert rows.locator(".number").all_inner_texts() == [
        f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %" for share in shares
    ]
    assert page.locator("#best .chosen .word").inner_text() == chosen.text.replace(" ", "␣")


def test_what_is_shown_of_a_token_stays_on_the_screen(page: Any) -> None:
    generate(page, prompt="x" * 200, max_tokens=40, seed=3)
    written(page, 40)
    for token in page.locator(".token").all()[::9]:
        token.scroll_into_view_if_needed()
        token.tap() if page.phone else token.hover()
        box = page.locator("#detail").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= page.viewport_size["width"]
        assert 0 <= box["y"] <= page.viewport_size["height"]
        page.keyboard.press("Escape")
    assert page.locator("html").evaluate("html => html.scrollWidth <= html.clientWidth")


def test_it_goes_as_it_has_come(page: Any) -> None:
    detail, token = page.locator("#detail"), page.locator(".token").nth(2)
    generate(page, max_tokens=6, seed=3)
    written(page, 6)
    token.tap() if page.phone else token.hover()
    detail.wait_for()
    page.keyboard.press("Escape")
    detail.wait_for(state="hidden")
    if not page.phone:
        page.locator("#manual").hover()
    token.tap() if page.phone else token.hover()
    detail.wait_for()
    page.locator("#manual").tap() if page.phone else page.locator("#manual").hover()
    detail.wait_for(state="hidden")


def test_one_can_move_onto_what_is_shown(desktop: Any) -> None:
    generate(desktop, max_tokens=6, seed=3)
    written(desktop, 6)
    desktop.locator(".token").nth(2).hover()
    desktop.locator("#best .chosen").hover()
    assert desktop.locator("#detail").is_visible()


def test_keys_reach_every_token(desktop: Any) -> None:
    answer(desktop, event("one"), event("\n\n"), event("two"), event(" three", ended="length"), "data: [DONE]\n\n")
    desktop.focus("#prompt")
    desktop.keyboard.press("Control+Enter")
    written(desktop, 4)
    desktop.focus("#cancel" if desktop.locator("#cancel").is_enabled() else "#go")
    desktop.keyboard.press("Tab")
    selected = desktop.locator(".token[aria-selected=true]")
    assert selected.text_content() == "one"
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"):
        desktop.keyboard.press(key)
        seen.append(selected.text_content())
    assert seen == ["\n\n", "two", " three", "two", "\n\n", "two", "one", " three"]
    named = desktop.locator("#text").get_attribute("aria-activedescendant")
    assert desktop.locator(f"#{named}").get_attribute("aria-label") == "␣three 36.8 %"
    assert desktop.locator("#detail").is_visible()
    desktop.keyboard.press("Tab")
    assert desktop.locator("#detail").is_hidden()


def test_settings_reach_the_model(page: Any, server: Running) -> None:
    asked = {"temperature": 1.2, "top_k": 9, "top_p": 0.9, "seed": 11}
    generate(page, prompt="A class", max_tokens=8, **asked)
    assert "seed 11" in written(page, 8)
    text = server.model.generate("A class", max_new_tokens=8, **asked).texts[0]
    assert page.locator("#text").text_content() == "A class" + text


def test_a_text_that_came_without_a_seed_comes_again_with_the_one_that_is_shown(desktop: Any) -> None:
    generate(desktop, temperature=1.5, max_tokens=8)
    seed = written(desktop, 8).rpartition("seed ")[2]
    text = desktop.locator("#text").text_content()
    generate(desktop, max_tokens=9, seed=seed)
    written(desktop, 9)
    assert desktop.locator("#text").text_content().startswith(text)


@pytest.mark.parametrize("how", ["button", "key"])
def test_it_cancels(page: Any, server: Running, how: str) -> None:
    generate(page, prompt="The following", temperature=0, max_tokens=250)
    page.locator(".token").first.wait_for()
    page.click("#cancel") if how == "button" else page.keyboard.press("Escape")
    page.locator("#status", has_text="Cancelled after").wait_for()
    server.until(lambda: not server.engine.stats.running)
    assert page.locator("#go").is_enabled()
    assert page.locator("#cancel").is_disabled()


def test_it_says_what_the_server_refuses(page: Any) -> None:
    page.fill("#prompt", "a" * 3000)
    page.keyboard.press("Control+Enter")
    page.locator("#status.error", has_text="The server says: a prompt has").wait_for()
    assert "reads at most 256: shorten it." in page.locator("#status").inner_text()
    assert [text for text in page.problems if "400" in text] == page.problems
    page.problems.clear()


def test_it_says_what_fails_within_a_stream_and_keeps_what_has_come(desktop: Any) -> None:
    error = {"message": "the server stops", "type": "server_error", "param": None, "code": None}
    answer(desktop, event("so far"), f"data: {json.dumps({'error': error})}\n\n", "data: [DONE]\n\n")
    generate(desktop, prompt="")
    desktop.locator("#status.error", has_text="The server says: the server stops.").wait_for()
    assert desktop.locator("#text").text_content() == "so far"


def test_a_stream_that_breaks_off_is_not_taken_for_a_whole_text(desktop: Any) -> None:
    answer(desktop, event("so far"))
    generate(desktop)
    desktop.locator("#status.error", has_text="broke before the text was complete").wait_for()


def test_markup_in_a_text_stays_text(desktop: Any) -> None:
    markup = "<img src=x onerror=document.title=1><script>document.title=2</script><b>"
    answer(desktop, event(markup, best={"</span><i>": -0.5, markup: -1.0}, ended="stop"), "data: [DONE]\n\n")
    title = desktop.title()
    generate(desktop, prompt=markup)
    desktop.locator(".token").hover()
    assert desktop.locator("#text").text_content() == markup * 2
    assert desktop.locator("#best .word").first.inner_text() == "</span><i>"
    assert desktop.locator("#result").locator("img, script, b").count() == 0
    assert desktop.locator("#best i").count() == 0
    assert desktop.title() == title


def test_the_browser_itself_refuses_to_make_markup_of_text(desktop: Any) -> None:
    assert (
        desktop.evaluate("try { document.body.innerHTML = '<b>'; 'made' } catch (error) { error.name }") == "TypeError"
    )
    assert [text for text in desktop.problems if "TrustedHTML" in text] == desktop.problems
    desktop.problems.clear()


def test_white_space_is_shown_as_it_is(desktop: Any) -> None:
    pieces = ["  two", "\t", "\n \n", "   ", "end"]
    answer(desktop, *map(event, pieces), event("", "<|endoftext|>", ended="stop"), "data: [DONE]\n\n")
    generate(desktop, prompt=" a\n")
    written(desktop, 6)
    assert desktop.locator("#text").text_content() == " a\n" + "".join(pieces)
    assert desktop.locator(".break").count() == 2
    tokens = desktop.locator(".token")
    assert all(tokens.nth(i).bounding_box()["width"] > 0 for i in range(6))
    assert tokens.nth(3).bounding_box()["width"] == pytest.approx(tokens.nth(4).bounding_box()["width"], abs=0.5)
    assert tokens.last.get_attribute("data-mark") == "end of text"


def test_tokens_that_make_up_one_character_are_shown_as_one(desktop: Any) -> None:
    answer(desktop, event("", "bytes:\\xc3"), event("é", "bytes:\\xa9", ended="length"), "data: [DONE]\n\n")
    generate(desktop, prompt="caf")
    written(desktop, 2)
    assert desktop.locator("#text").text_content() == "café"
    assert desktop.locator(".token").count() == 1
    desktop.locator(".token").hover()
    assert desktop.locator("#token").inner_text() == "The last of 2 tokens that make up a character"


def test_it_says_whether_the_folder_is_proven(browser: Any, server: Running, tmp_path: Path) -> None:
    convert(CHECKPOINT, tmp_path / "proven")
    certificate.write(tmp_path / "proven", [CHECKPOINT / "model.safetensors"], True, "a match", {"level": "full"})
    with running(tmp_path / "proven", key="s3cret") as made:
        shown = browser.new_page()
        shown.goto(made.url)
        shown.fill("#key", "wrong")
        shown.keyboard.press("Enter")
        shown.locator("#key-status", has_text="That was not the key").wait_for()
        shown.fill("#key", "s3cret")
        shown.keyboard.press("Enter")
        shown.locator("#badge", has_text="✓ PROVEN").wait_for()
        assert "full" in shown.locator("#figures").inner_text()
        shown.goto(server.url)
        shown.locator("#badge", has_text="✗ NOT PROVEN").wait_for()
        shown.close()
