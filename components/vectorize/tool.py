"""Extract features, as simplified polygons or centre lines, from masks.

rsp vectorize --type building masks buildings.json
rsp vectorize --type building,road masks features.gpkg
rsp vectorize --type building,road --shared_borders masks features.gpkg
rsp vectorize --type building --regularize building masks buildings.json
rsp vectorize --type road --lines road masks roads.gpkg
rsp vectorize --type building --probabilities probabilities.pmtiles masks.pmtiles buildings.gpkg
rsp vectorize --type building --min_area 10 --simplify 1.5 masks.pmtiles buildings.json
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import Any

from rsp.shared.arguments import Once, add_config, add_out, add_workers, bounded, require
from rsp.shared.claims import FAILED, FEATURES, Output, check_paths
from rsp.shared.errors import UsageError
from rsp.shared.locations import Location, location
from rsp.shared.report import Result, note_failures

# Metres up to which features may be joined.
MAX_DISTANCE = 1000

# The properties that every feature has, and those of polygons and of lines.
SCHEMA: dict[str, type] = {"class": str, "x": int, "y": int, "z": int, "tiles": int}
OUTLINES: dict[str, type] = {"area_m2": float}
CENTRES: dict[str, type] = {"length_m": float, "width_m": float}


@dataclass(kw_only=True)
class VectorizeResult(Result):
    """What `vectorize` did.

    Attributes:
        tiles: How many masks were read.
        features: How many features were written.
        merged: How many of them lie in more than one tile.
        joined: How many went into others that they were near to.
        dropped: How many were smaller than the least area.
        area_m2: Area of all polygons.
        length_m: Length of all lines.
    """

    tiles: int
    features: int
    merged: int
    joined: int = 0
    dropped: int
    area_m2: float
    length_m: float = 0.0


def vectorize(
    masks: Location,
    out: Location,
    *,
    kind: str | Sequence[str],
    config: Location | None = None,
    min_area: float = 1.0,
    simplify: float = 1.0,
    regularize: str | Sequence[str] | None = None,
    lines: str | Sequence[str] | None = None,
    denoise: int = 0,
    grow: int = 0,
    merge: bool = True,
    merge_distance: float = 0.0,
    shared_borders: bool = False,
    probabilities: Location | None = None,
    workers: int | None = None,
) -> VectorizeResult:
    """Write the regions of one class, or of several, as features, in degrees.

    A feature that tile edges cut is one feature. Its properties are `class`, the tile `x`, `y`, `z` where it
    starts (of its tiles the northernmost, of these the westernmost), `tiles`, how many it lies in, and `area_m2`,
    on the ellipsoid. Where the masks say which model made them, as those of `predict` do, `model` is its UUID (of
    several all, with commas between them).

    Args:
        masks: Tile set of masks, of one zoom.
        out: Where the features go; the suffix says in which format (see `rsp.shared.features.feature_writer`).
        kind: Title of the class, or of several (a list, or separated by commas), whose features go into one file;
            upper or lower case does not matter where no other class is called so.
        config: Configuration, read for its classes. Not needed where the masks tell them, as those of `predict`
            do.
        min_area: Leave out what is smaller, in square metres, and fill holes that are.
        simplify: How far outlines may move, in pixels; 0 keeps every stair-step.
        regularize: Title of the class, or of several, whose outlines get right angles, as buildings have. What
            would become another form (an IoU below 0.9) is simplified instead (see `rsp.shared.regular`), and none
            overlaps any other feature (see `rsp.shared.apart`).
        lines: Title of the class, or of several, whose features are the centre lines of their regions, as of
            roads: each from a junction or an end to the next one, over the edges of tiles. They have `length_m`,
            on the ellipsoid, and `width_m`, the mean width of the region, in place of `area_m2`, and `probability`
            is the mean along the line. Where a region is wider than 56 pixels (of tiles of 256 and more), lines
            may end at the edges of tiles. See `rsp.shared.centrelines`.
        denoise: Remove what is narrower than this many pixels (a morphological opening by squares), over the edges
            of tiles as inside them.
        grow: Then fill gaps and holes that are narrower than this many pixels (a closing).
        merge: Join what tile edges cut. Without it memory does not grow with the size of features (a whole
            road network can be one).
        merge_distance: Join features of a class, too, that are no farther apart than so many metres on the
            ground, and fill what lies between them; `min_area` is that of what this makes. See
            `rsp.components.vectorize.near`.
        shared_borders: Simplify all classes of a mask together, tile by tile: features that touch still do, and
            none overlap. What lies on the edge of a tile does not move. See `rsp.shared.borders`.
        probabilities: Tile set of the probabilities that `predict` wrote with the masks. Features have their mean
            as `probability`, 0 to 1: that of the class, over the pixels of the feature before it is simplified.
            A mask whose probabilities cannot be read fails as one that cannot.
        workers: Number of processes; None for one a processor.

    Raises:
        ConfigError: no class of that title, or no configuration where one is needed.
        UsageError: masks and configuration have other classes, `denoise` and `grow` go beyond the next tile, or
            `merge_distance` comes without `merge`, or with `regularize` or `lines`, or `shared_borders` with one
            of `regularize`, `lines`, `denoise`, `grow` and `merge_distance`, or a class is in both `lines` and
            `regularize`, or probabilities are those of another model.
        TileSetError: no mask can be read, or some have no probabilities.
    """
    from rsp.components.vectorize.apart import Apart
    from rsp.components.vectorize.near import Near
    from rsp.shared.attribution import of_tiles
    from rsp.shared.features import feature_writer
    from rsp.shared.linesweep import Lines, LineSweep
    from rsp.shared.sweep import Sweep
    from rsp.shared.tracing import trace

    check_paths([Output(out, FEATURES, (FAILED,))], [masks, config, probabilities])
    if merge_distance and not merge:
        raise UsageError("--no_merge leaves features apart, --merge_distance joins them: choose one")
    if merge_distance and regularize:
        raise UsageError("--merge_distance fills what lies between outlines that --regularize made: choose one")
    if merge_distance and shared_borders:
        raise UsageError("--merge_distance fills what lies between features, --shared_borders keeps that: choose")
    if merge_distance and lines:
        raise UsageError("--merge_distance joins outlines, and --lines has none of its classes: choose one")
    if not 0 <= merge_distance <= MAX_DISTANCE:
        raise UsageError(f"--merge_distance is from 0 to {MAX_DISTANCE} metres, got {merge_distance:g}")
    least = 0.0 if merge_distance else min_area  # small pieces may be near to each other
    traced = trace(
        location(masks),
        kind,
        config,
        min_area=least,
        simplify=simplify,
        regularize=regularize,
        lines=lines,
        merge=merge,
        denoise=denoise,
        grow=grow,
        shared_borders=shared_borders,
        probabilities=None if probabilities is None else location(probabilities),
    )
    tiles = frozenset(traced.tiles)
    grid, shapings = traced.job.grid, traced.job.shapings
    sweeps: list[Sweep | LineSweep] = [
        LineSweep(grid, shaping, merge=merge) if shaping.lines else Sweep(grid, tiles, shaping)
        for shaping in shapings
    ]
    nears = [
        Near(sweep, merge_distance, min_area) for sweep in sweeps if merge_distance and isinstance(sweep, Sweep)
    ]
    joining: Sequence[Near | Sweep | LineSweep] = nears or sweeps
    apart = Apart(sweeps) if regularize else None
    merged, area, length = 0, 0.0, 0.0
    kinds = {shaping.lines for shaping in shapings}
    schema = schema_of(traced.model, kinds, probabilities=probabilities is not None)
    with feature_writer(out, schema=schema, attribution=of_tiles(masks)) as writer:
        # All sweeps go row by row over the same masks: no more than a row is held for those that come later.
        streams = tee(traced.found(workers), len(sweeps))
        found = (_of_class(place, stream) for place, stream in enumerate(streams))
        rows: Iterable[Sequence[Any]] = zip(
            *(each.features(one) for each, one in zip(joining, found, strict=True)), strict=True
        )
        for row in rows if apart is None else apart.rows(rows):
            for title, features in zip(traced.titles, row, strict=True):
                writer.write_batch(features[0], features.properties(title, traced.model))
                merged += int((features.tiles > 1).sum())
                if isinstance(features, Lines):
                    length += sum(features.lengths.tolist())
                else:
                    area += sum(features.areas.tolist())
    note_failures(out, traced.failed)
    return VectorizeResult(
        tiles=len(traced.tiles) - len(traced.failed), features=writer.count, merged=merged,
        joined=sum(near.joined for near in nears),
        dropped=sum(each.dropped for each in (*sweeps, *nears, *([apart] if apart else []))),
        area_m2=round(area, 2), length_m=round(length, 2), failed=traced.failed,
    )  # fmt: skip


def schema_of(model: str | None, lines: Collection[bool] = (False,), *, probabilities: bool) -> dict[str, type]:
    """Return the properties of features and their types.

    Args:
        model: What made the masks, if they tell.
        lines: Whether features are lines: True, False, or both.
        probabilities: Whether they have the probability of their class.
    """
    found = SCHEMA | (OUTLINES if False in lines else {}) | (CENTRES if True in lines else {})
    found |= {"probability": float} if probabilities else {}
    return found | ({} if model is None else {"model": str})


def _of_class(place: int, found: Iterable[list[Any]]) -> Iterator[Any]:
    """Yield what was found of one of the classes."""
    for each in found:
        yield each[place]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp vectorize`."""
    parser.add_argument("masks", type=location, help="tile set of masks")
    add_out(parser, "where the features go: .geojson, .geojsonl, .fgb, .gpkg or .parquet")
    parser.add_argument(
        "--type",
        dest="kind",
        required=True,
        action="append",
        metavar="TITLE",
        help="title of the class, in any case; of several, separated by commas, or --type again",
    )
    add_config(parser)
    parser.add_argument(
        "--min_area", type=bounded(float, 0, 1e12), default=1.0, metavar="M2",
        help="drop smaller features, and fill smaller holes, in square metres (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--simplify", type=bounded(float, 0, 1e6), default=1.0, metavar="PIXELS",
        help="how far outlines may move, in pixels; 0 keeps every stair-step (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--regularize", action="append", metavar="TITLE",
        help="give outlines of this class right angles, as buildings have; of several, separated by commas, or "
        "--regularize again",
    )  # fmt: skip
    parser.add_argument(
        "--lines", action="append", metavar="TITLE",
        help="write this class as centre lines with their length and width, as of roads; of several, separated by "
        "commas, or --lines again",
    )  # fmt: skip
    for name, text in (
        ("denoise", "remove what is narrower than this"),
        ("grow", "then fill gaps and holes that are narrower than this"),
    ):
        parser.add_argument(
            f"--{name}", type=bounded(int, 0, 256), default=0, metavar="PIXELS", help=f"{text} (default: 0)"
        )
    parser.add_argument(
        "--no_merge", dest="merge", action="store_false", help="do not join features cut by tile edges"
    )
    parser.add_argument(
        "--merge_distance", type=bounded(float, 0, MAX_DISTANCE), default=0.0, metavar="METRES",
        help="join features, too, that are no farther apart than this on the ground, and fill what lies between "
        "them (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--shared_borders", action="store_true",
        help="simplify all classes of a mask together, tile by tile: features that touch still do, none overlap",
    )  # fmt: skip
    parser.add_argument(
        "--probabilities", type=location, action=Once, metavar="TILES",
        help="tile set of probabilities that `rsp predict` wrote with the masks: features say how likely they are",
    )  # fmt: skip
    add_workers(parser)


def resolve(args: argparse.Namespace) -> None:
    """Check that there is an output."""
    require(args, "out")
