"""Make a tile cover, in CSV (x,y,z), from features, a bounding box or a tile set.

rsp cover --type bbox 4.8,45.7,4.83,45.73 --zoom 18 cover
rsp cover --type geojson buildings.json --zoom 18 cover
rsp cover --type dir images --splits 70,30 training/cover validation/cover
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Literal

from rsp.shared.arguments import add_out, int_list, require
from rsp.shared.claims import COVER, Output, check_paths
from rsp.shared.errors import CoverError, UsageError
from rsp.shared.locations import Location, location
from rsp.shared.report import Result
from rsp.shared.tiles import MAX_TILES, MAX_ZOOM, Tile, split_cover, write_cover

Kind = Literal["geojson", "bbox", "dir"]


@dataclass(kw_only=True)
class CoverResult(Result):
    """What `cover` did.

    Attributes:
        tiles: How many tiles the cover has.
        parts: How many of them went to each output.
    """

    tiles: int
    parts: list[int]


def cover(
    source: str,
    out: list[Location],
    *,
    kind: Kind = "geojson",
    zoom: int | None = None,
    splits: list[int] | None = None,
    seed: int = 0,
    block: int = 1,
    stable: bool = False,
    crs: str | None = None,
    max_tiles: int = MAX_TILES,
) -> CoverResult:
    """Write the tiles that cover something, sorted, each once.

    Args:
        source: A GeoJSON path, an address in S3 or a glob pattern of either; or
            `west,south,east,north[,EPSG:code]` (degrees unless a code is given; west beyond east crosses the
            antimeridian), or a tile set.
        out: Where the covers go: one path, or as many as there are splits.
        kind: What `source` is.
        zoom: The zoom of the cover, needed for `geojson` and `bbox`.
        splits: Percentages that sum to 100, one for each output.
        seed: Seed of the shuffle before a split.
        block: Side in tiles of the squares that a split keeps together.
        stable: Let a hash of its place decide where a block goes, so that tiles that come later move none.
        crs: The CRS of the features or the bounding box, as EPSG:2154, whatever the file says.
        max_tiles: Refuse to make a cover of more tiles.

    Raises:
        UsageError: the arguments do not fit together, or the cover would have too many tiles.
        FeatureError: features that cannot be read, or coordinates that cannot be meant; says which, and why.
        CoverError: nothing is covered.
    """
    if splits is None and len(out) != 1:
        raise UsageError(f"one output path without --splits, got {len(out)}")
    if splits is not None and len(splits) != len(out):
        raise UsageError(f"--splits has {len(splits)} parts for {len(out)} output paths")
    if kind not in ("geojson", "bbox", "dir"):
        raise UsageError(f"--type is geojson, bbox or dir, got {kind!r}")
    if kind != "dir" and zoom is None:
        raise UsageError(f"--zoom is needed to cover a {kind}")
    if zoom is not None and not 0 <= zoom <= MAX_ZOOM:
        raise UsageError(f"--zoom must be from 0 to {MAX_ZOOM}, got {zoom}")
    if stable and splits is None:
        raise UsageError("--stable says how to split; give --splits, too")
    check_paths([Output(path, COVER) for path in out], [source] if kind != "bbox" else [])
    if kind == "dir":
        if crs is not None:
            raise UsageError("--crs goes with features and bounding boxes; tiles have one CRS")
        tiles = _cover_tileset(source, zoom)
    else:
        from rsp.components.cover.area import cover_bbox, cover_features

        assert zoom is not None
        area = cover_bbox if kind == "bbox" else cover_features
        tiles = area(source, zoom, crs, max_tiles)
    if not tiles:
        raise CoverError(f"{source} covers no tile")
    parts = split_cover(tiles, splits, seed=seed, block=block, stable=stable) if splits else [tiles]
    for path, part in zip(out, parts, strict=True):
        if not part:
            advice = "; try another --seed, smaller blocks, or --splits without --stable" if stable else ""
            raise CoverError(f"{len(tiles)} tiles are too few to split: {path} would be empty{advice}")
    for path, part in zip(out, parts, strict=True):
        write_cover(path, part)
    return CoverResult(tiles=len(tiles), parts=[len(part) for part in parts])


def _cover_tileset(source: str, zoom: int | None) -> list[Tile]:
    from rsp.shared.tileset import open_reader

    with open_reader(source) as reader:
        tiles = reader.tiles()
    found = tiles if zoom is None else [tile for tile in tiles if tile.z == zoom]
    zooms = sorted({tile.z for tile in found})
    if len(zooms) > 1:
        print(
            f"cover: warning: {source} has tiles of the zooms {', '.join(map(str, zooms))}, and so has the cover; "
            "most tools need a single one; choose it with --zoom",
            file=sys.stderr,
        )
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp cover`."""
    parser.add_argument(
        "source", nargs="?", default=argparse.SUPPRESS, metavar="input",
        help="GeoJSON file (or glob pattern), bounding box, or tile set, as --type says; files and tile sets also "
        "as s3://bucket/key",
    )  # fmt: skip
    add_out(parser, "where to write the cover, path or s3://bucket/key; one for each of the splits", several=True)
    parser.add_argument(
        "--type", dest="kind", choices=("geojson", "bbox", "dir"), default="geojson",
        help="what the input is (default: geojson)",
    )  # fmt: skip
    for kind, metavar in (("geojson", "FILE"), ("bbox", "W,S,E,N"), ("dir", "TILES")):
        parser.add_argument(f"--{kind}", metavar=metavar, help=f"the input, and `--type {kind}`")
    parser.add_argument("--zoom", type=int, help="zoom of the cover; needed for geojson and bbox")
    parser.add_argument(
        "--crs", metavar="EPSG:CODE", help="CRS of the input, as EPSG:2154 (default: what it says, else degrees)"
    )
    parser.add_argument(
        "--max_tiles", type=int, default=MAX_TILES, metavar="N",
        help=f"refuse to make more tiles than this (default: {MAX_TILES})",
    )  # fmt: skip
    parser.add_argument(
        "--splits", type=int_list, metavar="A,B", help="percentages that add up to 100: 70,30 or 70/30"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    parser.add_argument(
        "--block", type=int, default=1, metavar="N",
        help="split by blocks of N x N tiles, since neighbouring tiles look alike (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--stable", action="store_true",
        help="split by a hash of each block's place: tiles that come later move none, shares hold on average",
    )  # fmt: skip


def resolve(args: argparse.Namespace) -> None:
    """Bring `--bbox B out`, `--bbox B --out out` and `--type bbox B out` to one form."""
    source = getattr(args, "source", None)
    for kind in ("geojson", "bbox", "dir"):
        value = getattr(args, kind)
        if value is None:
            continue
        # The first positional is an output then.
        positionals = [location(source)] if source is not None else []
        args.kind, source, args.out = kind, value, [*positionals, *(args.out or [])] or None
    args.source = source.strip() if source else None
    if args.source is None:
        raise UsageError("the input is missing; give it as an argument, or as --geojson, --bbox or --dir")
    require(args, "out")
