"""Chat templates make of a conversation what transformers makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers
from jinja2.exceptions import TemplateError

from converter import check, convert, load, to_huggingface, tokenizer
from converter.data import CHECKPOINT
from converter.errors import GPT2Error, PromptError
from converter.runtime.chat import chat
from converter.tokenizer.chat import choose, render, templates

Save = Callable[..., Path]

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello <b>&\"'</b>"}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Größe? 日本"},
        {"role": "assistant", "content": "Yes.", "name": None},
        {"role": "user", "content": "Why?\n\n"},
    ],
]
TEMPLATES = {
    "DialoGPT's": "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}",
    "ChatML": "{% for m in messages %}\n    {{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "loops": "{% for m in messages %}{% if loop.index0 > 5 %}{% break %}{% endif %}{{ loop.index }}{{ m | tojson }}"
    "{% endfor %}{{ tools is none }}{{ documents is none }}{{ bos_token }}{{ pad_token }}{{ image_token }}",
    "namespaces": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}"
    "{% endfor %}{{ ns.n }}{{ dict(a=1)['a'] }}",
    "what the assistant says": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "indented": "{%- for m in messages -%}\n {% if m.name is none %}named{% endif %}\n{{ m.content }}\n{% endfor %}",
}


def source_with(folder: Path, chat_template: Any, **settings: Any) -> Path:
    """The bundled tokenizer, saved with chat templates by transformers itself."""
    theirs = transformers.AutoTokenizer.from_pretrained(CHECKPOINT, **settings)
    theirs.chat_template = chat_template
    theirs.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one message", "several"])
def test_a_template_is_filled_in_as_transformers_fills_it_in(
    tmp_path: Path, name: str, messages: list[dict[str, Any]]
) -> None:
    source = source_with(tmp_path / "source", TEMPLATES[name], pad_token="!", image_token="#")
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render(source, messages) == expected
    assert expected


def test_the_time_is_the_present() -> None:
    from converter.tokenizer.chat import _environment

    assert _environment().from_string("{{ strftime_now('%Y') }}").render() == str(datetime.now().year)


NAMED = {"default": "D{{ messages[0].content }}", "tool_use": "T{{ messages[0].content }}"}
PLACES: dict[str, dict[str, Any]] = {
    "files": {},
    "one file": {"files": {"chat_template.jinja": "one"}},
    "settings, a text": {"settings": "one"},
    "settings, a list": {"settings": [{"name": name, "template": text} for name, text in NAMED.items()]},
    "settings, by name": {"settings": NAMED},
    "files before settings": {"settings": "two", "files": {"additional_chat_templates/other.jinja": "one"}},
}


@pytest.mark.parametrize("place", PLACES)
def test_templates_are_found_where_transformers_finds_them(tmp_path: Path, place: str) -> None:
    source = source_with(tmp_path / "source", NAMED if place == "files" else None)
    for name, text in PLACES[place].get("files", {}).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    if "settings" in PLACES[place]:
        values = json.loads((source / "tokenizer_config.json").read_text())
        (source / "tokenizer_config.json").write_text(json.dumps(values | {"chat_template": PLACES[place]["settings"]}))
    theirs = transformers.AutoTokenizer.from_pretrained(source).chat_template
    assert templates(source) == ({"default": theirs} if isinstance(theirs, str) else theirs)


@pytest.fixture
def named(save: Save) -> Path:
    """A source with two templates."""
    source = save(vocab_size=2048)
    return source_with(source, NAMED)


@pytest.mark.parametrize("write", [convert, to_huggingface])
def test_named_templates_travel(named: Path, tmp_path: Path, write: Callable[..., Any]) -> None:
    write(named, tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == NAMED
    assert templates(tmp_path / "out") == NAMED


def test_named_templates_stay_in_place_and_go_with_a_folder_that_is_replaced(named: Path, tmp_path: Path) -> None:
    convert(named, tmp_path / "out")
    shutil.copytree(named, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "additional_chat_templates")
    convert(tmp_path / "other", tmp_path / "out", force=True)
    assert list(templates(tmp_path / "out")) == ["default"]
    convert(named, in_place=True)
    assert templates(named) == NAMED


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("chat_template.jinja", "something else"),
        ("additional_chat_templates/tool_use.jinja", "something else"),
        ("additional_chat_templates/tool_use.jinja", None),
        ("additional_chat_templates/new.jinja", "one more"),
    ],
)
def test_the_check_notices_another_template(named: Path, tmp_path: Path, file: str, text: str | None) -> None:
    convert(named, tmp_path / "out")
    assert check(named, tmp_path / "out").beside_faults == ()
    changed = tmp_path / "out" / file
    changed.unlink() if text is None else changed.write_text(text)
    name = {"chat_template.jinja": "default"}.get(file, changed.stem)
    report = check(named, tmp_path / "out")
    assert report.beside_faults == (f"the chat template {name!r} is not the source's",)
    assert not report.passed


@pytest.mark.parametrize("name", NAMED)
def test_an_answer_follows_what_transformers_makes_of_the_conversation(named: Path, tmp_path: Path, name: str) -> None:
    (named / "additional_chat_templates" / "tool_use.jinja").write_text("{{ eos_token }}Say: {{ messages[0].content }}")
    convert(named, tmp_path / "out")
    model = load(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(named)
    messages = [{"role": "user", "content": "The list"}]
    ids = theirs.apply_chat_template(messages, chat_template=name, add_generation_prompt=True)["input_ids"]
    done = chat(model, messages, messages, template=name, max_new_tokens=4)
    assert done.prompt_ids == [ids, ids]
    assert done.new_ids == model.generate([ids, ids], max_new_tokens=4).new_ids


def test_what_no_template_can_do_is_said_in_a_sentence(named: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"source has no chat template 'rag'; it has default, tool_use"):
        choose(named, "rag")
    with pytest.raises(PromptError, match=r"has no chat template; give the prompt as the model was trained with it"):
        choose(CHECKPOINT)
    for text, said in {
        "{{ raise_exception('no system message') }}": "refuses the conversation: no system message",
        "{% for %}": "refuses the conversation: ",
        "{{ messages[7].content.x }}": "refuses the conversation: ",
        "{{ 1 / 0 }}": "refuses the conversation: division by zero",
    }.items():
        (named / "chat_template.jinja").write_text(text)
        with pytest.raises(PromptError, match=said):
            render(named, CONVERSATIONS[0])
    convert(CHECKPOINT, tmp_path / "out")
    (tmp_path / "out" / "tokenizer_config.json").write_text('{"chat_template": 7}')
    with pytest.raises(GPT2Error, match=r"tokenizer_config\.json has a chat_template that is no text"):
        templates(tmp_path / "out")


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
    ],
)
def test_a_template_stays_in_its_sandbox(named: Path, text: str) -> None:
    (named / "chat_template.jinja").write_text(text)
    theirs = transformers.AutoTokenizer.from_pretrained(named)
    with pytest.raises(TemplateError):
        theirs.apply_chat_template(CONVERSATIONS[0], tokenize=False)
    with pytest.raises(PromptError, match="refuses the conversation"):
        render(named, CONVERSATIONS[0])


def test_without_jinja2_the_extra_is_named(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2.sandbox", None)
    with pytest.raises(PromptError, match=r"pip install 'gpt2onnx\[chat\]'"):
        render(named, CONVERSATIONS[0])


def test_a_model_without_a_tokenizer_holds_no_conversation(named: Path, tmp_path: Path) -> None:
    (named / "tokenizer.json").unlink()
    convert(named, tmp_path / "out")
    assert tokenizer.load(tmp_path / "out") is None
    with pytest.raises(PromptError, match="has no tokenizer"):
        chat(load(tmp_path / "out"), CONVERSATIONS[0])
