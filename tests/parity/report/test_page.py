"""The HTML report: one page that says what was found, to whoever opens it, with nothing but itself."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from converter import check, convert
from converter.data import CHECKPOINT
from converter.errors import OutputError
from converter.parity.report import drawing, page, plots, positions, words
from converter.parity.report.report import Report
from converter.parity.verdict import metrics

Save = Callable[..., Path]

COMMAND = "gpt2onnx check tiny tiny-onnx --report report.html"


@pytest.fixture(scope="module")
def match(bundled: Path) -> Report:
    return check(CHECKPOINT, bundled, layers=True, certify=False)


@pytest.fixture(scope="module")
def mismatch(tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("wrong") / "wrong-gelu"
    convert(CHECKPOINT, out)
    model = onnx.load(out / "onnx" / "model.onnx", load_external_data=False)
    del next(n for n in model.graph.node if n.output[0] == "h.2.mlp.act").attribute[:]
    onnx.save(model, out / "onnx" / "model.onnx")
    return check(CHECKPOINT, out, certify=False)


@pytest.fixture(scope="module")
def written(match: Report) -> str:
    return page.render(match, COMMAND)


class Outline(HTMLParser):
    """What a page is made of; fails if a tag is not closed, or closed twice."""

    VOID = ("meta", "link", "br", "wbr", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.headings and self.headings[-1][0] in self.open:
            tag, text = self.headings[-1]
            self.headings[-1] = (tag, f"{text} {data}".strip())

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def text_of_page(text: str) -> str:
    """What a reader sees, roughly."""
    without_style = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", without_style)))


def test_the_page_says_match_and_shows_every_leg(match: Report, written: str) -> None:
    seen = text_of_page(written)
    assert f"✓ MATCH {match.verdict}" in seen
    for leg in match.legs:
        assert f"{leg.name} {leg.status} {leg.kind} {words.error(leg.rms)} {words.error(leg.maximum)}" in seen
    assert "64 initializers pass bit for bit" in seen
    assert COMMAND in seen


def test_the_parts_come_in_the_order_in_which_they_are_read(written: str) -> None:
    assert [text for tag, text in Outline(written).headings if tag in ("h2", "h3") and "position" not in text] == [
        "Legs",
        "Figures",
        "Error by layer and operation",
        "Error along the text",
        "Errors of all logits",
        "Agreement on the likeliest tokens",
        "Divergence along the text",
        "Probability of the token that follows",
        "Range",
        "Largest values, and what float16 holds",
        "What was compared with what",
        "Environment",
        "Limits",
        "Files",
        "Command",
    ]


def test_the_page_can_be_read_by_those_who_do_not_see_it(written: str) -> None:
    outline = Outline(written)
    assert outline.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in outline.all("meta"))
    assert [tag for tag, _ in outline.headings].count("h1") == 1
    assert all(cell.get("scope") in ("col", "row") for cell in outline.all("th"))
    pictures = outline.all("svg")
    assert len(pictures) == 7
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    names = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(names) == len(set(names))
    used = re.findall(r'(?:href="|url\(|aria-labelledby=")#?([^")]+)', written.replace('href="data:,"', ""))
    assert set(used) <= set(names)


def test_the_page_asks_for_nothing_but_itself(written: str) -> None:
    assert "<script" not in written
    assert "@import" not in written
    assert "://" not in written.replace(str(CHECKPOINT), "")
    links = [value for _, attributes in Outline(written).tags for key, value in attributes.items() if "href" in key]
    assert {link for link in links if link and not link.startswith("#")} == {"data:,"}
    assert not [attributes for _, attributes in Outline(written).tags if "src" in attributes]


def test_figures_take_their_colours_and_their_typeface_from_the_page(written: str) -> None:
    style, body = written.split("</style>", 1)
    assert not re.search(r"#[0-9a-f]{6}\b", "".join(re.findall(r"<svg.*?</svg>", body, re.DOTALL)))
    assert "font-family" not in body
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", written))
    assert all(style.count(f"{variable}:") == 2 for variable in used)  # for light, and for dark


def test_the_page_is_small(written: str) -> None:
    assert len(written.encode()) < 1_000_000


def test_one_report_is_one_page_to_the_byte(match: Report, written: str) -> None:
    assert page.render(match, COMMAND) == written


def test_the_hashes_are_those_of_the_files(bundled: Path, written: str) -> None:
    for file in (bundled / "onnx" / "model.onnx_data", bundled / "config.json", CHECKPOINT / "model.safetensors"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in written


def test_the_ledger_accounts_for_every_tensor(match: Report, written: str) -> None:
    assert match.details is not None
    for entry in match.details.baseline.ledger.entries:
        tensor = entry.tensor
        shape = " × ".join(map(str, tensor.shape))
        assert f"{tensor.name} {entry.name} used {entry.layout} {tensor.dtype} {shape}" in text_of_page(written)


def test_a_mismatch_is_said_with_its_cause_and_its_evidence(mismatch: Report) -> None:
    text = page.render(mismatch, COMMAND)
    seen = text_of_page(text)
    assert mismatch.diagnosis is not None
    assert f"✗ MISMATCH {mismatch.verdict}" in seen
    for finding in mismatch.diagnosis.findings:
        assert f"{finding.sentence} {finding.evidence} h.2.mlp.act" in seen
    assert all(fault in seen for fault in mismatch.faults)
    assert "ONNX graph in float64 FAIL semantics" in seen
    assert "The first operation that diverges is h.2.mlp.act" in seen
    Outline(text)


def test_on_a_mismatch_the_map_shows_float64_and_what_is_right_is_blue(match: Report, mismatch: Report) -> None:
    assert mismatch.localisation is not None
    assert match.localisation is not None
    svg = plots.operations(mismatch.localisation, passed=False).svg
    assert "error in float64" in svg
    assert "var(--bad)" in svg
    assert "var(--good)" in svg
    assert "÷ Hugging Face" in plots.operations(match.localisation, passed=True).svg


def test_without_the_comparison_of_operations_the_page_says_so(match: Report) -> None:
    text = page.render(replace(match, localisation=None), COMMAND)
    assert "Not compared: operations are compared on a mismatch, or with --layers." in text_of_page(text)
    assert len(Outline(text).all("svg")) == 5


def test_what_is_not_compared_is_not_called_a_pass(match: Report) -> None:
    seen = text_of_page(page.render(replace(match, exactness=False, initializers=0), COMMAND))
    assert "weights, config, tokenizer not compared" in seen
    assert "initializers pass" not in seen


def test_a_report_without_details_still_has_its_tables(match: Report) -> None:
    text = page.render(replace(match, details=None), COMMAND)
    assert "ONNX Runtime float32 pass numerics" in text_of_page(text)
    Outline(text)


class Wicked:
    """A tokenizer whose every token is markup."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "<script>alert(1)</script>&\x00\n\u202e"


