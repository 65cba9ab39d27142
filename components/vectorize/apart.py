"""Keeps features of a run out of each other, as rows of tiles come in from north to south.

What becomes of a feature follows from those that it meets (see `rsp.shared.apart`). So it is held until nothing
that later rows bring, or that goes on there, may come near to it, and nothing that it meets is held for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.apart import Claims, Ground
from rsp.shared.disjoint import connected
from rsp.shared.featureset import Features
from rsp.shared.polygons import ground_area
from rsp.shared.sweep import Sweep

Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


class Apart:
    """Keeps the features of sweeps apart that go row by row over the same masks.

    Attributes:
        dropped: How many features were too small after the ground of others was taken from them.

    Args:
        sweeps: One a class. What comes from one that is no `Sweep` has no outlines, and goes as it comes.
    """

    def __init__(self, sweeps: Sequence[object]) -> None:
        self.dropped = 0
        self._sweeps = {place: sweep for place, sweep in enumerate(sweeps) if isinstance(sweep, Sweep)}
        self._any = next(iter(self._sweeps.values()))
        self._ground = Ground(self._any.grid, [sweep.shaping for sweep in self._sweeps.values()])
        self._held = Features.sorted([], self._any.grid.zoom)
        self._claims = Claims.of([])
        self._open = np.empty(0, bool)  # what later rows may come near to
        self._cluster: Integers = np.empty(0, np.int64)

    def rows(self, rows: Iterable[Sequence[Any]]) -> Iterator[list[Any]]:
        """Yield for each row the features, class by class, of which it is known what becomes of them."""
        for row in rows:
            new = [row[place].divided() for place in self._sweeps]
            self._take([meeting for meeting, _ in new])
            self._look()
            done = list(row)
            for place, (_, finished), closed in zip(self._sweeps, new, self._closed(), strict=True):
                done[place] = Features.sorted([finished, closed], closed.zoom)
            yield done

    def _take(self, new: Sequence[Features]) -> None:
        """Add features, and connect them with what they meet."""
        before = len(self._open)
        self._held = Features.joined([self._held, *new])
        self._claims = Claims.joined([self._claims, Claims.of(new)])
        count = len(self._held.polygons) - before
        self._open = np.concatenate([self._open, np.ones(count, bool)])
        self._cluster = np.concatenate([self._cluster, np.arange(before, before + count)])
        self._cluster = connected(self._cluster, *self._ground.meeting(self._claims, before))

    def _look(self) -> None:
        """Find out what the rows after the last one, or features that go on there, may come near to."""
        there = np.flatnonzero(self._open)
        outlines = self._claims.outlines[there]
        south = shapely.bounds(outlines).reshape(-1, 4)[:, 3]
        still = south + self._ground.reach > (self._any.row + 1) * self._any.grid.size
        waiting = np.concatenate([sweep.waiting() for sweep in self._sweeps.values()])
        self._open[there] = still | self._ground.near(outlines, waiting)

    def _closed(self) -> list[Features]:
        """Return, class by class, the features that meet none which is open, and forget them."""
        done = ~np.isin(self._cluster, self._cluster[self._open])
        claims, found = self._claims.take(done), self._held.take(done)._replace(outlines=None)
        self._held, self._claims, self._open = self._held.take(~done), self._claims.take(~done), self._open[~done]
        numbers, sizes = np.unique(self._cluster[done], return_inverse=True, return_counts=True)[1:]
        self._cluster = np.unique(self._cluster[~done], return_inverse=True)[1]
        several = np.flatnonzero(sizes[numbers] > 1)
        forms = self._ground.divided(claims.take(several))
        changed = forms != found.polygons[several]
        found.polygons[several] = forms
        found.areas[several[changed]] = ground_area(forms[changed])
        large = np.ones(len(done[done]), bool)
        large[several] = found.areas[several] >= self._any.shaping.min_area
        self.dropped += int((~large).sum())
        return [found.take(large & (claims.kinds == kind)) for kind in range(len(self._sweeps))]
