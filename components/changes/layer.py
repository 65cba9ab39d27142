"""The objects of a map, or of a prediction, as arrays in an order that follows from their shapes alone."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.claims import FEATURES
from rsp.shared.crs import Crs
from rsp.shared.errors import FeatureError
from rsp.shared.features import BROKEN, expand, polygons_of, read_batches, read_crs
from rsp.shared.featureset import ordered
from rsp.shared.ground import scale
from rsp.shared.locations import Address, Location, location
from rsp.shared.mercator import AROUND
from rsp.shared.tileset import is_archive
from rsp.shared.webfiles import is_url

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]
Flags = npt.NDArray[np.bool_]
Place = Location | str

OTHER_CLASS = "another class"
ANY = -1


@dataclass(frozen=True)
class Layer:
    """Objects of a map or of a prediction, n of them.

    Attributes:
        polygons: Polygons and MultiPolygons in metres of EPSG:3857.
        numbers: The number of each in its file, or in what its masks hold, from 0.
        titles: The title of its class; empty where nobody says.
        scale: Metres of EPSG:3857 a metre on the ground, to the east and to the north, shape (n, 2).
        centres: x and y of the centroid, in metres of EPSG:3857, shape (n, 2).
        planar: Area in square metres of EPSG:3857.
        area: In square metres on the ground.
        inside: Which share of it lies in the area, 0 to 1; only that part is looked at.
        cut: Whether the border of the area runs through it or along it.
    """

    polygons: Objects
    numbers: Integers
    titles: Objects
    scale: Floats
    centres: Floats
    planar: Floats
    area: Floats
    inside: Floats
    cut: Flags

    def __len__(self) -> int:
        return len(self.polygons)

    def take(self, chosen: Flags | Integers) -> Layer:
        """Return some of the objects."""
        return Layer(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def within(self, polygons: Objects, inside: Floats, cut: Flags) -> Layer:
        """Return those that lie in an area, and of each what lies in it."""
        found = replace(self, inside=inside, cut=cut, **_measured(polygons, self.polygons))
        return found.take(inside > 0)


def _measured(polygons: Objects, before: Objects | None = None) -> dict[str, Any]:
    """Return what follows from polygons; those of none are measured as they were `before`."""
    shapes = polygons if before is None else np.where(shapely.is_missing(polygons), before, polygons)
    centres = shapely.get_coordinates(shapely.centroid(shapes)).reshape(-1, 2)
    scales, planar = scale(centres[:, 1]), shapely.area(shapes)
    return {
        "polygons": shapes, "centres": centres, "scale": scales,
        "planar": planar, "area": planar / scales.prod(axis=1),
    }  # fmt: skip


def layer_of(polygons: Objects, numbers: Integers, titles: Objects) -> Layer:
    """Return objects as a layer, sorted by where they lie and then by their shape.

    What lies beyond the antimeridian comes back by a turn, so that both sides of it meet.
    """
    turns = np.rint(shapely.bounds(polygons)[:, [0, 2]].mean(axis=1) / AROUND)
    for place in np.flatnonzero(turns):
        back = np.array([turns[place] * AROUND, 0.0])
        polygons[place] = shapely.transform(polygons[place], lambda points, back=back: points - back)  # type: ignore[misc]
    order = _order(polygons, titles)
    count = len(order)
    return Layer(
        numbers=numbers[order], titles=titles[order], inside=np.ones(count), cut=np.zeros(count, bool),
        **_measured(polygons[order]),
    )  # fmt: skip


def concatenated(layers: Sequence[Layer]) -> Layer:
    """Return the objects of several layers as one, those of each together."""
    names = [field.name for field in fields(Layer)]
    return Layer(**{name: np.concatenate([getattr(layer, name) for layer in layers]) for name in names})


def _order(polygons: Objects, titles: Objects) -> Integers:
    """Return the order of objects: from north to south, whatever the order in which they come."""
    west, south, east, north = shapely.bounds(polygons).T
    keys = np.column_stack([-north, west, south, east, shapely.area(polygons)])
    return ordered(keys, lambda place: (shapely.to_wkb(polygons[place]), titles[place]))


def is_tiles(place: Place) -> bool:
    """Tell whether a place is a tile set of masks, and no file of features."""
    if is_url(place):
        return str(place).split("?")[0].lower().endswith(".pmtiles")
    where = location(place)
    suffix = where.suffix.lower()
    if is_archive(where):
        return True
    if isinstance(where, Address):
        return suffix not in (*FEATURES.suffixes, ".shp", ".zip")
    if where.expanduser().is_dir():
        return suffix != ".gdb"
    return _begins_as_archive(where)


def _begins_as_archive(path: Path) -> bool:
    try:
        with path.expanduser().open("rb") as file:
            return file.read(7) == b"PMTiles"
    except OSError:
        return False  # whoever reads it says what is wrong


@dataclass
class Read:
    """What a file of features holds.

    Attributes:
        layer: Its polygons.
        skipped: How many features are none, by reason.
    """

    layer: Layer
    skipped: Counter[str]


def read_layer(place: Place, wanted: Sequence[str] = (), crs: Crs | None = None) -> Read:
    """Read the polygons of a file of features.

    Args:
        place: The file, in any format that `rsp.shared.features.read_batches` takes, an object in S3, or a URL.
        wanted: Titles of classes: where the property `class` of some feature names one of them, those of other
            classes are left out.
        crs: Its CRS, whatever the file says.

    Raises:
        FeatureError: it cannot be read, or holds coordinates that cannot be meant.
    """
    skipped: Counter[str] = Counter()
    paths = expand(place)
    if len(paths) > 1:
        raise FeatureError(f"{place} names {len(paths)} files; objects are numbered by one: join them first")
    path, titles = paths[0], []
    polygons: list[Objects] = [np.empty(0, object)]
    numbers: list[Integers] = [np.empty(0, np.int64)]

    def broken(reason: str) -> None:
        skipped[BROKEN] += 1

    where = read_crs(path) if crs is None else crs
    for batch in read_batches(path, properties=True, broken=broken):
        some = polygons_of(
            batch.geometries, skipped, crs=where,
            where=lambda nth, numbers=batch.numbers: f"{path}: feature {numbers[nth]}",  # type: ignore[misc]
        )  # fmt: skip
        there = np.flatnonzero(~shapely.is_missing(some))
        polygons.append(some[there])
        numbers.append(batch.numbers[there])
        titles += [_title(batch.properties[place]) for place in there.tolist()]
    found = layer_of(np.concatenate(polygons), np.concatenate(numbers), texts(titles))
    folded = {title.casefold() for title in wanted}
    known = np.array([title.casefold() in folded for title in found.titles.tolist()], bool)
    if known.any():
        other = ~known & (found.titles != "")
        skipped[OTHER_CLASS] += int(other.sum())
        found = found.take(~other)
    return Read(found, +skipped)


def _title(properties: dict[str, Any]) -> str:
    title = properties.get("class")
    return title if isinstance(title, str) else ""


def texts(values: Iterable[str]) -> Objects:
    """Return texts as an array."""
    return np.array([*values, None], object)[:-1]


def classes_of(mapped: Layer, predicted: Layer) -> tuple[Integers, Integers]:
    """Return a number for the class of each object; `ANY` where it may be of any.

    The property `class` counts only where the two sides share a title: a map may call its classes otherwise.
    """
    sides = [
        np.array([title.casefold() for title in layer.titles.tolist()], object) for layer in (mapped, predicted)
    ]
    common = sorted({*sides[0].tolist()} & {*sides[1].tolist()} - {""})
    titles = sorted({*sides[0].tolist(), *sides[1].tolist()} - {""}) if common else []
    index = {title: number for number, title in enumerate(titles)}
    one, other = (np.array([index.get(title, ANY) for title in side.tolist()], np.int64) for side in sides)
    return one, other


def tell_skipped(what: str, place: Place, read: Read) -> None:
    """Say on stderr what of a file is no object."""
    for reason, count in sorted(read.skipped.items()):
        print(f"changes: skipped: {count:,} features of {what} {place}: {reason}", file=sys.stderr)
    if not len(read.layer):
        print(f"changes: warning: no polygon in {what} {place}", file=sys.stderr)
