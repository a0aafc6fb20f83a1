"""Conversations with a model folder, by the chat template that it brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from converter.errors import PromptError
from converter.runtime.generation import Generation, generate
from converter.runtime.session import Model
from converter.tokenizer.chat import DEFAULT, Message, render


def chat(model: Model, *conversations: Sequence[Message], template: str = DEFAULT, **options: Any) -> Generation:
    """Answer conversations, as transformers' ``apply_chat_template`` and ``generate`` would.

    Args:
        model: an open model folder with a chat template.
        conversations: each a list of messages, ``{"role": "user", "content": "…"}`` and so on.
        template: the name of one of the folder's templates.
        options: those of ``generate``.

    Raises:
        PromptError: the folder has no tokenizer, or no such template, or the template refuses a conversation; or see
            ``generate``.
    """
    return generate(model, [conversation_ids(model, messages, template) for messages in conversations], **options)


def conversation_ids(model: Model, messages: Sequence[Message], template: str = DEFAULT) -> list[int]:
    """Return a conversation as the token ids that the model's answer follows.

    Raises:
        PromptError: see ``chat``.
    """
    if model.tokenizer is None:
        raise PromptError(f"{model.folder} has no tokenizer, without which there is no conversation")
    return model.tokenizer.encode(render(model.folder, messages, template), add_special_tokens=False).ids
