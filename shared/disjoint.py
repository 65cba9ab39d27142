"""Groups that grow together: disjoint sets of numbers, which go by the least number in each."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


class DisjointSets:
    """Numbers in groups; each is a group of its own until it is joined with another."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, number: int) -> int:
        """Return the least number of the group that a number is in."""
        parent = self._parent
        while (above := parent.setdefault(number, number)) != number:
            parent[number] = parent[above]
            number = parent[number]
        return number

    def join(self, one: int, other: int) -> tuple[int, int] | None:
        """Make one group of those that two numbers are in.

        Returns:
            The least number of both groups, and that of the one which ends; None where they were one already.
        """
        keep, drop = sorted((self.root(one), self.root(other)))
        if keep == drop:
            return None
        self._parent[drop] = keep
        return keep, drop

    def keep(self, roots: Container[int]) -> None:
        """Forget all groups but those with these least numbers."""
        self._parent = {number: root for number in self._parent if (root := self.root(number)) in roots}


def connected(label: Integers, one: Integers, other: Integers) -> Integers:
    """Return labels that are the same for all that pairs of places connect, given those that are."""
    groups = DisjointSets()
    for first, second in zip(label[one].tolist(), label[other].tolist(), strict=True):
        groups.join(first, second)
    return np.array([groups.root(each) for each in label.tolist()], np.int64)
