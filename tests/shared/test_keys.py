"""Values of tables: what is a number, and what only looks like one."""

from __future__ import annotations

import math

import pytest

from rsp.shared.errors import ConfigError
from rsp.shared.keys import Key, read_table, typed


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, True, "1", None, [1]])
@pytest.mark.parametrize("holds", ["int", "count", "positive", "fraction", "weight"])
def test_what_is_not_a_number(holds, value):
    with pytest.raises(ConfigError, match="here: expected a"):
        typed(value, Key("x", holds), "here")


@pytest.mark.parametrize("value", [[math.inf], [1.0, math.nan], [True], [], 1.0, [10**400]])
def test_what_is_not_a_list_of_numbers(value):
    with pytest.raises(ConfigError, match="here: expected a list"):
        typed(value, Key("x", "floats"), "here")


@pytest.mark.parametrize(
    ("holds", "good", "bad"),
    [
        ("int", [0, 7], [-1, 1.5, 8, 10**400]),
        ("count", [1, 7], [0, 8]),
        ("positive", [1e-9, 5], [0, -1, 10**400]),
        ("fraction", [0, 0.5, 1], [-0.1, 1.1]),
        ("weight", [0, 3.5], [-0.5]),
        ("size", [1, [7, 7]], [0, [3, 4], [0, 0], [8, 8]]),
        ("ints", [[1, 7]], [[0], [1.5], [8]]),
        ("rgb", [[0, 255, 7]], [[0, 0], [0, 0, 256], [0, 0, -1], [0.5, 0, 0]]),
    ],
)
def test_ranges(holds, good, bad):
    key = Key("x", holds, high=7)
    for value in good:
        typed(value, key, "here")
    for value in bad:
        with pytest.raises(ConfigError, match="here: expected"):
            typed(value, key, "here")


def test_keys_by_another_name_twice_missing_and_unknown():
    keys = (Key("size", "int", 5, aliases=("ts",)), Key("name", "str"))
    assert read_table({"ts": 3, "name": "a"}, keys, "t") == {"size": 3, "name": "a"}
    assert read_table({"name": "a", "more": 1}, keys, "t", others=True) == {"size": 5, "name": "a"}
    for table, message in (
        ({"ts": 3, "size": 3, "name": "a"}, "'size' repeats 'size'"),
        ({"ts": 3}, "the key 'name' is missing"),
        ({"name": "a", "more": 1}, "unknown key 'more'"),
        ([], "expected a table, got list"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_table(table, keys, "t")
