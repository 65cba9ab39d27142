"""Disjoint sets: the groups that a search of the graph finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rsp.shared.disjoint import DisjointSets

PAIRS = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), max_size=30)


def reached(number, pairs):
    """All numbers that a number is connected with, itself included."""
    found = {number}
    while more := {other for one, two in pairs for other in (one, two) if found & {one, two}} - found:
        found |= more
    return found


@given(PAIRS)
def test_groups_go_by_their_least_number(pairs):
    sets = DisjointSets()
    for done, (one, two) in enumerate(pairs):
        groups = [min(reached(each, pairs[:done])) for each in (one, two)]
        assert sets.join(one, two) == (None if groups[0] == groups[1] else tuple(sorted(groups)))
    assert [sets.root(each) for each in range(-10, 10)] == [min(reached(each, pairs)) for each in range(-10, 10)]


def test_groups_are_forgotten():
    sets = DisjointSets()
    for one, two in ((1, 2), (2, 3), (4, 5)):
        sets.join(one, two)
    sets.keep({1})
    assert [sets.root(each) for each in (3, 5)] == [1, 5]
