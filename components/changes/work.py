"""How `changes` goes from files and tile sets to what it writes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import shapely

from rsp.components.changes.area import Area
from rsp.components.changes.evidence import probabilities_of
from rsp.components.changes.judging import STATUSES, boundary_iou, judge, object_metrics
from rsp.components.changes.layer import (
    Floats,
    Layer,
    Place,
    Read,
    classes_of,
    is_tiles,
    layer_of,
    read_layer,
    tell_skipped,
    texts,
)  # fmt: skip
from rsp.components.changes.matching import groups_of
from rsp.components.changes.outputs import by_status, write_metrics, write_objects, write_suspects
from rsp.components.changes.ranking import scores, worst_first
from rsp.components.changes.rest import with_rest
from rsp.components.changes.tool import ChangesResult
from rsp.shared.attribution import joined, of_tiles
from rsp.shared.classes import class_indices, find_classes, ignored_classes
from rsp.shared.covers import Cover
from rsp.shared.crs import parse_crs
from rsp.shared.errors import FeatureError, UsageError
from rsp.shared.featureset import Features
from rsp.shared.geometry import to_lonlat, to_mercator
from rsp.shared.locations import Location
from rsp.shared.owners import of_features
from rsp.shared.polygons import Shaping
from rsp.shared.sweep import Sweep, TilePolygons
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader
from rsp.shared.tracing import trace

if TYPE_CHECKING:
    from rsp.shared.config import ClassDef

# As `rsp vectorize` makes features of masks by default.
USUAL = Shaping()


class Given(NamedTuple):
    """What is compared; see `rsp.components.changes.tool.changes`."""

    mapped: Place
    predicted: Place
    masks: Place | None
    probabilities: Place | None
    kind: str | Sequence[str] | None
    config: Location | None
    crs: str | None
    iou: float
    max_offset: float
    worst: float
    zoom: int | None
    workers: int | None


def run(given: Given, out: Location, suspects: Location | None, metrics: Location | None) -> ChangesResult:
    """Compare, rank and write; see `rsp.components.changes.tool.changes`."""
    crs = None if given.crs is None else parse_crs(given.crs)
    tiled = is_tiles(given.predicted)
    failed: dict[Tile, str] = {}
    if is_tiles(given.mapped):
        raise UsageError(f"--mapped takes features, and {given.mapped} is a tile set: run `rsp vectorize` first")
    classes, wanted = _classes(given, tiled=tiled)
    area = _area(given, tiled=tiled)
    zoom = given.zoom if given.zoom is not None or area is None else area.zoom
    if suspects is not None and zoom is None:
        raise UsageError("--suspects needs --zoom where there are no masks")
    theirs = _traced(given, wanted, failed) if tiled else read_layer(given.predicted, wanted)
    if area is not None and failed:
        area = Area(Cover({area.zoom: area.keys}) - Cover.of(failed))
    ours = read_layer(given.mapped, wanted, crs)
    tell_skipped("--mapped", given.mapped, ours)
    tell_skipped("--predicted", given.predicted, theirs)
    mapped, predicted = ours.layer, theirs.layer
    if not len(mapped) and not len(predicted):
        raise FeatureError(f"no polygon, neither in {given.mapped} nor in {given.predicted}")
    before = len(mapped)
    if area is not None:
        mapped, predicted = area.clip(mapped), area.clip(predicted)
        if before and not len(mapped):
            _nowhere(given, ours.layer, area)
    groups = groups_of(
        mapped, predicted, classes_of(mapped, predicted), max_offset=given.max_offset, iou=given.iou
    )
    looked_at, divided = with_rest(mapped, predicted, groups, area)
    means = None
    if given.probabilities is not None:
        means = _probabilities(given, classes, wanted, mapped, looked_at, failed)
    judged = judge(mapped, looked_at, divided, iou=given.iou, max_offset=given.max_offset, probabilities=means)
    found = scores(judged)
    order = worst_first(judged, found)
    measured = object_metrics(groups, mapped, predicted)
    statuses = by_status(judged, STATUSES)
    counted: dict[str, Any] = {status: int(each["count"]) for status, each in statuses.items()}
    counted |= {name: measured[name] for name in ("precision", "recall", "f1", "f1_mean")}
    result = ChangesResult(
        tiles=0 if area is None else len(area.keys),
        mapped=len(mapped), predicted=len(predicted), outside=before - len(mapped), objects=divided.count,
        **counted,
        skipped=dict(sorted((ours.skipped + theirs.skipped).items())), failed=failed,
    )  # fmt: skip
    if not len(groups.pairs.iou) and len(mapped) and len(predicted):
        print(
            f"changes: warning: nothing of {given.mapped} meets anything of {given.predicted}; are both of the "
            "same place?",
            file=sys.stderr,
        )
    theirs_is = of_tiles(given.predicted) if tiled else of_features(given.predicted)
    write_objects(out, judged, found, order, joined([of_features(given.mapped), theirs_is]))
    if suspects is not None and zoom is not None:
        result.suspects = write_suspects(suspects, judged, found, order, zoom, given.worst)
    if metrics is not None:
        result.boundary_iou = boundary_iou(groups, mapped, predicted, given.iou)
        areas = {"mapped": mapped, "predicted": predicted}
        objects = {
            "mapped": len(mapped), "predicted": len(predicted), "outside": result.outside, **measured,
            "boundary_iou": result.boundary_iou,
            "area_m2": {name: round(float(layer.area.sum()), 2) for name, layer in areas.items()},
        }  # fmt: skip
        write_metrics(metrics, {"objects": objects, "statuses": statuses})
    return result


def _classes(given: Given, *, tiled: bool) -> tuple[tuple[ClassDef, ...], list[str]]:
    """Return the classes of masks and probabilities, and the titles of those that are compared."""
    sets = [given.predicted if tiled else None, given.probabilities]
    told = [each for each in sets if each is not None]
    asked = given.kind or None
    if not told:
        listed = [asked] if isinstance(asked, str) else asked or []
        return (), [title.strip() for each in listed for title in each.split(",") if title.strip()]
    classes = find_classes(given.config, told)  # type: ignore[arg-type]
    if asked is not None:
        return classes, [classes[index].title for index in class_indices(classes, asked)]
    ignored = ignored_classes(classes)
    titles = [each.title for index, each in enumerate(classes) if index and index not in ignored]
    if len(titles) != 1:
        raise UsageError(f"{told[0]} holds the classes {', '.join(titles)}: say with --type which are compared")
    return classes, titles


def _area(given: Given, *, tiled: bool) -> Area | None:
    """Return the tiles where anything can be said, None where everywhere."""
    for place in (given.masks, given.predicted if tiled else None, given.probabilities):
        if place is not None:
            with open_reader(place) as reader:
                return Area(reader.cover())
    return None


def _traced(given: Given, wanted: Sequence[str], failed: dict[Tile, str]) -> Read:
    """Return the objects of masks, as `rsp vectorize` makes features of them."""
    traced = trace(
        given.predicted, list(wanted), given.config,  # type: ignore[arg-type]
        min_area=USUAL.min_area, simplify=USUAL.tolerance,
    )  # fmt: skip
    tiles = frozenset(traced.tiles)
    sweeps = [Sweep(traced.job.grid, tiles, shaping) for shaping in traced.job.shapings]
    found: list[list[TilePolygons]] = [[] for _ in sweeps]
    for each in traced.found(given.workers):
        for some, one in zip(found, each, strict=True):
            some.append(one)
    rows = [list(sweep.features(some)) for sweep, some in zip(sweeps, found, strict=True)]
    failed.update(traced.failed)
    polygons, titles = [np.empty(0, object)], []
    # The numbers are those that features have in a file of `rsp vectorize`: row by row, class by class.
    for row in zip(*rows, strict=True):
        for title, features in zip(traced.titles, row, strict=True):
            polygons.append(_mercator(features))
            titles += [title] * len(features.polygons)
    every = np.concatenate(polygons)
    return Read(layer_of(every, np.arange(len(every)), texts(titles)), Counter())


def _mercator(features: Features) -> Any:
    return to_mercator(features.polygons, 4326)


def _probabilities(
    given: Given, classes: Sequence[ClassDef], wanted: Sequence[str], mapped: Layer, predicted: Layer,
    failed: dict[Tile, str],
) -> tuple[Floats, Floats]:  # fmt: skip
    """Return the mean probability of the class of each object, of one without a class that of the first."""
    assert given.probabilities is not None
    index = {each.title.casefold(): number for number, each in enumerate(classes)}
    usual = index[wanted[0].casefold()]
    layers = mapped, predicted
    bands = [
        np.array([index.get(title.casefold(), usual) for title in layer.titles.tolist()], np.int64)
        for layer in layers
    ]
    with open_reader(given.probabilities) as reader:
        where = Area(reader.cover())
    found = probabilities_of(
        given.probabilities, where, layers, bands, classes=len(classes), workers=given.workers
    )
    failed.update(found.failed)
    one, other = found.means
    return one, other


def _nowhere(given: Given, layer: Layer, area: Area) -> None:
    """Say that no object of the map lies in the area; raise `FeatureError` where they would, with axes swapped."""
    swapped = shapely.transform(to_lonlat(layer.polygons), lambda degrees: degrees[:, ::-1])
    there = area.reach(to_mercator(swapped, 4326))
    text = (
        f"none of the {len(layer):,} polygons of {given.mapped} lies in the {len(area.keys):,} tiles of the masks"
    )
    if any(len(keys) for _, keys in area.tiles(there)):
        raise FeatureError(f"{text}; with latitude and longitude swapped they would: swap them")
    print(f"changes: warning: {text}; are both of the same place?", file=sys.stderr)
