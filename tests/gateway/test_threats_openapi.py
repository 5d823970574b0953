"""Whatever the OpenAPI document allows, and what it does not: no answer of the whole gateway is a 5xx.

The gate asks a seeded part of it; all 10,000 cases take minutes, and have a command of their own:
``PLATEWAY_SOAK=1 uv run pytest tests/gateway/test_threats_openapi.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy, one_of
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from plateway.local.seaweed import PLAIN
from tests.gateway.sites import Site, site
from tests.soak import SOAK

CASES = 10_000 if SOAK else 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with objects and an event."""
    with site(tmp_path_factory.mktemp("site"), objects="memory://openapi") as one:
        one.gateway.token("all")
        yield one


def cases(operation: Any, known: Mapping[str, str]) -> SearchStrategy[Any]:
    """Make requests as the document has them, as it forbids them, and about what is there."""
    ways = [operation.as_strategy(GenerationMode.POSITIVE), operation.as_strategy(GenerationMode.NEGATIVE)]
    if known:
        ways.append(operation.as_strategy(GenerationMode.POSITIVE, path_parameters=dict(known)))
    return one_of(ways)


def parameters(place: Site, operation: Any) -> dict[str, str]:
    """Return what is there for the parameters of an operation's path."""
    there = {"id": str(place.ref.id), "name": place.images[0], "key": "mine/a"}
    return {one.name: there[one.name] for one in operation.path_parameters}


@pytest.mark.timeout(1800)
def test_ten_thousand_requests_and_no_5xx(place: Site) -> None:
    """Every operation of the document, in and out of its rules, about what is there and what is not."""
    document = httpx.get(f"{place.gateway.url}/openapi.json", trust_env=False, verify=PLAIN).json()
    found = list(schemathesis.openapi.from_dict(document).get_all_operations())
    operations = [one.ok() for one in found if isinstance(one, Ok)]
    assert len(operations) == len(found)
    assert {"PUT /objects/{key}", "GET /api/1/events/{id}"} <= {one.label for one in operations}
    varied = sum(1 for one in operations if any(one.iter_parameters()))  # the others have one case each
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Authorization": f"Bearer {place.gateway.secrets['all']}"}
        for operation in operations:

            @settings(
                max_examples=CASES * 11 // 10 // varied,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(cases(operation, parameters(place, operation)))
            def ask(case: Any) -> None:
                answer = case.call(
                    base_url=place.gateway.url, session=session, headers=headers, timeout=60, allow_redirects=False
                )
                statuses[answer.status_code] += 1
                if answer.status_code >= 500:
                    faults.append(f"{answer.status_code}: {case.as_curl_command()}")

            ask()
    assert not faults
    assert statuses.total() >= CASES and statuses[200] > CASES // 10, statuses
