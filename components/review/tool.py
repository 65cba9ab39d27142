"""Review what `rsp changes` found, on a page, and correct the map by what was decided.

rsp review --changes changes.geojson --mapped osm.geojson --images images --masks masks review
rsp review --changes changes.geojson --images images_2020 images_2025 --embed 20 review.html
rsp review --changes changes.geojson --mapped osm.geojson --decisions decisions.json --corrected map.geojson
rsp review --changes changes.geojson --decisions decisions.json --doubtful doubtful.csv --zoom 18
rsp review --changes changes.geojson --mapped osm.geojson --accept_worst 15 --corrected map.geojson
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsp.shared.arguments import add_out, bounded, tiles_at
from rsp.shared.claims import COVER, FEATURES, Form, Output, check_paths
from rsp.shared.errors import UsageError
from rsp.shared.locations import Location, exists, location
from rsp.shared.report import Result
from rsp.shared.tiles import MAX_ZOOM

if TYPE_CHECKING:
    from rsp.components.review.layers import Set

# The zoom of covers where nothing says another.
DEFAULT_ZOOM = 18
PAGE = Form("a page", (".html", ".htm"), folder=True)
# Megabytes of tiles that a page may hold: browsers read it as a whole.
MAX_EMBED = 500.0


@dataclass(kw_only=True)
class ReviewResult(Result):
    """What a review has decided, and what became of the map.

    Attributes:
        objects: How many objects the changes have.
        suspects: How many of them the page shows.
        accept: How many of them are accepted.
        doubt: How many are in doubt.
        reject: How many are rejected.
        undecided: How many nobody decided on.
        partial: How many accepted ones leave the map as it is, since the border of the area cuts them.
        added: How many features the map got.
        replaced: How many have another shape.
        removed: How many were taken away.
        kept: How many are as they were.
        tiles: How many tiles the cover has.
    """

    objects: int
    suspects: int = 0
    accept: int = 0
    doubt: int = 0
    reject: int = 0
    undecided: int = 0
    partial: int = 0
    added: int = 0
    replaced: int = 0
    removed: int = 0
    kept: int = 0
    tiles: int = 0


def review(
    out: Location | None = None,
    *,
    changes: Location | str,
    mapped: Location | str | None = None,
    crs: str | None = None,
    images: Sequence[Location] | None = None,
    labels: Location | None = None,
    masks: Location | None = None,
    worst: float = 15.0,
    embed: float | None = None,
    title: str = "Review",
    attribution: Sequence[str] | None = None,
    web_ui_template: Location | None = None,
    decisions: Location | None = None,
    accept_worst: float | None = None,
    corrected: Location | None = None,
    accepted: Location | None = None,
    doubtful: Location | None = None,
    zoom: int | None = None,
) -> ReviewResult:
    """Make a page to review what `rsp changes` found, and correct a map by what was decided.

    See docs/review.md for what it means to accept, doubt or reject an object of each status.

    Args:
        out: Where the page goes: an HTML file, or a folder; None for no page.
        changes: What `rsp changes` has written.
        mapped: The features of the map that it compared.
        crs: The CRS of `mapped`, as EPSG:2154, whatever the file says.
        images: Tile sets of imagery to show; of several, two can be swiped.
        labels: Tile set of labels to show.
        masks: Tile set of masks to show.
        worst: Which share of the objects the page shows, in percent: those of the highest scores.
        embed: Megabytes of tiles that the page holds itself, those of the worst objects first; None where it is
            to find the tiles in their places.
        title: Heading of the page.
        attribution: Whose the imagery and the map are, beside what tile sets and features say; may hold links.
        web_ui_template: Template of the page, in place of ours.
        decisions: What was decided, as the page saves it; a page begins with it.
        accept_worst: Accept this share of the objects, the worst, in percent; decisions come before.
        corrected: Where the map goes, corrected, in degrees; the suffix says in which format.
        accepted: Where those accepted objects go that are real, for `rasterize --append`.
        doubtful: Where a cover of the tiles of doubtful objects goes.
        zoom: Of that cover, and of the one that the page saves; without it that of the tile sets.

    Raises:
        UsageError: the arguments do not fit together, or the decisions were made on other changes.
        FeatureError: features that cannot be read, or that `rsp changes` has not written.
        TileSetError: a tile set that cannot be read.
    """
    from rsp.components.review.decisions import accept_worst as worst_of
    from rsp.components.review.decisions import apply_decisions, read_decisions, tiles_of
    from rsp.components.review.layers import sets_of
    from rsp.components.review.suspects import read_map, read_suspects
    from rsp.shared.attribution import joined
    from rsp.shared.crs import parse_crs
    from rsp.shared.features import feature_writer
    from rsp.shared.owners import of_features
    from rsp.shared.tiles import write_cover

    places = [Output(place, FEATURES) for place in (corrected, accepted) if place is not None]
    places += [Output(doubtful, COVER)] if doubtful is not None else []
    sets = sets_of(images or (), labels, masks)
    if places and decisions is None and accept_worst is None:
        raise UsageError("nothing is decided: give --decisions, or --accept_worst")
    places += [Output(out, PAGE)] if out is not None else []
    if not places:
        raise UsageError("nothing to write: give a place for the page, --corrected, --accepted or --doubtful")
    if corrected is not None and mapped is None:
        raise UsageError("--corrected needs --mapped, the map to correct")
    for name, value, high in (
        ("accept_worst", accept_worst, 100), ("worst", worst, 100), ("zoom", zoom, MAX_ZOOM),
        ("embed", embed, MAX_EMBED),
    ):  # fmt: skip
        if value is not None and not 0 <= value <= high:
            raise UsageError(f"--{name} is from 0 to {high:g}, got {value:g}")
    reads = [changes, mapped, decisions, web_ui_template, *(one.path for one in sets)]
    check_paths(places, reads)
    if zoom is None and sets:
        zoom = _zoom(sets)
    if doubtful is not None and zoom is None:
        raise UsageError("--doubtful needs --zoom, that of the tiles of the labels")
    suspects = read_suspects(changes)
    decided = {} if accept_worst is None else worst_of(suspects, accept_worst)
    decided |= {} if decisions is None else read_decisions(decisions, suspects)
    skipped: Counter[str] = Counter()
    features = None
    if mapped is not None:
        features = read_map(mapped, None if crs is None else parse_crs(crs), skipped)
    for reason, count in skipped.items():
        print(f"review: skipped: {count:,} features of --mapped {mapped}: {reason}", file=sys.stderr)
    applied = apply_decisions(suspects, decided, features)
    owners = joined([None if mapped is None else of_features(mapped), of_features(changes)])
    for place, found in ((corrected, applied.corrected), (accepted, applied.accepted)):
        if place is not None:
            with feature_writer(location(place), attribution=owners) as writer:
                for feature in found:
                    writer.write(feature.geometry, feature.properties)
    counts = Counter(decided.values())
    result = ReviewResult(
        objects=len(suspects.objects), accept=counts["accept"], doubt=counts["doubt"], reject=counts["reject"],
        undecided=len(suspects.objects) - len(decided), partial=applied.partial, added=applied.added,
        replaced=applied.replaced, removed=applied.removed, kept=applied.kept,
    )  # fmt: skip
    if doubtful is not None and zoom is not None:
        known = {each.number: each for each in features or ()}
        result.tiles = write_cover(doubtful, tiles_of(applied.doubtful, zoom, known))
    if out is not None:
        from rsp.components.review.page import Shown, write_page

        some = suspects.worst(worst)
        result.suspects = len(some)
        shown = Shown(
            title=title, changes=str(changes).rsplit("/", 1)[-1], suspects=suspects, some=some, features=features,
            decisions=decided, sets=sets, zoom=DEFAULT_ZOOM if zoom is None else zoom,
            attribution=[*(attribution or ()), *filter(None, [owners])],
            embed=None if embed is None else int(embed * 1e6),
        )  # fmt: skip
        write_page(location(out), shown, web_ui_template)
    return result


def _zoom(sets: Sequence[Set]) -> int:
    """Return the highest zoom of the last of some tile sets: masks come last, then labels."""
    from rsp.shared.tileset import open_reader

    with open_reader(sets[-1].path) as reader:
        return reader.cover().zooms[-1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp review`."""
    add_out(parser, "where the page goes: FILE.html, or a folder (default: no page)")
    parser.add_argument(
        "--changes", type=tiles_at, required=True, metavar="FEATURES", help="what `rsp changes` has written"
    )
    parser.add_argument(
        "--mapped", type=tiles_at, metavar="FEATURES", help="the map, as `rsp changes` was given it"
    )
    parser.add_argument(
        "--crs", metavar="EPSG:CODE", help="CRS of --mapped, as EPSG:2154 (default: what the file says)"
    )
    page = parser.add_argument_group("Page")
    page.add_argument(
        "--images",
        type=location,
        nargs="+",
        metavar="TILES",
        help="imagery to show; of several, two can be swiped",
    )
    page.add_argument("--labels", type=location, metavar="TILES", help="labels to show")
    page.add_argument("--masks", type=location, metavar="TILES", help="masks to show")
    page.add_argument(
        "--worst", type=bounded(float, 0, 100), default=15.0, metavar="PERCENT",
        help="which share of the objects it shows, the worst (default: 15)",
    )  # fmt: skip
    page.add_argument(
        "--embed", type=bounded(float, 0, MAX_EMBED), metavar="MB",
        help="put so many megabytes of tiles into the page, those of the worst objects first (default: none; the "
        "page finds the tiles in their places)",
    )  # fmt: skip
    page.add_argument("--title", default="Review", metavar="TEXT", help="its heading (default: Review)")
    page.add_argument(
        "--attribution", action="append", metavar="TEXT",
        help="whose the imagery or the map is, beside what tile sets and features say; may be given again",
    )  # fmt: skip
    page.add_argument(
        "--web_ui_template", type=location, metavar="FILE", help="your own HTML template, in place of ours"
    )
    group = parser.add_argument_group("Decisions")
    group.add_argument(
        "--decisions", type=location, metavar="FILE", help="what was decided: decisions.json of the page"
    )
    group.add_argument(
        "--accept_worst", type=bounded(float, 0, 100), metavar="PERCENT",
        help="accept this share of the objects, the worst ones; what --decisions says comes before",
    )  # fmt: skip
    group.add_argument(
        "--corrected", type=location, metavar="FILE", help="write the map, corrected by what was accepted"
    )
    group.add_argument(
        "--accepted", type=location, metavar="FILE",
        help="write the accepted objects that are real, for `rsp rasterize --append`",
    )  # fmt: skip
    group.add_argument(
        "--doubtful", type=location, metavar="FILE", help="write the tiles of doubtful objects as a cover"
    )
    group.add_argument(
        "--zoom",
        type=bounded(int, 0, MAX_ZOOM),
        metavar="Z",
        help="zoom of that cover (default: that of the tiles)",
    )


def resolve(args: argparse.Namespace) -> None:
    """Take the last of `--images` as the page where it can be nothing else: `--images a b PAGE`."""
    if args.out is None and len(args.images or []) > 1:
        *images, last = args.images
        if not exists(last) or last.suffix.lower() in PAGE.suffixes:
            args.images, args.out = images, last
