"""What chat templates have beyond plain jinja2: the words that transformers gives them. It needs jinja2."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.utils import Namespace


class Generation(Extension):
    """``{% generation %}`` marks what the assistant says. Who trains looks at the mark; here the text alone counts."""

    tags = {"generation"}  # noqa: RUF012 - as its base class has it

    def parse(self, parser: Parser) -> Node | list[Node]:
        """Return what stands between the marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Any) -> Any:
        return caller()


class Names(Namespace):
    """jinja2's ``namespace``, without names that Python keeps for itself: through them a template might get out."""

    def __init__(*args: Any, **names: Any) -> None:
        self, *values = args
        given = dict(*values, **names)
        for name in given:
            _refuse_private(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace has no name that begins with _, such as {name}")


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Return JSON as it is; jinja2's own filter escapes what would be HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


FILTERS = {"tojson": _json}
GLOBALS = {"raise_exception": _refuse, "strftime_now": _now, "namespace": Names}
