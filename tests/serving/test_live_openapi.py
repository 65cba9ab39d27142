"""The front keeps to its OpenAPI document, whatever it is asked (schemathesis)."""

from __future__ import annotations

import re
from itertools import cycle, product

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.serving.test_live import running
from tests.serving.test_sources import card
from tests.serving.upstream import Upstream
from tests.tilesets import make_tileset

# Real names among the invented ones, so that what is asked is answered, too.
REAL = {"source": "town", "model": "roofs", "z": 15, "x": 101, "y": 201}


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    path = make_tileset(tmp_path_factory.mktemp("openapi") / "town.pmtiles")
    with Upstream(card()) as upstream, running(upstream, path, line=1000) as front:
        yield front


def test_every_answer_is_in_the_document(front):
    schema = schemathesis.openapi.from_url(f"{front.url}/openapi.json")
    # What the upstream of these tests says of an image that is none is no matter of the document.
    unlike = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
    answered: set[tuple[str, int]] = set()
    turns = cycle((True, False))
    for result, mode in product(list(schema.get_all_operations()), GenerationMode):
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.path_parameters or operation.query):
            continue

        @settings(
            max_examples=4, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            if case.meta.generation.mode is GenerationMode.POSITIVE and next(turns):
                case.path_parameters |= {name: REAL[name] for name in case.path_parameters if name in REAL}
            answer = case.call_and_validate(excluded_checks=unlike, timeout=30)
            answered.add((case.operation.path, answer.status_code))

        check()
    mask = "/{source}/{model}/{z}/{x}/{y}.{form}"
    assert {(mask, 200), (mask, 400), ("/predictions/{model}", 400), ("/sources", 200)} <= answered


def test_the_document_says_what_it_should(front):
    document = front.get("/openapi.json").json()
    paths = document["paths"]
    assert {"/predictions/{model}", "/{source}/{model}/{z}/{x}/{y}.{form}", "/{source}.json"} <= set(paths)
    for path, operations in paths.items():
        for operation in operations.values():
            assert "422" not in operation["responses"] and "500" in operation["responses"], path
            for status, answer in operation["responses"].items():
                if re.match("[45]", status) and path != "/status":
                    assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
    assert set(document["components"]["schemas"]) == {"Problem"}
