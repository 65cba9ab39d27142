"""Compare tile sets: pictures side by side or stacked, and how well masks agree with labels.

rsp compare --mode stack --images images labels masks --labels labels --masks masks compare
rsp compare --mode side --images images labels masks --labels labels --masks masks --maximum_qod 80 side
rsp compare --mode list --labels labels --masks masks --maximum_qod 80 --minimum_fg 5 --geojson tiles.json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal

from rsp.shared.arguments import add_config, add_out, add_web_ui, add_workers, bounded, require
from rsp.shared.claims import FAILED, FEATURES, GEOJSON, TABLE, Output, check_paths, tiles_output
from rsp.shared.errors import CoverError, TileSetError, UsageError
from rsp.shared.jobs import Failure
from rsp.shared.locations import Location, exists, location
from rsp.shared.report import Result, note_failures
from rsp.shared.tiles import Tile, zxy

if TYPE_CHECKING:
    from rsp.components.compare.work import Compared, Outcomes
    from rsp.shared.config import ClassDef

Mode = Literal["side", "stack", "list"]


# Features that are written at once.
BATCH = 4096


@dataclass(kw_only=True)
class CompareResult(Result):
    """What `compare` did, and what it found where labels and masks were given.

    Attributes:
        tiles: How many tiles were compared.
        written: How many passed the filters and are in the output.
        iou: Mean IoU of the classes without the background.
        miou: Mean IoU of the classes, background included.
        mcc: Matthews correlation coefficient.
        qod: Mean quality of data of the tiles, 0 to 100.
        classes: IoU of each class, by title; NaN for one to ignore.
        confusion: Pixels of all tiles; rows are the classes of the labels, columns those of the masks.
    """

    tiles: int
    written: int
    iou: float | None = None
    miou: float | None = None
    mcc: float | None = None
    qod: float | None = None
    classes: dict[str, float] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)

    def measures(self) -> dict[str, float]:
        """Return the measures by name, without those that are undefined (0/0)."""
        named = {"iou": self.iou, "miou": self.miou, "mcc": self.mcc, "qod": self.qod}
        named |= {f"iou_{title}": value for title, value in self.classes.items()}
        return {name: value for name, value in named.items() if value is not None and value == value}


def compare(
    out: Location,
    images: list[Location] | None = None,
    *,
    mode: Mode = "side",
    labels: Location | None = None,
    masks: Location | None = None,
    config: Location | None = None,
    cover: Location | None = None,
    minimum_fg: float = 0,
    maximum_fg: float = 100,
    minimum_qod: float = 0,
    maximum_qod: float = 100,
    vertical: bool = False,
    geojson: bool = False,
    tile_format: str = "webp",
    workers: int | None = None,
    resume: bool = False,
    web_ui_base_url: str = "./",
    web_ui_template: Location | None = None,
    web_ui: bool = True,
) -> CompareResult:
    """Compare tile sets of the same tiles.

    Args:
        out: Where to write: a tile set, or a file in mode `list`.
        images: The tile sets to show, in this order (`side` and `stack`).
        mode: `side` puts the images beside each other; `stack` takes their mean (labels in the complementary
            palette, masks in the plain one: agreement is grey); `list` writes a line a tile.
        labels: Labels; together with masks they are scored.
        masks: Masks, as `predict` makes them.
        config: Configuration, read for its classes where labels and masks are scored. Not needed where one of
            them tells the classes, as those of `rasterize` and `predict` do.
        cover: Compare these tiles only.
        minimum_fg: Lowest share of foreground that passes, in percent: the larger of label and mask.
        maximum_fg: Highest.
        minimum_qod: Lowest quality of data that passes, 0 to 100.
        maximum_qod: Highest.
        vertical: Below each other in mode `side`.
        geojson: Features in mode `list`: GeoJSON, or what the suffix of `out` says (see
            `rsp.shared.features.feature_writer`), which is enough where no list of text has it.
        tile_format: Format of the pictures.
        workers: Number of processes; None for one a processor.
        resume: Keep the pictures that are there.
        web_ui_base_url: Where the web page finds the tiles.
        web_ui_template: Template of the page, in place of ours.
        web_ui: Write the page.

    Raises:
        UsageError: the arguments do not fit together, or labels, masks and configuration have other classes.
        TileSetError: the tile sets do not have the same tiles, or none could be compared.
        CoverError: no tile passes the filters.
    """
    from rsp.components.compare.work import Job, compare_tiles
    from rsp.shared.classes import find_classes, ignored_classes
    from rsp.shared.progress import progress
    from rsp.shared.tileset import open_writer
    from rsp.shared.tileset import tile_format as format_name
    from rsp.shared.tileset.common import common_tiles

    filtered = (minimum_fg, maximum_fg, minimum_qod, maximum_qod) != (0, 100, 0, 100)
    scored = labels is not None and masks is not None
    if not scored and (mode == "list" or filtered):
        raise UsageError(f"{'--mode list' if mode == 'list' else 'a filter'} needs --labels and --masks")
    if mode != "list" and not images:
        raise UsageError(f"--mode {mode} needs --images")
    if vertical and mode != "side":
        raise UsageError("--vertical goes with --mode side")
    if geojson and mode != "list":
        raise UsageError("--geojson goes with --mode list")
    geojson = geojson or (mode == "list" and location(out).suffix.lower() in FEATURES.suffixes)
    if mode == "list":
        target = Output(out, FEATURES if geojson else TABLE, (FAILED,))
    else:
        target = tiles_output(out, web_ui=web_ui)
    check_paths([target], [*(images or []), labels, masks, config, web_ui_template], cover=cover)
    classes: tuple[ClassDef, ...] = ()
    if labels is not None and masks is not None:
        classes = find_classes(config, [labels, masks])
    job = Job(
        mode=mode,
        images=tuple(location(path) for path in images or ()) if mode != "list" else (),
        labels=labels if scored else None,
        masks=masks if scored else None,
        classes=len(classes),
        ignored=ignored_classes(classes),
        minimum=(minimum_fg, minimum_qod),
        maximum=(maximum_fg, maximum_qod),
        vertical=vertical,
        tile_format=format_name(tile_format),
    )
    tiles = common_tiles(job.paths, cover)
    tally = _Tally(len(classes), keep=mode != "list")
    if mode == "list":
        found = compare_tiles(job, ((tile, False) for tile in tiles), len(tiles), workers)
        _write_list(out, tally, progress(found, "compare", len(tiles)), geojson)
    else:
        with open_writer(out, job.tile_format, resume=resume) as writer:
            items = ((tile, tile not in writer.done) for tile in tiles)
            for one in tally.over(progress(compare_tiles(job, items, len(tiles), workers), "compare", len(tiles))):
                if one.picture is not None:
                    writer.write(one.tile, one.picture)
            tally.check()
        if not tally.notes:
            raise CoverError(f"none of the {len(tiles)} tiles passes the filters")
    note_failures(out, tally.failed)
    if mode != "list" and web_ui:
        from rsp.shared.webmap import write_webmap

        write_webmap(
            out, list(tally.notes), job.tile_format, base_url=web_ui_base_url, template=web_ui_template,
            page="compare" if mode == "side" else "leaflet", notes=tally.notes if scored else None,
        )  # fmt: skip
    return tally.result(classes)


def _note(found: Compared) -> dict[str, float]:
    return {"fg": round(found.fg, 1), "qod": round(found.qod, 1)}


class _Tally:
    """Counts what comes out tile by tile, and keeps what the web page says of the tiles that passed."""

    def __init__(self, classes: int, *, keep: bool) -> None:
        import numpy as np

        self.keep = keep

        self.counts = np.zeros((classes, classes), np.int64)
        self.failed: dict[Tile, str] = {}
        self.notes: dict[Tile, dict[str, float]] = {}  # of the tiles that passed
        self.compared = self.passed = 0
        self.quality = 0.0

    def over(self, results: Outcomes) -> Iterator[Compared]:
        """Yield the tiles that passed the filters."""
        for (tile, _), found in results:
            if isinstance(found, Failure):
                self.failed[tile] = found.reason
                continue
            self.compared += 1
            if found.counts is not None:
                self.counts += found.counts
                self.quality += found.qod
            if found.passed:
                self.passed += 1
                if self.keep:
                    self.notes[found.tile] = _note(found)
                yield found

    def check(self) -> None:
        """Raise `TileSetError` where every tile failed."""
        if self.failed and not self.compared:
            tile, reason = min(self.failed.items())
            raise TileSetError(f"none of the {len(self.failed)} tiles can be compared; {zxy(tile)}: {reason}")

    def result(self, classes: Sequence[ClassDef]) -> CompareResult:
        """Return the measures of all tiles."""
        result = CompareResult(tiles=self.compared, written=self.passed, failed=self.failed)
        if classes:
            from rsp.shared.classes import ignored_classes
            from rsp.shared.metrics import foreground_iou, iou_per_class, mcc, miou

            ignored = ignored_classes(classes)
            result.iou, result.miou = (f(self.counts, ignored) for f in (foreground_iou, miou))
            result.mcc, result.qod = mcc(self.counts), self.quality / self.compared
            result.classes = dict(
                zip((each.title for each in classes), map(float, iou_per_class(self.counts)), strict=True)
            )
            result.classes |= {classes[index].title: math.nan for index in ignored}
            result.confusion = self.counts.tolist()
        return result


def _write_list(out: Location, tally: _Tally, found: Outcomes, geojson: bool) -> None:
    """Write `x,y,z`, foreground and quality of each tile that passed, as text or as GeoJSON."""
    from rsp.shared.atomic import atomic_text
    from rsp.shared.webmap import footprints

    if geojson and location(out).suffix.lower() not in GEOJSON.suffixes and location(out).suffix:
        _write_features(out, tally, found)
        return
    with atomic_text(out) as file:
        if geojson:
            file.writelines(footprints((one.tile, _note(one)) for one in tally.over(found)))
        else:
            for one in tally.over(found):
                tile = one.tile
                file.write(f"{tile.x},{tile.y},{tile.z}\t\t{one.fg:.1f}\t\t{one.qod:.1f}\n")
        tally.check()


def _write_features(out: Location, tally: _Tally, found: Outcomes) -> None:
    """Write the outline of each tile that passed, with its scores, in the format of a suffix."""
    import numpy as np
    import shapely

    from rsp.shared.features import feature_writer
    from rsp.shared.tiles import bounds_lonlat

    passed = tally.over(found)
    with feature_writer(out, schema={"x": int, "y": int, "z": int, "fg": float, "qod": float}) as writer:
        while some := list(islice(passed, BATCH)):
            bounds = np.array([bounds_lonlat(one.tile) for one in some])
            properties = [{**one.tile._asdict(), **_note(one)} for one in some]
            writer.write_batch(np.asarray(shapely.box(*bounds.T)), properties)
        tally.check()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp compare`."""
    add_out(parser, "where to write: a tile set, or a file with --mode list")
    parser.add_argument(
        "--mode", choices=("side", "stack", "list"), default="side",
        help="side by side, the mean of all, or one line per tile (default: side)",
    )  # fmt: skip
    parser.add_argument("--images", type=location, nargs="+", metavar="TILES", help="tile sets to show, in order")
    parser.add_argument("--labels", type=location, metavar="TILES", help="labels, to score masks against")
    parser.add_argument("--masks", type=location, metavar="TILES", help="masks, to score against labels")
    add_config(parser)
    parser.add_argument("--cover", type=location, help="compare only the tiles of this cover")
    group = parser.add_argument_group("Filters (require --labels and --masks)")
    for name, default, text in (
        ("minimum_fg", 0, "lowest percentage of foreground"),
        ("maximum_fg", 100, "highest percentage of foreground"),
        ("minimum_qod", 0, "lowest quality of data"),
        ("maximum_qod", 100, "highest quality of data"),
    ):
        group.add_argument(
            f"--{name}", type=bounded(float, 0, 100), default=default, metavar="0..100",
            help=f"{text} (default: {default})",
        )  # fmt: skip
    parser.add_argument("--vertical", action="store_true", help="one below the other, with --mode side")
    parser.add_argument(
        "--geojson",
        action="store_true",
        help="with --mode list, write features: GeoJSON, or as the suffix says (.geojsonl, .fgb, .gpkg, .parquet)",
    )
    parser.add_argument(
        "--format", dest="tile_format", default="webp", help="format of the pictures (default: webp)"
    )
    add_workers(parser)
    parser.add_argument("--resume", action="store_true", help="keep existing pictures")
    add_web_ui(parser)


def resolve(args: argparse.Namespace) -> None:
    """Take the last of `--images` as the output where it can be nothing else."""
    # `--images a b OUT`: argparse gives OUT to the flag. A tile set that exists may be meant as an image, and
    # writing into it would spoil it.
    if args.out is None and args.mode != "list" and len(args.images or []) > 1:
        *images, last = args.images
        if exists(last):
            raise UsageError(
                f"`out` is missing: {last} exists and follows --images, so it is read as one of the images. To "
                f"write to it, give --out {last}; else add the output as --out DIR"
            )
        args.images, args.out = images, last
    require(args, "out")
