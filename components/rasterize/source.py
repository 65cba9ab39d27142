"""Where polygons come from: every source yields shapes in metres of EPSG:3857, and counts what it leaves out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import shapely

from rsp.components.rasterize.layers import Input
from rsp.shared.attribution import joined
from rsp.shared.config import ClassDef
from rsp.shared.features import BROKEN, expand, has_polygon, polygons_of, read_batches, read_crs
from rsp.shared.owners import of_features
from rsp.shared.webfiles import FileAt

Bounds = tuple[float, float, float, float]

# Reasons to leave a feature out; others are in rsp.shared.geometry.
OUTSIDE = "outside the cover"
UNNAMED = "no class of this name"


class Polygons(NamedTuple):
    """Polygons that are read together.

    Attributes:
        polygons: Valid Polygons and MultiPolygons in metres of EPSG:3857.
        value: The class index of each.
    """

    polygons: npt.NDArray[np.object_]
    value: npt.NDArray[np.uint8]


class Source(Protocol):
    """Polygons from somewhere.

    Attributes:
        skipped: How many features were left out, by reason.
    """

    skipped: Counter[str]

    def owners(self) -> str | None:
        """Return whose they are, as far as that is said."""
        ...

    def polygons(self, bounds: Bounds) -> Iterator[Polygons]:
        """Yield the polygon of each feature.

        Args:
            bounds: West, south, east, north in metres of EPSG:3857: what lies outside may be left out.
        """
        ...


class Naming:
    """Says which class a feature is of: that of its input, or the one that a property of it names."""

    def __init__(self, classes: Sequence[ClassDef], field: str | None, skipped: Counter[str]) -> None:
        self.field, self._skipped = field, skipped
        titles = [entry.title for entry in classes[1:]]
        self._listed = ", ".join(titles)
        # A title in another case counts where only one class is called so.
        folded = Counter(map(str.casefold, titles))
        self._index = {
            **{title.casefold(): index for index, title in enumerate(titles, 1) if folded[title.casefold()] == 1},
            **{title: index for index, title in enumerate(titles, 1)},
        }

    def classes(self, names: Sequence[Any], where: str) -> npt.NDArray[np.uint8]:
        """Return the class index that each name stands for, 0 where it stands for none, which is counted."""
        found = np.array([self._look(name) for name in names], np.uint8)
        missing = np.flatnonzero(found == 0)
        if len(missing):
            if not self._skipped[UNNAMED]:
                print(
                    f"rasterize: skipped: {where}: {self.field} is {names[missing[0]]!r}; expected one of "
                    f"{self._listed}",
                    file=sys.stderr,
                )
            self._skipped[UNNAMED] += len(missing)
        return found

    def _look(self, name: Any) -> int:
        if not isinstance(name, str):
            return 0
        return self._index.get(name) or self._index.get(name.casefold(), 0)


class FileSource:
    """The polygons of files, in batches."""

    def __init__(self, inputs: Sequence[Input], naming: Naming, skipped: Counter[str], epsg: int | None) -> None:
        self.skipped = skipped
        self._naming, self._epsg = naming, epsg
        self._paths = [(path, value, layer) for text, value, layer in inputs for path in expand(text)]

    def owners(self) -> str | None:
        """Return whose the files are, as far as they say."""
        return joined(of_features(path, layer) for path, _, layer in self._paths)

    def polygons(self, bounds: Bounds) -> Iterator[Polygons]:
        for path, value, layer in self._paths:
            yield from self._file(path, value, layer)

    def _file(self, path: FileAt, value: int | None, layer: str | None) -> Iterator[Polygons]:
        crs = read_crs(path, layer) if self._epsg is None else self._epsg
        found = False
        for batch in read_batches(path, layer=layer, properties=value is None, broken=self._broken):
            found = found or any(has_polygon(geometry) for geometry in batch.geometries if geometry is not None)
            numbers = batch.numbers
            polygons = polygons_of(
                batch.geometries,
                self.skipped,
                crs=crs,
                where=lambda nth, numbers=numbers: f"{path}: feature {numbers[nth]}",  # type: ignore[misc]
            )
            there = np.flatnonzero(~shapely.is_missing(polygons))
            if value is None:
                names = [batch.properties[index].get(str(self._naming.field)) for index in there]
                classes = self._naming.classes(names, str(path))
                yield Polygons(polygons[there][classes > 0], classes[classes > 0])
            else:
                yield Polygons(polygons[there], np.full(len(there), value, np.uint8))
        if not found:
            print(f"rasterize: warning: no polygon in {path}", file=sys.stderr)

    def _broken(self, reason: str) -> None:
        self.skipped[BROKEN] += 1
        if self.skipped[BROKEN] == 1:
            print(f"rasterize: skipped: {reason}", file=sys.stderr)
