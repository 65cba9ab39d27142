"""The text of GeoJSON features, many at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import shapely
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry

# 7 decimals of a degree are about a centimetre.
DECIMALS = 7

_POLYGON, _MULTIPOLYGON = int(shapely.GeometryType.POLYGON), int(shapely.GeometryType.MULTIPOLYGON)


def feature_text(geometry: BaseGeometry | None, properties: Mapping[str, Any]) -> str:
    """Return a feature on one line: rings as RFC 7946 turns them, coordinates of 7 decimals, null for NaN."""
    if geometry is None:
        return f'{{"type":"Feature","properties":{properties_text(properties)},"geometry":null}}'
    rounded = shapely.transform(shapely.orient_polygons(geometry), lambda points: points.round(DECIMALS))
    shape = json.dumps(mapping(rounded), separators=(",", ":"), ensure_ascii=False)
    return f'{{"type":"Feature","properties":{properties_text(properties)},"geometry":{shape}}}'


def feature_texts(geometries: npt.NDArray[np.object_], properties: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield each feature as `feature_text` returns it; polygons and multipolygons are done all at once.

    Only numbers nearer to 0 than 0.0001 are written otherwise, as 0.00005 and not as 5e-05.
    """
    types = shapely.get_type_id(geometries)
    plain = ((types == _POLYGON) | (types == _MULTIPOLYGON)) & ~shapely.is_empty(geometries)
    shapes = iter(_shapes(geometries[plain]))
    for number, at_once in enumerate(plain.tolist()):
        if at_once:
            text = properties_text(properties[number])
            yield f'{{"type":"Feature","properties":{text},"geometry":{next(shapes)}}}'
        else:
            yield feature_text(geometries[number], properties[number])


def properties_text(properties: Mapping[str, Any]) -> str:
    """Return the properties of a feature as JSON, null for what is not finite."""
    try:
        return orjson.dumps(properties).decode()
    except TypeError:  # numbers beyond 64 bits, text that is no Unicode, or keys that are no text
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in properties.items()
        }
        return json.dumps(finite, separators=(",", ":"), ensure_ascii=False)


def _shapes(geometries: npt.NDArray[np.object_]) -> list[str]:
    """Return the GeoJSON of polygons and multipolygons."""
    if not len(geometries):
        return []
    # Not shapely.to_ragged_array: it looks for types with np.unique, which loads numpy.ma.
    polygons, owners = shapely.get_parts(shapely.orient_polygons(geometries), return_index=True)
    rings, owners_of_rings = shapely.get_rings(polygons, return_index=True)
    points, owners_of_points = shapely.get_coordinates(rings, return_index=True)
    texts = _rings(points.round(DECIMALS), _offsets(owners_of_points, len(rings)))
    parts = _joined(texts, _offsets(owners_of_rings, len(polygons)))
    first = _offsets(owners, len(geometries)).tolist()
    single = (shapely.get_type_id(geometries) == _POLYGON).tolist()
    return [
        f'{{"type":"Polygon","coordinates":{parts[first[number]]}}}'
        if alone
        else f'{{"type":"MultiPolygon","coordinates":[{",".join(parts[first[number] : first[number + 1]])}]}}'
        for number, alone in enumerate(single)
    ]


def _offsets(owners: npt.NDArray[np.integer], count: int) -> npt.NDArray[np.integer]:
    """Return where the parts of each of `count` owners begin, and where the last ones end."""
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))])


def _rings(points: npt.NDArray[np.float64], offsets: npt.NDArray[np.integer]) -> list[str]:
    """Return the text of each ring, cut out of one of all points where its first point opens a bracket."""
    data = orjson.dumps(points, option=orjson.OPT_SERIALIZE_NUMPY)
    opened = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("["))
    starts = np.append(opened[1:], len(data))[offsets].tolist()
    text = data.decode("ascii")
    return [f"[{text[start : end - 1]}]" for start, end in pairwise(starts)]


def _joined(texts: Sequence[str], offsets: npt.NDArray[np.integer]) -> list[str]:
    """Return arrays of the texts from each offset to the next."""
    bounds = offsets.tolist()
    return [f"[{','.join(texts[start:end])}]" for start, end in pairwise(bounds)]


TAIL = "\n]}\n"


def head_of(crs: int = 4326, attribution: str | None = None) -> str:
    """Return the start of a FeatureCollection, up to its first feature; what follows the last one is `TAIL`."""
    head: dict[str, Any] = {"type": "FeatureCollection"}
    if crs != 4326:
        head["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{crs}"}}
    if attribution is not None:
        head["attribution"] = attribution
    return orjson.dumps(head).decode()[:-1] + ',"features":[\n'


def feature_collection(features: Iterable[tuple[BaseGeometry, dict[str, Any]]]) -> str:
    """Return the text of a GeoJSON file of these features, each a geometry in degrees and its properties."""
    pairs = list(features)
    geometries = np.empty(len(pairs), dtype=object)
    geometries[:] = [geometry for geometry, _ in pairs]
    return head_of() + ",\n".join(feature_texts(geometries, [each for _, each in pairs])) + TAIL
