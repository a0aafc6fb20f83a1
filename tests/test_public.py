"""What ``from converter import …`` offers, and how it shows itself in a session."""

from __future__ import annotations

import html
import inspect
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import converter
import reference
from converter import GenerationOptions, Model, check, convert, load, load_head, score, verify
from converter.data import CHECKPOINT
from converter.notebook import PATIENCE, Bar, shows_progress
from converter.parity.report.report import Report
from tests.conftest import Save

SHORT = 200  # characters of a line that a session shows


@pytest.fixture(scope="module")
def model(bundled: Path) -> Model:
    return load(bundled)


def test_every_name_is_there_and_listed() -> None:
    names = set(converter._HOMES) | {"__version__"}
    assert set(converter.__all__) == names == set(dir(converter))
    for name in names:
        assert getattr(converter, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'generate'"):
        converter.generate  # noqa: B018


def test_every_error_of_the_library_is_among_them() -> None:
    errors = set(converter.errors.__all__)  # type: ignore[attr-defined]
    assert errors == {name for name, home in converter._HOMES.items() if home == "converter.errors"}
    assert converter.GPT2Error is reference.GPT2Error


def test_importing_a_name_imports_no_more_than_it_needs() -> None:
    program = (
        "import sys, converter; converter.GPT2Error; dir(converter); "
        "assert not {'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules); "
        "converter.load, converter.convert; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "converter", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("gpt2onnx, version")


# --- keywords ---------------------------------------------------------------------------------------------------------


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    kinds = inspect.signature(function).parameters.items()
    return {name: parameter for name, parameter in kinds if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def test_every_option_of_generate_is_a_typed_keyword_that_its_docstring_describes() -> None:
    options = {field.name for field in fields(GenerationOptions)}
    given = keywords(Model.generate)
    assert options | {"do_sample", "generation_config", "on_text"} == set(given)
    assert set(keywords(Model.stream)) == set(given) - {"on_text", "best", "beams", "length_penalty", "early_stopping"}
    for name, parameter in given.items():
        assert parameter.annotation not in (inspect.Parameter.empty, "Any"), name
        assert re.search(rf"^ +{name}: \S", Model.generate.__doc__ or "", re.MULTILINE), name


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"num_beams": 3, "num_return_sequences": 2}, {"beams": 3, "best": 2}),
        ({"stop_strings": "th"}, {"stop": "th"}),
        ({"prompt_lookup_num_tokens": 4}, {"speculate": 4}),
        ({"do_sample": True, "seed": 3}, {"temperature": 1.0, "top_k": 50, "seed": 3}),
        ({"do_sample": True, "top_k": 0, "seed": 3}, {"temperature": 1.0, "seed": 3}),
        ({"do_sample": False, "temperature": 0.9}, {}),
        ({"num_beams": None, "temperature": None}, {}),
    ],
)
def test_names_of_transformers_that_mean_the_same_are_taken(
    model: Model, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    given, expected = (model.generate("The following", max_new_tokens=12, **options) for options in (theirs, ours))
    assert (given.texts, given.scores) == (expected.texts, expected.scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 5}, "generate has no option max_tokens; give max_new_tokens"),
        ({"temprature": 1.0}, "generate has no option temprature; give temperature"),
        ({"num_beam": 2}, "generate has no option num_beam; give num_beams"),
        ({"streamer": print}, "generate has no option streamer; give on_text, or model.stream"),
        ({"typical_p": 0.9}, "generate has no option typical_p, which is transformers' alone: omit it"),
        ({"zzz": 1}, "generate has no option zzz; it has bad_words_ids, beams, best"),
        ({"num_beams": 2, "beams": 2}, "num_beams and beams mean the same: give one of them"),
        ({"do_sample": True, "beams": 2}, "beams pursue the likeliest texts and draw nothing"),
        ({"beams": "x"}, "beams is 'x'; expected 1 or more"),
        ({"num_beams": 0}, "num_beams is 0; expected 1 or more"),
        ({"do_sample": "yes"}, "do_sample is 'yes'; expected True or False"),
        ({"stop": 5}, "stop is 5; expected texts"),
        ({"temperature": "hot"}, "temperature is 'hot'; expected 0 or more"),
        ({"logprobs": -1}, "logprobs is -1; expected 0 or more"),
        ({"logprobs": 1, "beams": 2}, "logprobs are not kept of beams"),
    ],
)
def test_another_name_is_refused_and_ours_is_named(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(converter.PromptError, match=message):
        model.generate("The", **options)


# --- what a session shows ---------------------------------------------------------------------------------------------


def test_what_is_returned_shows_itself_in_a_line(save: Save, tmp_path: Path, bundled: Path, model: Model) -> None:
    shown = [
        convert(save(head="sequence-classification"), tmp_path / "classifier"),
        load_head(tmp_path / "classifier"),
        load_head(tmp_path / "classifier").run([[1, 2]]),
        model,
        model.generate("The following", max_new_tokens=40, best=3, temperature=1.0, seed=1, logprobs=5),
        model.score("The following statement")[0],
        next(model.stream("The")),
    ]
    for thing in map(repr, shown):
        assert len(thing) <= SHORT
        assert "\n" not in thing
    assert repr(shown[4]).startswith("Generation(3 texts, 120 new tokens: '")


@pytest.fixture(scope="module")
def report(bundled: Path) -> Report:
    return check(CHECKPOINT, bundled)


def test_a_report_shows_its_verdict_in_a_line_and_its_legs_in_a_notebook(report: Report, bundled: Path) -> None:
    assert repr(report) == f"Report(MATCH: {report.verdict})"
    shown = report._repr_html_()
    text = html.unescape(re.sub(r"<[^>]+>", " ", shown))
    assert report.verdict in text
    assert "RMS ÷ floor" in text
    for leg in report.legs:
        assert leg.name in text
    assert f"{report.files} files" in text
    assert shown.count("<tr>") == len(report.legs) + 4
    assert repr(verify(bundled)).startswith(f"Verification({bundled} is what was checked on ")


def test_what_a_report_shows_is_no_markup(report: Report) -> None:
    from dataclasses import replace

    shown = replace(report, notes=("<script>1 & 2</script>",))._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;1 &amp; 2" in shown


# --- progress in notebooks --------------------------------------------------------------------------------------------


class Screen:
    """What a notebook shows below a cell, in the place of IPython."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[str] = []
        ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
        ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
        display.HTML = str  # type: ignore[attr-defined]
        display.display = self.display  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def display(self, drawn: str, display_id: bool) -> Screen:
        self.update(drawn)
        return self

    def update(self, drawn: str) -> None:
        self.shown.append(drawn)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(monkeypatch)


def test_work_that_takes_long_shows_a_bar_that_goes_in_the_end(screen: Screen) -> None:
    times = iter([0.0, 1.0, PATIENCE + 1, PATIENCE + 1, PATIENCE + 1.1, PATIENCE + 5, PATIENCE + 5])
    bar = Bar("convert", lambda: next(times))
    for done in (1, 2, 3):
        bar(done, 4)
    bar("legs & all", 4, 4)
    bar.end()
    assert [re.sub(r"<[^>]+>", "", drawn).strip() for drawn in screen.shown] == [
        "50% convert",
        "100% legs &amp; all",
        "",
    ]


def test_in_a_notebook_long_work_reports_to_a_bar_and_elsewhere_to_nobody(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Model
) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Bar, "__call__", lambda self, *counted: told.append(counted))
    converter.convert(CHECKPOINT, tmp_path / "out")
    assert told
    told.clear()
    assert (
        converter.score(model, "The following statement")[0].perplexity
        == model.score("The following statement")[0].perplexity
    )
    assert len(told) == 2
    told.clear()
    converter.convert(CHECKPOINT, tmp_path / "out", force=True, progress=lambda done, total: None)
    monkeypatch.delitem(sys.modules, "IPython")
    converter.convert(CHECKPOINT, tmp_path / "out", force=True)
    assert told == []


def test_the_names_keep_their_signatures_in_a_notebook(screen: Screen) -> None:
    for name in converter._LONG:
        shown = getattr(converter, name)
        assert "progress" in inspect.signature(shown).parameters
        assert inspect.getdoc(shown)
        assert shown.__wrapped__.__name__ == name


def test_an_error_takes_the_bar_away(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.notebook.PATIENCE", 0.0)

    def fails(progress: Any = None) -> Iterator[None]:
        progress(1, 2)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        shows_progress(fails)()
    assert screen.shown[-1] == ""
    assert len(screen.shown) == 2


def test_a_score_from_the_model_is_the_score(model: Model) -> None:
    texts = ["The following statement", "In a class"]
    assert model.score(texts) == score(model, texts)
    assert model.score(model.encode(texts)[0])[0] == model.score(texts[0])[0]
