"""Whatever the OpenAPI document allows, and what it forbids, gets an answer that the document describes."""

import os
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.http.running import ADMIN, Running

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SHARES = 4
"""Into how many tests the operations are dealt, so that they run beside each other."""
EXAMPLES = int(os.environ.get("ANY_INPUT_EXAMPLES", "6"))
SOAK_EXAMPLES = 400
AWAY = {503}
"""What the document says of every route, and is no fault: the tests' BigQuery is away."""


@dataclass
class Caller:
    """Someone with a key, for whom each operation is tried."""

    api: Running
    share: int
    examples: int

    def try_all(self) -> int:
        """Try every operation of this share, with both keys; how many requests that made."""
        document = self.api.client().get("/openapi.json").json()
        operations = list(schemathesis.openapi.from_dict(document).get_all_operations())
        assert len(operations) > 40
        found: list[str] = []
        asked = sum(self._try(operation.ok(), found) for operation in operations[self.share :: SHARES])
        assert not found, "\n\n".join(found)
        return asked

    def _try(self, operation: Any, found: list[str]) -> int:
        # A customer for each operation: some of them end its days.
        customer = self.api.onboard()
        clients = [customer.http, self.api.admin()]
        known = {"customer_id": customer.id} if "{customer_id}" in operation.path else None
        asked = 0
        for mode, parameters in (
            (GenerationMode.POSITIVE, known),
            (GenerationMode.NEGATIVE, known),
            (GenerationMode.POSITIVE, None),
        ):
            cases = operation.as_strategy(generation_mode=mode, path_parameters=parameters)

            @seed(4711)
            @settings(
                max_examples=self.examples,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=cases)
            def every(case: Any) -> None:
                nonlocal asked
                client = clients[asked % 2]
                asked += 1
                check(case, client)

            try:
                every()
            except Unsatisfiable:
                # There is no wrong way to say nothing.
                assert mode is GenerationMode.NEGATIVE
            except (Failure, FailureGroup) as failure:
                told = [str(one) for one in getattr(failure, "exceptions", [failure])]
                found.append(f"{operation.label} ({mode.value}): " + "\n".join(told))
        return asked


def check(case: Any, client: httpx.Client) -> None:
    """Ask, and compare the answer with what the document says of it."""
    given_headers = {**(case.headers or {}), **dict(client.headers)}
    answer = case.call(base_url=str(client.base_url).rstrip("/"), headers=given_headers, timeout=30)
    excluded = [not_a_server_error] if answer.status_code in AWAY else []
    case.validate_response(answer, checks=[c for c in CHECKS if c not in excluded])


@pytest.mark.parametrize("share", range(SHARES))
def test_no_input_is_a_fault(api, share):
    assert Caller(api, share, EXAMPLES).try_all() > 50


@pytest.mark.soak
@pytest.mark.parametrize("share", range(SHARES))
def test_no_input_is_a_fault_for_hours(api, share):
    assert Caller(api, share, SOAK_EXAMPLES).try_all() > 50


def test_a_fault_would_be_seen(api):
    """The control: a route that falls over for some of its inputs."""
    document = {
        "openapi": "3.1.0",
        "info": {"title": "Faulty", "version": "1"},
        "paths": {"/livez": {"get": {"responses": {"201": {"description": "What it never answers."}}}}},
    }
    [operation] = schemathesis.openapi.from_dict(document).get_all_operations()
    with pytest.raises((Failure, FailureGroup)):
        check(operation.ok().Case(), api.client(ADMIN))
