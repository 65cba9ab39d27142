"""Decide on what `rsp changes` found, and correct the map by it.

rsp review --changes changes.geojson --mapped osm.geojson --decisions decisions.json --corrected map.geojson
rsp review --changes changes.geojson --decisions decisions.json --doubtful doubtful.csv --zoom 18
rsp review --changes changes.geojson --mapped osm.geojson --accept_worst 15 --corrected map.geojson
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass

from rsp.shared.arguments import bounded, tiles_at
from rsp.shared.claims import COVER, FEATURES, Output, check_paths
from rsp.shared.errors import UsageError
from rsp.shared.locations import Location, location
from rsp.shared.report import Result
from rsp.shared.tiles import MAX_ZOOM


@dataclass(kw_only=True)
class ReviewResult(Result):
    """What a review has decided, and what became of the map.

    Attributes:
        objects: How many objects the changes have.
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
    *,
    changes: Location | str,
    mapped: Location | str | None = None,
    crs: str | None = None,
    decisions: Location | None = None,
    accept_worst: float | None = None,
    corrected: Location | None = None,
    accepted: Location | None = None,
    doubtful: Location | None = None,
    zoom: int | None = None,
) -> ReviewResult:
    """Correct a map by decisions on what `rsp changes` found.

    See docs/review.md for what it means to accept, doubt or reject an object of each status.

    Args:
        changes: What `rsp changes` has written.
        mapped: The features of the map that it compared.
        crs: The CRS of `mapped`, as EPSG:2154, whatever the file says.
        decisions: What was decided, as the page saves it.
        accept_worst: Accept this share of the objects, the worst, in percent; decisions come before.
        corrected: Where the map goes, corrected, in degrees; the suffix says in which format.
        accepted: Where those accepted objects go that are real, for `rasterize --append`.
        doubtful: Where a cover of the tiles of doubtful objects goes.
        zoom: Of that cover.

    Raises:
        UsageError: the arguments do not fit together, or the decisions were made on other changes.
        FeatureError: features that cannot be read, or that `rsp changes` has not written.
    """
    from rsp.components.review.decisions import accept_worst as worst_of
    from rsp.components.review.decisions import apply_decisions, read_decisions, tiles_of
    from rsp.components.review.suspects import read_map, read_suspects
    from rsp.shared.crs import parse_crs
    from rsp.shared.features import feature_writer
    from rsp.shared.tiles import write_cover

    places = [Output(place, FEATURES) for place in (corrected, accepted) if place is not None]
    places += [Output(doubtful, COVER)] if doubtful is not None else []
    if not places:
        raise UsageError("nothing to write: give --corrected, --accepted or --doubtful")
    if decisions is None and accept_worst is None:
        raise UsageError("nothing is decided: give --decisions, or --accept_worst")
    if corrected is not None and mapped is None:
        raise UsageError("--corrected needs --mapped, the map to correct")
    if doubtful is not None and zoom is None:
        raise UsageError("--doubtful needs --zoom, that of the tiles of the labels")
    if accept_worst is not None and not 0 <= accept_worst <= 100:
        raise UsageError(f"--accept_worst is from 0 to 100, got {accept_worst:g}")
    if zoom is not None and not 0 <= zoom <= MAX_ZOOM:
        raise UsageError(f"--zoom is from 0 to {MAX_ZOOM}, got {zoom}")
    check_paths(places, [changes, mapped, decisions])
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
    for place, found in ((corrected, applied.corrected), (accepted, applied.accepted)):
        if place is not None:
            with feature_writer(location(place)) as writer:
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
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp review`."""
    parser.add_argument(
        "--changes", type=tiles_at, required=True, metavar="FEATURES", help="what `rsp changes` has written"
    )
    parser.add_argument(
        "--mapped", type=tiles_at, metavar="FEATURES", help="the map, as `rsp changes` was given it"
    )
    parser.add_argument(
        "--crs", metavar="EPSG:CODE", help="CRS of --mapped, as EPSG:2154 (default: what the file says)"
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
    group.add_argument("--zoom", type=bounded(int, 0, MAX_ZOOM), metavar="Z", help="zoom of that cover")