def test_whatever_tokens_names_and_commands_hold_stays_text(match: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.tokenizer.load", lambda folder: Wicked())
    name = "$x^2$ <b>bold</b> --> &amp; \"quoted\" 'too'"
    assert match.details is not None
    measured = tuple(replace(leg, name=name) if leg.ships("fp32") else leg for leg in match.details.measured)
    legs = tuple(replace(leg, name=name) if leg.ships("fp32") else leg for leg in match.legs)
    details = replace(match.details, measured=measured)
    spoiled = replace(match, details=details, legs=legs, source="<img src=x onerror=alert(1)>", notes=("<i>note",))
    text = page.render(spoiled, "gpt2onnx check '<u>'")
    tags = {tag for tag, _ in Outline(text).tags}
    assert not tags & {"script", "img", "i", "u"}
    seen = text_of_page(text)
    assert seen.count(name) >= 3  # in tables
    assert seen.count(f"…{name[1 - drawing.NAME_WIDTH :]}") >= 4  # in figures
    assert "<script>alert(1)</script>&\\x00↵\\u202e" in seen


def spoiled(report: Report, spoil: Callable[[np.ndarray], np.ndarray]) -> Report:
    """The report, had ONNX Runtime put out something else than the truth."""
    details = report.details
    assert details is not None
    baseline = details.baseline

    def measure(leg: Any) -> Any:
        if not leg.ships("fp32"):
            return leg
        logits = {case.name: spoil(baseline.truths[case.name].copy()) for case in baseline.cases}
        distances = {
            case.name: metrics.compare(baseline.truths[case.name], logits[case.name], case.real, case.following)
            for case in baseline.cases
        }
        return replace(leg, distances=distances)

    measured = tuple(map(measure, details.measured))
    legs = tuple(details.judge.report(leg) for leg in measured)
    return replace(report, details=replace(details, measured=measured), legs=legs)


def scattered(logits: np.ndarray) -> np.ndarray:
    logits[:, 1::3, 5] = math.nan
    return logits


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda logits: logits * math.nan, "NaN or infinite"),
        (lambda logits: logits + math.inf, "NaN or infinite"),
        (scattered, "NaN or infinite"),
        (lambda logits: logits[..., 1:], "another shape than the truth"),
        (lambda logits: logits * 1e30, "× the noise floor"),
        (lambda logits: logits, "ONNX Runtime float32 pass numerics 0 0 0.00 0.00 0 0 0"),
    ],
    ids=["NaN", "infinite", "some NaN", "misshapen", "huge", "exact"],
)
def test_no_logits_are_too_wrong_to_be_shown(match: Report, spoil: Callable[..., Any], said: str) -> None:
    text = page.render(spoiled(match, spoil), COMMAND)
    Outline(text)
    assert re.search(said, text_of_page(text))
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert not re.search(r'(?: d|x|y|points)="[^"]*(?:nan|inf)', svg)
    assert not re.search(r"<td[^>]*>(?:nan|inf|-inf)\b", text)


