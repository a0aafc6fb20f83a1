"""Chat templates: where a folder keeps them, and how one turns a conversation into a prompt, as in transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import PromptError, TokenizerError
from converter.files import read_text
from converter.tokenizer.kinds import BYTE_LEVEL, CLASSES
from converter.tokenizer.settings import TOKENIZER_CONFIG, class_name, json_of, named, read

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

DEFAULT = "default"  # the name of the template that is used where none is asked for
FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"

Message = Mapping[str, Any]  # a "role" and a "content"


def templates(folder: Path) -> dict[str, str]:
    """Return a folder's chat templates by their names. Files count before what ``tokenizer_config.json`` has.

    Raises:
        ConfigError, TokenizerError: a file is damaged.
    """
    found = {file.stem: read_text(file) for file in sorted((folder / FOLDER).glob("*.jinja"))}
    if (folder / FILE).is_file():
        found[DEFAULT] = read_text(folder / FILE)
    return found or _in_settings(folder / TOKENIZER_CONFIG)


def _in_settings(file: Path) -> dict[str, str]:
    """Return the templates in ``tokenizer_config.json``: a text, or several with their names."""
    value = json_of(file).get("chat_template")
    if isinstance(value, list):
        value = {row.get("name"): row.get("template") for row in value if isinstance(row, dict)}
    found = value if isinstance(value, dict) else {} if value is None else {DEFAULT: value}
    if not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise TokenizerError(f"{file} has a chat_template that is no text; expected one, or one for each name")
    return found


def choose(folder: Path, name: str = DEFAULT) -> str:
    """Return one of a folder's chat templates.

    Raises:
        PromptError: it has none of that name.
    """
    there = templates(folder)
    if not there:
        raise PromptError(f"{folder} has no chat template; give the prompt as the model was trained with it")
    if name not in there:
        raise PromptError(f"{folder} has no chat template {name!r}; it has {', '.join(sorted(there))}")
    return there[name]


def render(folder: Path, messages: Sequence[Message], name: str = DEFAULT) -> str:
    """Return a conversation as a text that ends where the model's answer begins.

    The text holds the template's special tokens; nothing is to be put around it.

    Args:
        messages: each with a ``role`` and a ``content``, and whatever else the template reads.
        name: of the template.

    Raises:
        PromptError: there is no such template, or it refuses the conversation; or jinja2 is not installed.
    """
    text, environment = choose(folder, name), _environment()
    kind = CLASSES.get(class_name(folder) or BYTE_LEVEL.class_name)
    tokens = named({**(kind.tokens if kind else {}), **read(folder)})
    given = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        return environment.from_string(text).render(
            messages=given, tools=None, documents=None, add_generation_prompt=True, **tokens
        )
    except Exception as error:  # a template is a program, and may raise anything
        raise PromptError(f"the chat template {name!r} of {folder} refuses the conversation: {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    """Return jinja2 as transformers sets it up. A template is somebody else's program, and stays in a sandbox.

    Raises:
        PromptError: jinja2 is not installed.
    """
    try:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        from converter.tokenizer import chat_language
    except ImportError as error:
        raise PromptError("chat templates need jinja2: pip install 'gpt2onnx[chat]'") from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[chat_language.Generation, loopcontrols]
    )
    environment.filters |= chat_language.FILTERS
    environment.globals |= chat_language.GLOBALS
    return environment
