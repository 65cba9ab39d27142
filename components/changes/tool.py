"""Compare a map with what is predicted, object by object, and rank the objects: the most suspicious first.

rsp changes --mapped osm.geojson --predicted masks --suspects suspects.csv changes.geojson
rsp changes --mapped osm.gpkg --predicted masks.pmtiles --probabilities probabilities.pmtiles changes.gpkg
rsp changes --mapped buildings_2020.parquet --predicted buildings_2025.parquet --metrics metrics.json changes.fgb
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

from rsp.shared.arguments import add_config, add_out, add_workers, bounded, require, tiles_at
from rsp.shared.claims import COVER, FAILED, FEATURES, Form, Output, check_paths
from rsp.shared.errors import UsageError
from rsp.shared.locations import Location, location
from rsp.shared.report import Result, note_failures

METRICS = Form("metrics", (".json",))

# The farthest, in metres, that anything can have moved; zooms of covers.
MAX_OFFSET, MAX_ZOOM = 1000.0, 30


@dataclass(kw_only=True)
class ChangesResult(Result):
    """What `changes` found. Objects that belong together count once in the statuses, and in `objects`.

    Attributes:
        tiles: How many tiles the area has; 0 where nothing bounds it.
        mapped: How many objects of the map were looked at.
        predicted: How many that are predicted.
        outside: How many of the map lie outside of the area, and were left out.
        objects: How many were ranked and written.
        matched: Pairs whose IoU is as high as it has to be.
        moved: Pairs whose IoU is so once one is moved onto the other.
        reshaped: Other pairs.
        merged: Several of the map that are one where they are predicted.
        split: One of the map that is several where it is predicted.
        missing_on_map: What is predicted only.
        gone: What is mapped only.
        suspects: How many objects the tiles of the cover are of.
        precision: The share of predicted objects that have a mapped one with an IoU of 0.5; None where there are
            no objects.
        recall: The share of mapped objects, likewise.
        f1: Their harmonic mean.
        f1_mean: The mean of F1 for IoUs of 0.5 to 0.95.
        boundary_iou: Mean IoU of the inner metre along the outlines of matched pairs.
        skipped: How many features were left out, by reason.
    """

    tiles: int = 0
    mapped: int
    predicted: int
    outside: int = 0
    objects: int
    matched: int
    moved: int
    reshaped: int
    merged: int
    split: int
    missing_on_map: int
    gone: int
    suspects: int = 0
    precision: float | None
    recall: float | None
    f1: float | None
    f1_mean: float | None
    boundary_iou: float | None = None
    skipped: dict[str, int] = field(default_factory=dict)

    def measures(self) -> dict[str, float]:
        """Return the measures by name, without those that are undefined."""
        names = "precision", "recall", "f1", "f1_mean", "boundary_iou"
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def changes(
    out: Location,
    *,
    mapped: Location | str,
    predicted: Location | str,
    masks: Location | str | None = None,
    probabilities: Location | str | None = None,
    kind: str | Sequence[str] | None = None,
    config: Location | None = None,
    crs: str | None = None,
    iou: float = 0.5,
    max_offset: float = 10.0,
    suspects: Location | None = None,
    worst: float = 15.0,
    zoom: int | None = None,
    metrics: Location | None = None,
    workers: int | None = None,
) -> ChangesResult:
    """Match the objects of a map with those that are predicted, and write what became of each, worst first.

    Objects belong together where they share half of the smaller one; pairs of the highest IoU come first, and what
    is left is a part of a pair, or alone. See docs/changes.md for the properties of what is written, and for the
    score. Two dates, or two models, are compared in the same way: the older one is the map.

    Args:
        out: Where the features go, in degrees; the suffix says in which format (see
            `rsp.shared.features.feature_writer`).
        mapped: Features of the map: a file in any format that is read, an object in S3, or a URL.
        predicted: Features likewise, or a tile set of masks, which become features as `rsp vectorize` makes them
            by default.
        masks: Tile set of masks: its tiles are where anything can be said. Those of `predicted` where these are
            masks, else those of `probabilities`; without any, everywhere.
        probabilities: Tile set of probabilities, as `predict --probabilities` writes it: uint8, a band for each
            class, 255 for 1.
        kind: Title of the class, or of several (a list, or separated by commas). Needed where masks have several.
        config: Configuration, read for its classes. Not needed where masks or probabilities tell them, as those of
            `predict` do.
        crs: The CRS of `mapped`, as EPSG:2154, whatever the file says.
        iou: From which IoU on a pair is matched; moved, where it is so after one is moved onto the other.
        max_offset: How far, in metres, an object may have moved.
        suspects: Where a cover of the tiles of the worst objects goes: lines `x,y,z,reason,score`.
        worst: Which share of the objects is suspect, in percent.
        zoom: Of the cover; without it that of the masks.
        metrics: Where metrics of the objects go, as JSON.
        workers: Number of processes that read masks and probabilities; None for one a processor.

    Raises:
        UsageError: the arguments do not fit together.
        ConfigError: no class of that title, or no configuration where one is needed.
        FeatureError: features that cannot be read, or no polygon at all.
        TileSetError: no mask can be read.
    """
    from rsp.components.changes.work import Given, run

    given = Given(
        mapped, predicted, masks, probabilities, kind, config, crs, iou, max_offset, worst, zoom, workers,
    )  # fmt: skip
    places = [Output(out, FEATURES, (FAILED,))]
    places += [Output(suspects, COVER)] if suspects is not None else []
    places += [Output(metrics, METRICS)] if metrics is not None else []
    check_paths(places, [mapped, predicted, masks, probabilities, config])
    for name, value, low, high in (
        ("iou", iou, 0.05, 1), ("max_offset", max_offset, 0, MAX_OFFSET), ("worst", worst, 0, 100),
        ("zoom", zoom, 0, MAX_ZOOM),
    ):  # fmt: skip
        if value is not None and not low <= value <= high:
            raise UsageError(f"--{name} is from {low:g} to {high:g}, got {value:g}")
    result = run(given, location(out), suspects, metrics)
    note_failures(location(out), result.failed)
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp changes`."""
    add_out(parser, "where the objects go: .geojson, .geojsonl, .fgb, .gpkg or .parquet")
    parser.add_argument(
        "--mapped",
        type=tiles_at,
        required=True,
        metavar="FEATURES",
        help="features of the map, or of the older date",
    )
    parser.add_argument(
        "--predicted", type=tiles_at, required=True, metavar="FEATURES|TILES",
        help="features that are predicted, or of the newer date; or a tile set of masks",
    )  # fmt: skip
    parser.add_argument(
        "--masks", type=tiles_at, metavar="TILES",
        help="masks whose tiles are where anything can be said (default: those of --predicted)",
    )  # fmt: skip
    parser.add_argument(
        "--probabilities", type=tiles_at, metavar="TILES", help="probabilities: uint8, a band for each class"
    )
    parser.add_argument(
        "--type", dest="kind", action="append", metavar="TITLE",
        help="title of the class; of several, separated by commas, or --type again (default: the only one)",
    )  # fmt: skip
    add_config(parser)
    parser.add_argument(
        "--crs",
        metavar="EPSG:CODE",
        help="CRS of --mapped, as EPSG:2154 (default: what the file says, else degrees)",
    )
    parser.add_argument(
        "--iou", type=bounded(float, 0.05, 1), default=0.5, metavar="0.05..1",
        help="from which IoU on a pair is matched (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--max_offset", type=bounded(float, 0, MAX_OFFSET), default=10.0, metavar="METRES",
        help="how far an object may have moved (default: 10)",
    )  # fmt: skip
    parser.add_argument(
        "--suspects", type=location, metavar="FILE",
        help="write the tiles of the worst objects as a cover, with reason and score",
    )  # fmt: skip
    parser.add_argument(
        "--worst", type=bounded(float, 0, 100), default=15.0, metavar="PERCENT",
        help="which share of the objects is suspect (default: 15)",
    )  # fmt: skip
    parser.add_argument(
        "--zoom",
        type=bounded(int, 0, MAX_ZOOM),
        metavar="Z",
        help="zoom of that cover (default: that of the masks)",
    )
    parser.add_argument(
        "--metrics", type=location, metavar="FILE", help="write precision, recall, F1 and more of objects as JSON"
    )
    add_workers(parser)


def resolve(args: argparse.Namespace) -> None:
    """Check that there is an output."""
    require(args, "out")