def test_a_text_of_which_no_token_is_scored_has_no_calibration(match: Report) -> None:
    assert match.details is not None
    measured = tuple(replace(leg, scored=()) for leg in match.details.measured)
    text = page.render(replace(match, details=replace(match.details, measured=measured)), COMMAND)
    assert "No token was scored" in text_of_page(text)


@pytest.mark.parametrize("config", [{}, {"n_positions": 1}, {"n_layer": 1, "n_head": 1, "n_embd": 1, "vocab_size": 2}])
def test_a_source_without_a_tokenizer_shows_ids(save: Save, tmp_path: Path, config: dict[str, Any]) -> None:
    source = save(**config)
    convert(source, tmp_path / "out")
    text = page.render(check(source, tmp_path / "out", layers=True, certify=False), COMMAND)
    Outline(text)
    assert re.search(r"<b><bdi>#\d+</bdi></b>", text)
    assert "random token ids" in text_of_page(text)


def test_the_worst_positions_are_worst_and_each_text_is_shown_once(match: Report) -> None:
    details = match.details
    assert details is not None
    worst = positions.worst_positions(details)
    assert len(worst) == positions.WORST
    assert len({(position.before, position.token) for position in worst}) == positions.WORST
    leg = positions.shown_leg(details)
    assert worst[0].error == words.error(leg.total.total_maximum / details.baseline.scale)
    assert worst[0].case == leg.worst_case
    assert all(rank.same for position in worst for rank in position.ranks)


def test_the_two_lists_are_the_likeliest_tokens_of_truth_and_leg(match: Report) -> None:
    def swap_best(logits: np.ndarray) -> np.ndarray:
        """The likeliest token at each position becomes the least likely one."""
        np.put_along_axis(logits, logits.argmax(axis=-1)[..., None], -50.0, axis=-1)
        return logits

    details = spoiled(match, swap_best).details
    assert details is not None
    baseline = details.baseline
    for position in positions.worst_positions(details):
        case = next(case for case in baseline.cases if case.name == position.case)
        row = np.flatnonzero(case.position_ids[position.row - 1] == position.position)[-1] - case.input_ids.shape[1]
        truth = baseline.truths[case.name][position.row - 1, row]
        p = np.exp(truth - np.logaddexp.reduce(truth))
        assert [rank.p_true for rank in position.ranks] == [f"{value:.6f}" for value in np.sort(p)[::-1][:5]]
        assert [rank.found for rank in position.ranks[:4]] == [rank.true for rank in position.ranks[1:]]
        assert not any(rank.same for rank in position.ranks)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.error(3.14e-7), "3.1e-07"),
        (words.error(0.0), "0"),
        (words.error(math.nan), "–"),
        (words.error(math.inf), "∞"),
        (words.times(1.036), "1.04"),
        (words.times(123456.0), "1.2e+05"),
        (words.with_error(109.58, 27.14), "109.58 ± 27.14"),
        (words.with_error(math.inf, math.nan), "∞"),
        (words.with_error(3.0, math.nan), "3.00 ± –"),
        (words.ratio(1 + 2.4e-8, 1e-7), "1 + 2.4e-08 ± 1.0e-07"),
        (words.ratio(1 - 2.4e-8, 1e-7), "1 − 2.4e-08 ± 1.0e-07"),
        (words.ratio(1.0, 0.0), "1"),
        (words.ratio(1.0153, 0.0021), "1.0153 ± 0.0021"),
        (words.share(0.99734), "99.73 %"),
        (drawing.power_of_ten(1e-7), "10⁻⁷"),
        (drawing.power_of_ten(5e-7), "5·10⁻⁷"),
    ],
)
def test_numbers_are_written_for_people(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_page_that_cannot_be_written_is_an_error_of_one_sentence(match: Report, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"report\.html cannot be written: No such file or directory"):
        page.write(match, tmp_path / "absent" / "report.html", COMMAND)


@pytest.mark.filterwarnings("error")
def test_names_in_any_script_and_in_none_can_be_written(match: Report, tmp_path: Path) -> None:
    name = "模型/caf\udce9\n\x07.onnx"
    assert match.details is not None
    measured = tuple(replace(leg, name=name) if leg.ships("fp32") else leg for leg in match.details.measured)
    legs = tuple(replace(leg, name=name) if leg.ships("fp32") else leg for leg in match.legs)
    report = replace(match, source=name, legs=legs, details=replace(match.details, measured=measured))
    page.write(report, tmp_path / "report.html", COMMAND)
    seen = text_of_page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "模型/caf\\udce9" in seen  # in tables
    assert "模型/caf\ufffd\ufffd\ufffd.onnx" in seen  # in figures


# --- In a browser ---

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--allow-file-access-from-files",  # lets a page measure another that it frames
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing leaves this machine
    "--enable-logging=stderr",
    "--v=0",
)

