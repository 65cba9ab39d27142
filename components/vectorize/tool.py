"""Extract features, as simplified GeoJSON polygons, from masks.

rsp vectorize --type building masks buildings.json
rsp vectorize --type building --min_area 10 --simplify 1.5 masks.pmtiles buildings.json
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from rsp.shared.arguments import add_config, add_out, add_workers, bounded, require
from rsp.shared.claims import FAILED, GEOJSON, Output, check_paths
from rsp.shared.locations import Location, location
from rsp.shared.report import Result, note_failures


@dataclass(kw_only=True)
class VectorizeResult(Result):
    """What `vectorize` did.

    Attributes:
        tiles: How many masks were read.
        features: How many features were written.
        merged: How many of them lie in more than one tile.
        dropped: How many were smaller than the least area.
        area_m2: Area of all features.
    """

    tiles: int
    features: int
    merged: int
    dropped: int
    area_m2: float


def vectorize(
    masks: Location,
    out: Location,
    *,
    kind: str,
    config: Location | None = None,
    min_area: float = 1.0,
    simplify: float = 1.0,
    merge: bool = True,
    workers: int | None = None,
) -> VectorizeResult:
    """Write the regions of one class as GeoJSON, in degrees.

    A feature that tile edges cut is one feature. Its properties are `class`, the tile `x`, `y`, `z` where it
    starts (of its tiles the northernmost, of these the westernmost), `tiles`, how many it lies in, and `area_m2`,
    on the ellipsoid.

    Args:
        masks: Tile set of masks, of one zoom.
        out: Where the GeoJSON goes.
        kind: Title of the class; upper or lower case does not matter where no other class is called so.
        config: Configuration, read for its classes. Not needed where the masks tell them, as those of `predict`
            do.
        min_area: Leave out what is smaller, in square metres.
        simplify: How far outlines may move, in pixels; 0 keeps every stair-step.
        merge: Join what tile edges cut. Without it memory does not grow with the size of features (a whole
            road network can be one).
        workers: Number of processes; None for one a processor.

    Raises:
        ConfigError: no class of that title, or no configuration where one is needed.
        UsageError: masks and configuration have other classes.
        TileSetError: no mask can be read.
    """
    from rsp.components.vectorize.merge import Sweep
    from rsp.components.vectorize.work import trace
    from rsp.shared.features import feature_writer

    check_paths([Output(out, GEOJSON, (FAILED,))], [masks, config])
    traced = trace(location(masks), kind, config, min_area=min_area, simplify=simplify, merge=merge)
    sweep = Sweep(traced.job.grid, frozenset(traced.tiles), simplify, min_area)
    merged, total = 0, 0.0
    with feature_writer(out) as writer:
        for features in sweep.features(traced.found(workers)):
            writer.write_batch(features.polygons, features.properties(traced.title))
            merged += int((features.tiles > 1).sum())
            total += sum(features.areas.tolist())
    note_failures(out, traced.failed)
    return VectorizeResult(
        tiles=len(traced.tiles) - len(traced.failed), features=writer.count, merged=merged,
        dropped=sweep.dropped, area_m2=round(total, 2), failed=traced.failed,
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp vectorize`."""
    parser.add_argument("masks", type=location, help="tile set of masks")
    add_out(parser, "where the GeoJSON goes")
    parser.add_argument(
        "--type", dest="kind", required=True, metavar="TITLE", help="title of the class, in any case"
    )
    add_config(parser)
    parser.add_argument(
        "--min_area", type=bounded(float, 0, 1e12), default=1.0, metavar="M2",
        help="drop smaller features, in square metres (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--simplify", type=bounded(float, 0, 1e6), default=1.0, metavar="PIXELS",
        help="how far outlines may move, in pixels; 0 keeps every stair-step (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--no_merge", dest="merge", action="store_false", help="do not join features cut by tile edges"
    )
    add_workers(parser)


def resolve(args: argparse.Namespace) -> None:
    """Check that there is an output."""
    require(args, "out")
