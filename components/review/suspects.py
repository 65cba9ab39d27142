"""What `rsp changes` has written, as it is reviewed: objects with a status, the worst first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.shared.crs import Crs, check_coordinates
from rsp.shared.errors import FeatureError
from rsp.shared.features import Feature, expand, read_batches, read_crs
from rsp.shared.geometry import BROKEN, project, to_lonlat
from rsp.shared.locations import Location

# As `rsp changes` names them.
MISSING, GONE = "missing_on_map", "gone"
STATUSES = ("matched", "moved", "reshaped", "merged", "split", MISSING, GONE)

Place = Location | str


@dataclass(frozen=True)
class Suspect:
    """An object of `rsp changes`, or several that belong together.

    Attributes:
        number: Its number in the file, from 0: what decisions name it by.
        status: One of `STATUSES`.
        score: How suspicious it is, 0 to 1.
        title: Title of its class; may be empty.
        geometry: What is predicted, or what is mapped where nothing is; polygons, in degrees.
        mapped: The numbers of the features of the map, from 0.
        cut: The border of the area cuts it: only a part of it was looked at.
        measures: `iou`, `offset_m`, `area_m2`, `support` and `evidence`, those that are known.
    """

    number: int
    status: str
    score: float
    title: str
    geometry: BaseGeometry
    mapped: tuple[int, ...]
    cut: bool
    measures: dict[str, float]


@dataclass(frozen=True)
class Suspects:
    """All objects of a file.

    Attributes:
        objects: The most suspicious first.
        digest: Of their content: it tells whose decisions are whose. It is the same in every format.
    """

    objects: tuple[Suspect, ...]
    digest: str

    def worst(self, percent: float) -> tuple[Suspect, ...]:
        """Return this share of the objects, those of the highest scores; those of 0 are no suspects."""
        count = math.ceil(len(self.objects) * percent / 100)
        return tuple(each for each in self.objects[:count] if each.score > 0)


MEASURES = ("iou", "offset_m", "area_m2", "support", "evidence")


def read_suspects(place: Place) -> Suspects:
    """Read what `rsp changes` has written, in any of its formats.

    Raises:
        FeatureError: it cannot be read, or is not of `rsp changes`.
    """
    found: list[Suspect] = []
    features = read_map(place)
    for feature in features:
        told = feature.properties
        status, mapped = told.get("status"), told.get("mapped")
        if status not in STATUSES or feature.geometry is None or not isinstance(mapped, str):
            raise FeatureError(
                f"{place}: feature {feature.number} has no status of `rsp changes`; give what that tool writes"
            )
        numbers = tuple(int(number) for number in mapped.split(",") if number.isdigit())
        if bool(numbers) == (status == MISSING):
            raise FeatureError(f"{place}: feature {feature.number} is {status}, and its mapped is {mapped!r}")
        found.append(
            Suspect(
                feature.number, status, _number(told.get("score")) or 0.0, str(told.get("class") or ""),
                feature.geometry, numbers, bool(told.get("cut")),
                {name: value for name in MEASURES if (value := _number(told.get(name))) is not None},
            )
        )  # fmt: skip
    # FlatGeobuf has an order of its own: the number stays that of the file.
    found.sort(key=lambda each: (-each.score, each.number))
    return Suspects(tuple(found), _digest(found))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _digest(found: Sequence[Suspect]) -> str:
    digest = blake2b(digest_size=12)
    for each in sorted(found, key=lambda each: each.number):
        box = [round(value * 1e6) for value in each.geometry.bounds]
        digest.update(repr((each.number, each.status, round(each.score, 4), each.mapped, box)).encode())
    return digest.hexdigest()


def read_map(place: Place, crs: Crs | None = None, skipped: Counter[str] | None = None) -> list[Feature]:
    """Return the features of a file, in degrees, with their properties and numbers.

    Args:
        place: The file, an object in S3, or a URL.
        crs: Its CRS, whatever the file says.
        skipped: Counts the features that cannot be built, by reason; without it they are an error.

    Raises:
        FeatureError: it cannot be read.
    """
    paths = expand(place)
    if len(paths) > 1:
        raise FeatureError(f"{place} names {len(paths)} files; objects are numbered by one: join them first")

    def broken(reason: str) -> None:
        assert skipped is not None
        skipped[BROKEN] += 1

    where = read_crs(paths[0]) if crs is None else crs
    found: list[Feature] = []
    for batch in read_batches(paths[0], properties=True, broken=None if skipped is None else broken):
        shapes = batch.geometries
        there = np.flatnonzero(~shapely.is_missing(shapes))

        def place_of(nth: int, numbers: npt.NDArray[np.int64] = batch.numbers[there]) -> str:
            return f"{paths[0]}: feature {numbers[nth]}"

        if where == 4326:
            check_coordinates(shapely.bounds(shapes[there]), where, place_of)
        else:
            shapes[there] = to_lonlat(project(shapes[there], where, place_of))
        found += map(Feature, shapes, batch.properties, batch.numbers.tolist())
    return found