in_a_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


def browse(file: Path, folder: Path) -> tuple[str, list[str], list[str]]:
    """The document once it is loaded, what its console says, and what it asked the network for."""
    log = folder / "network.json"
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}"]
    done = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, timeout=60, check=True)
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    network = json.loads(log.read_text())
    start = network["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    jobs = [event.get("params", {}) for event in network["events"] if event["type"] == start]
    # What a browser asks for on its own behalf has no page as its origin.
    asked = [job["url"] for job in jobs if "url" in job and job.get("initiator") != "not an origin"]
    return done.stdout.decode(), console, asked


@in_a_browser
def test_a_browser_that_loads_more_than_the_page_or_complains_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "loud.html"
    file.write_text('<!doctype html><img src="https://example.invalid/x.png"><script>console.error("oops")</script>')
    _, console, asked = browse(file, tmp_path)
    assert ["oops" in line for line in console] == [True]
    assert asked == ["https://example.invalid/x.png"]


@in_a_browser
def test_a_browser_opens_the_page_without_a_complaint_or_a_request(match: Report, tmp_path: Path) -> None:
    page.write(match, tmp_path / "report.html", COMMAND)
    document, console, asked = browse(tmp_path / "report.html", tmp_path)
    assert match.verdict in text_of_page(document)
    assert console == []
    assert asked == []


FRAME = """<!doctype html><body><script>
addEventListener("load", () => {
  const root = frame => frame.contentDocument.documentElement;
  const right = frame => Math.max(...[...root(frame).querySelectorAll("svg")].map(
    drawn => drawn.getBoundingClientRect().right));
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(
    frame => [root(frame).scrollWidth, root(frame).clientWidth, root(frame).querySelectorAll("svg text").length,
      right(frame)]));
});
</script>%s"""


@in_a_browser
def test_nothing_overflows_on_a_phone_or_on_a_desktop(match: Report, mismatch: Report, tmp_path: Path) -> None:
    long = "/a-very-long-path-without-a-place-to-break" * 4
    page.write(replace(match, out=match.out + long), tmp_path / "match.html", f"gpt2onnx check {long}")
    page.write(mismatch, tmp_path / "mismatch.html", COMMAND)
    frames = [(name, width) for name in ("match", "mismatch") for width in (360, 1280)]
    framed = "".join(f'<iframe src="{name}.html" width={width} height=900></iframe>' for name, width in frames)
    (tmp_path / "frames.html").write_text(FRAME % framed)
    document, _, _ = browse(tmp_path / "frames.html", tmp_path)
    measured = json.loads(html.unescape(document.split("<title>")[1].split("</title>")[0]))
    for (_, width), (scrolled, visible, texts, right) in zip(frames, measured, strict=True):
        assert width - 20 <= visible <= width  # less a scroll bar
        assert scrolled <= visible
        assert texts > 100
        assert right <= visible  # a figure is as wide as there is room, and nobody scrolls sideways to see its end
