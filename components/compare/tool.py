"""Compare tile sets: pictures side by side, stacked or outlined, and how well masks agree with labels.

rsp compare --mode outline --images images --labels labels --masks masks outlines
rsp compare --mode stack --images images labels masks --labels labels --masks masks compare
rsp compare --mode side --images images labels masks --labels labels --masks masks --maximum_qod 80 side
rsp compare --mode list --labels labels --masks masks --maximum_qod 80 --minimum_fg 5 --geojson tiles.json
rsp compare --mode list --labels labels --masks masks --max building recall 0.5 --metrics measures.csv missed.txt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rsp.shared.arguments import add_config, add_out, add_web_ui, add_workers, bounded, require
from rsp.shared.claims import FAILED, FEATURES, TABLE, Output, check_paths, tiles_output
from rsp.shared.errors import CoverError, UsageError
from rsp.shared.locations import Location, exists, location
from rsp.shared.report import Result, note_failures

if TYPE_CHECKING:
    from rsp.components.compare.bounds import Limit
    from rsp.shared.config import ClassDef
    from rsp.shared.tiles import Tile

Mode = Literal["side", "stack", "outline", "list"]


@dataclass(kw_only=True)
class CompareResult(Result):
    """What `compare` did, and what it found where labels and masks were given.

    Attributes:
        tiles: How many tiles were compared.
        written: How many passed the filters and are in the output.
        iou: Mean IoU of the classes without the background.
        f1: Mean F1 of the same.
        precision: Likewise.
        recall: Likewise.
        miou: Mean IoU of the classes, background included.
        mcc: Matthews correlation coefficient.
        qod: Mean quality of data of the tiles, 0 to 100.
        classes: IoU of each class, by title; NaN for one to ignore.
        by_class: Pixels and measures of each class over all tiles, by title, without those to ignore.
        confusion: Pixels of all tiles; rows are the classes of the labels, columns those of the masks.
        not_compared: How many tiles are in some of the tile sets, but not in all of them.
        lacking: Of each tile set that lacks some of those, how many (`tiles`), and the `first` of them.
    """

    tiles: int
    written: int
    iou: float | None = None
    f1: float | None = None
    precision: float | None = None
    recall: float | None = None
    miou: float | None = None
    mcc: float | None = None
    qod: float | None = None
    classes: dict[str, float] = field(default_factory=dict)
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    not_compared: int = 0
    lacking: dict[str, dict[str, Any]] = field(default_factory=dict)

    def measures(self) -> dict[str, float]:
        """Return the measures by name, without those that are undefined (0/0)."""
        names = "iou", "f1", "precision", "recall", "miou", "mcc", "qod"
        named: dict[str, float | None] = {name: getattr(self, name) for name in names}
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
    minimum: Sequence[Limit] | None = None,
    maximum: Sequence[Limit] | None = None,
    metrics: Sequence[Location] | None = None,
    captions: bool = True,
    vertical: bool = False,
    geojson: bool = False,
    tile_format: str = "webp",
    workers: int | None = None,
    resume: bool = False,
    web_ui_base_url: str = "./",
    web_ui_template: Location | None = None,
    web_ui: bool = True,
) -> CompareResult:
    """Compare tile sets, tile by tile; the tiles that not all of them have are counted, and said.

    Args:
        out: Where to write: a tile set, or a file in mode `list`.
        images: The tile sets to show, in this order (`side` and `stack`), or the photographs (`outline`).
        mode: `side` puts the images beside each other; `stack` takes their mean (labels in the complementary
            palette, masks in the plain one: agreement is grey); `outline` draws labels and masks over the
            photographs, see `rsp.components.compare.outline`; `list` writes a line a tile, the worst first.
        labels: Labels; together with masks they are scored.
        masks: Masks, as `predict` makes them.
        config: Configuration, read for its classes where labels and masks are scored. Not needed where one of
            them tells the classes, as those of `rasterize` and `predict` do.
        cover: Compare these tiles only.
        minimum_fg: Lowest share of foreground that passes, in percent: the larger of label and mask.
        maximum_fg: Highest.
        minimum_qod: Lowest quality of data that passes, 0 to 100.
        maximum_qod: Highest.
        minimum: Class, metric and lowest value that passes, as `("building", "iou", 0.5)`; all have to be passed.
            The metrics, of a class against all others on a tile, are those of `rsp.components.compare.bounds`. A
            tile on which a metric is 0/0 does not pass.
        maximum: The highest that pass, likewise.
        metrics: Where measures go: `.csv` and `.parquet` get those of each tile that passed and each class, the
            worst tiles first, `.json` those of all tiles; a folder gets all of them, and those of each class.
        captions: Write the names of the tile sets above the pictures, in mode `side`.
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
        ConfigError: there is no such class.
        TileSetError: the tile sets have no tile in common or lack one of the cover, or none could be compared.
        CoverError: no tile passes the filters, or there are tiles of several zooms.
    """
    from rsp.components.compare.bounds import bounds_of
    from rsp.components.compare.listing import list_writer, note
    from rsp.components.compare.measures import MEASURES, tables
    from rsp.components.compare.naming import captions_of, photographs
    from rsp.components.compare.records import Records
    from rsp.components.compare.tally import Tally
    from rsp.components.compare.work import Job, compare_tiles
    from rsp.shared.attribution import note as note_owners
    from rsp.shared.attribution import of_tiles
    from rsp.shared.classes import find_classes, ignored_classes
    from rsp.shared.progress import progress
    from rsp.shared.tileset import open_writer
    from rsp.shared.tileset import tile_format as format_name
    from rsp.shared.tileset.common import Together, common_tiles, tiles_together

    filtered = (minimum_fg, maximum_fg, minimum_qod, maximum_qod) != (0, 100, 0, 100) or minimum or maximum
    scored = labels is not None and masks is not None
    for asked, what in (
        (mode in ("list", "outline"), f"--mode {mode}"), (filtered, "a filter"), (metrics, "--metrics"),
    ):  # fmt: skip
        if asked and not scored:
            raise UsageError(f"{what} needs --labels and --masks")
    if mode != "list" and not images:
        raise UsageError(f"--mode {mode} needs --images")
    for given, flag, of in (
        (vertical, "vertical", "side"), (not captions, "no_captions", "side"), (geojson, "geojson", "list"),
    ):  # fmt: skip
        if given and mode != of:
            raise UsageError(f"--{flag} goes with --mode {of}")
    geojson = geojson or (mode == "list" and location(out).suffix.lower() in FEATURES.suffixes)
    if mode == "list":
        target = Output(out, FEATURES if geojson else TABLE, (FAILED,))
    else:
        target = tiles_output(out, web_ui=web_ui)
    measured = [Output(each, MEASURES) for each in metrics or ()]
    check_paths([target, *measured], [*(images or []), labels, masks, config, web_ui_template], cover=cover)
    classes: tuple[ClassDef, ...] = ()
    if labels is not None and masks is not None:
        classes = find_classes(config, [labels, masks])
    shown = tuple(location(path) for path in images or ()) if mode != "list" else ()
    if mode == "outline":
        shown = photographs(shown, labels, masks)
    job = Job(
        mode=mode,
        images=shown,
        labels=labels if scored else None,
        masks=masks if scored else None,
        classes=len(classes),
        ignored=ignored_classes(classes),
        minimum=(minimum_fg, minimum_qod),
        maximum=(maximum_fg, maximum_qod),
        bounds=bounds_of(minimum, maximum, classes),
        vertical=vertical,
        tile_format=format_name(tile_format),
        definitions=classes if mode == "outline" else (),
        captions=captions_of(shown, labels, masks) if captions and mode == "side" else (),
    )
    together = tiles_together(job.paths) if cover is None else Together(common_tiles(job.paths, cover), {})
    tiles = together.tiles
    tally = Tally(classes, together)
    kept: dict[Tile, dict[str, float]] = {}  # the tiles that passed, for the web page
    with Records(len(classes) if metrics else 0) as records, tables(metrics or (), classes) as table:
        if mode == "list":
            with list_writer(out, features=geojson) as write:
                found = compare_tiles(job, ((tile, False) for tile in tiles), len(tiles), workers)
                for one in tally.over(progress(found, "compare", len(tiles))):
                    records.add(one)
                tally.check()
                write(records.worst_first())
        else:
            with open_writer(out, job.tile_format, resume=resume) as writer:
                note_owners(writer, of_tiles(*job.paths), keep=resume)
                items = ((tile, tile not in writer.done) for tile in tiles)
                found = compare_tiles(job, items, len(tiles), workers)
                for one in tally.over(progress(found, "compare", len(tiles))):
                    if one.picture is not None:
                        writer.write(one.tile, one.picture)
                    if scored:
                        records.add(one)
                    else:
                        kept[one.tile] = {}
                tally.check()
            if not tally.passed:
                raise CoverError(f"none of the {len(tiles)} tiles passes the filters")
            kept |= {tile: note(fg, qod) for batch in records.worst_first() for tile, fg, qod in batch}
        for batch in records.worst_first() if metrics else ():
            table.add(batch)
        result = tally.result()
        table.finish(tally.counts, result.as_dict())
    note_failures(out, tally.failed)
    if mode != "list" and web_ui:
        from rsp.components.compare.outline import legend
        from rsp.shared.webmap import write_webmap

        write_webmap(
            out, list(kept), job.tile_format, base_url=web_ui_base_url, template=web_ui_template,
            page="compare" if mode == "side" else "leaflet", notes=kept if scored else None,
            legend=legend(classes) if mode == "outline" else (),
        )  # fmt: skip
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp compare`."""
    add_out(parser, "where to write: a tile set, or a file with --mode list")
    parser.add_argument(
        "--mode", choices=("side", "stack", "outline", "list"), default="side",
        help="side by side, the mean of all, labels and masks as outlines on the image, or one line per tile, the "
        "worst first (default: side)",
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
    for name, dest, text in (
        ("--min", "minimum", "lowest value of a metric of a class, as --min building iou 0.5; may be repeated"),
        ("--max", "maximum", "highest value, likewise; metrics: iou, precision, recall, f1, mcc, fg, qod"),
    ):
        group.add_argument(
            name, dest=dest, nargs=3, action="append", metavar=("CLASS", "METRIC", "VALUE"), help=text
        )
    parser.add_argument(
        "--metrics", type=location, action="append", metavar="FILE",
        help="write measures: of each tile and class (.csv, .parquet), of all tiles (.json), or all of these (a "
        "folder); requires --labels and --masks; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--no_captions", dest="captions", action="store_false", default=True,
        help="no names above the pictures, with --mode side",
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
