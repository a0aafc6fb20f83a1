"""The OpenAPI document is true: whatever it allows is answered as it says, and nothing makes the server fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from converter.serving.openapi import document_of
from converter.serving.routes import ROUTES
from tests.serving.servers import Running, running

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
hypothesis = pytest.importorskip("hypothesis")

EXAMPLES = 10  # of each address

OPERATIONS = [(route.method, route.path) for route in ROUTES]


@pytest.fixture(scope="module")
def small(bundled: Path) -> Iterator[Running]:
    """A server that generates little, so that much can be tried."""
    with running(bundled, new_tokens=4, texts=4) as made:
        yield made


@pytest.fixture(scope="module")
def document(small: Running) -> Any:
    return schemathesis.openapi.from_url(f"{small.url}/openapi.json")


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_as_the_document_says(document: Any, small: Running, method: str, path: str) -> None:
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [schemathesis.checks.not_a_server_error, status_code_conformance, content_type_conformance]
    checks.append(response_schema_conformance)

    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(case=document[path][method].as_strategy())
    def tried(case: Any) -> None:
        case.call_and_validate(checks=checks, timeout=60)

    tried()


def test_every_type_is_described_and_every_field_that_is_not_known_is_refused(small: Running) -> None:
    import json

    found = json.loads(document_of(ROUTES))
    assert small.ask("GET", "/openapi.json")[1] == found
    assert {(method.upper(), path) for path, row in found["paths"].items() for method in row} == set(OPERATIONS)
    for route in ROUTES:
        if route.takes is not None:
            assert found["components"]["schemas"][route.takes.__name__]["additionalProperties"] is False
