"""What covers are made of: features, boxes, rasters, tile sets, other covers, and the rows of a database."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import shapely

from rsp.components.cover.runs import Gathered, Runs
from rsp.shared.atomic import temporary_prefix
from rsp.shared.covers import Cover, read_tiles
from rsp.shared.credentials import masked
from rsp.shared.errors import ConfigError, CoverError, RasterError, RspError, UsageError
from rsp.shared.tilekeys import columns
from rsp.shared.tiles import check_budget

if TYPE_CHECKING:
    from rsp.components.cover.tool import Kind

STDIN = "-"
_NAMED = "standard input"


def covered(
    kind: Kind,
    sources: Sequence[str],
    *,
    zoom: int | None,
    crs: str | None,
    pg: str | None,
    max_tiles: int,
    layer: str | None = None,
) -> Cover:
    """Return the tiles that sources cover; see `rsp.components.cover.tool.cover`."""
    if STDIN in sources and kind not in ("sql", "dir", "raster"):
        with _read_stdin() as path:
            kind, read = _as_it_looks(kind, path)
            sources = [each for source in sources for each in (read if source == STDIN else [source])]
            return covered(kind, sources, zoom=zoom, crs=crs, pg=pg, max_tiles=max_tiles, layer=layer)
    if layer is not None and kind != "geojson":
        raise UsageError(f"--layer goes with files of features; a {kind} has no layers")
    if kind in ("dir", "cover"):
        if crs is not None:
            raise UsageError("--crs goes with features and bounding boxes; tiles have one CRS")
        return _of_tiles(kind, sources, zoom, max_tiles)
    if zoom is None:
        raise UsageError(f"--zoom is needed to cover a {kind}")
    if kind == "geojson":
        from rsp.components.cover.area import cover_features

        return cover_features(sources, zoom, crs, max_tiles, layer)
    if kind == "bbox":
        from rsp.components.cover.boxes import cover_boxes

        return cover_boxes(sources, zoom, crs, max_tiles)
    if crs is not None:
        raise UsageError(f"--crs goes with features and bounding boxes; a {kind} says its own")
    if kind == "raster":
        return cover_rasters(sources, zoom, max_tiles)
    return cover_queries(sources, zoom, pg, max_tiles)


@contextmanager
def _read_stdin() -> Iterator[Path]:
    """Yield a file that holds what comes from standard input: readers look at a file more than once."""
    with TemporaryDirectory(prefix=temporary_prefix("cover")) as folder:
        path = Path(folder) / "input.json"
        with path.open("wb") as file:
            copyfileobj(sys.stdin.buffer, file)
        try:
            yield path
        except RspError as error:
            error.args = tuple(
                each.replace(str(path), _NAMED) if isinstance(each, str) else each for each in error.args
            )
            raise


def _as_it_looks(kind: Kind, path: Path) -> tuple[Kind, list[str]]:
    """Return what standard input holds, and its sources: in place of features it may hold tiles or boxes, too.

    Tiles and boxes stand one a line, as `x,y,z` and `[x, y, z]`, or `west,south,east,north` and so on.
    """
    with path.open("rb") as file:
        lines = (line.decode("utf-8-sig", "replace").strip() for line in file)
        first = next((line for line in lines if line), "")
    if kind == "geojson" and first[:1] and first[0] in "[-.0123456789":
        numbers = first.strip("[]").replace(",", " ").split()
        kind = "cover" if len(numbers) == 3 else "bbox"
    if kind != "bbox":
        return kind, [str(path)]
    return kind, [line for line in path.read_text("utf-8-sig", "replace").splitlines() if line.strip()]


def _of_tiles(kind: Kind, sources: Iterable[str], zoom: int | None, max_tiles: int) -> Cover:
    """Return the tiles of tile sets or covers; of another zoom where that is asked for."""
    read: Callable[[str], Cover] = _tiles_in if kind == "dir" else read_tiles
    found = Cover()
    for source in sources:
        found |= read(source)
    named = ", ".join(sources)
    if zoom is None:
        if len(found.zooms) > 1:
            print(
                f"cover: warning: {named} has tiles of the zooms {', '.join(map(str, found.zooms))}, and so has "
                "the cover; most tools need a single one; choose it with --zoom",
                file=sys.stderr,
            )
        return found
    # A tile set that has the zoom is asked for those tiles; a cover stands for the area of all of its tiles.
    if kind == "dir" and zoom in found.zooms:
        return Cover({zoom: found.keys(zoom)})
    return rezoomed(found, zoom, max_tiles, f"{named} at zoom {zoom}")


def _tiles_in(source: str) -> Cover:
    from rsp.shared.tileset import open_reader

    with open_reader(source) as reader:
        return reader.cover()


def rezoomed(cover: Cover, zoom: int, max_tiles: int, what: str) -> Cover:
    """Return the tiles of one zoom that tiles of any zooms lie in or are made of.

    Raises:
        UsageError: there would be more tiles than are allowed.
    """
    gathered = Gathered(max_tiles, what)
    for own in cover.zooms:
        keys = cover.keys(own)
        if own >= zoom:
            x, y = (numbers >> (own - zoom) for numbers in columns(keys))
            keys = x << 32 | y
            gathered.add(Runs(keys, keys))
            continue
        size = 1 << (zoom - own)
        check_budget(len(keys) * size * size, max_tiles, what, at_least=True)
        x, y = (numbers * size for numbers in columns(keys))
        column = (x[:, np.newaxis] + np.arange(size)).ravel() << 32
        top = np.repeat(y, size)
        gathered.add(Runs(column | top, column | (top + size - 1)))
    return Cover({zoom: gathered.keys()})


def cover_rasters(sources: Iterable[str], zoom: int, max_tiles: int) -> Cover:
    """Return the tiles that rasters meet: within their outlines, which may be turned or bent, not their bounds.

    Raises:
        RasterError: a raster that cannot be read, has no georeference, or lies off the tile grid.
        UsageError: too many tiles.
    """
    from rsp.components.cover.footprints import places_of
    from rsp.components.cover.outline import bent
    from rsp.components.cover.runs import runs_of
    from rsp.shared.gdal import RasterEnv
    from rsp.shared.rasters import expand, open_raster

    what = f"{', '.join(sources)} at zoom {zoom}"
    gathered = Gathered(max_tiles, what)
    paths = expand(sources)
    with RasterEnv(paths):
        for path in paths:
            with open_raster(path) as raster:
                place, crs = places_of(raster, path)
                polygon = bent(place, crs, zoom, lambda reason, path=path: RasterError(f"{path} {reason}"))  # type: ignore[misc]
            for runs in runs_of(np.array([polygon], dtype=object), zoom, max_tiles, what):
                gathered.add(runs)
    return Cover({zoom: gathered.keys()})


def cover_queries(sources: Iterable[str], zoom: int, pg: str | None, max_tiles: int) -> Cover:
    """Return the tiles that the geometries of queries to PostGIS meet.

    Raises:
        ConfigError: nothing says how to connect.
        FeatureError: a database or query that does not answer, or coordinates that cannot be meant.
        UsageError: too many tiles.
    """
    from rsp.components.cover.area import in_tiles
    from rsp.components.cover.runs import runs_of
    from rsp.shared.features import project
    from rsp.shared.postgis import Query

    what = f"the query at zoom {zoom}"
    gathered = Gathered(max_tiles, what)
    for select in sources:
        for rows in Query(select, _connection(pg), "--sql").batches():
            some = rows.geometries[~shapely.is_missing(rows.geometries)]
            mercator = project(some, rows.epsg, lambda _: "the query: a geometry")
            for runs in runs_of(in_tiles(mercator, zoom), zoom, max_tiles, what):
                gathered.add(runs)
    return Cover({zoom: gathered.keys()})


def _connection(pg: str | None) -> str:
    """Return how to connect: as `--pg` says, as the configuration does if there is one, or as libpq finds out."""
    from rsp.shared.config import load_config

    if pg is not None:
        if "password" in pg.lower() or ("://" in pg and ":" in pg.split("://")[1].rpartition("@")[0]):
            raise UsageError(
                "--pg holds a password, which others could see in the list of processes: set PGPASSWORD, or write "
                "it to ~/.pgpass"
            )
        return pg
    if any(os.environ.get(name) for name in ("PGHOST", "PGHOSTADDR", "PGDATABASE", "PGSERVICE")):
        return ""
    try:
        found = load_config().pg_dsn
    except ConfigError as error:
        raise ConfigError(
            f"--sql needs a connection: give --pg, or set PGHOST and PGDATABASE ({error})"
        ) from error
    if not found:
        raise ConfigError(
            "--sql needs a connection: give --pg, set PGHOST and PGDATABASE, or set `pg` under [auth] in the "
            "configuration"
        )
    return found


def nothing(sources: Sequence[str]) -> CoverError:
    """Return the error of sources that cover nothing."""
    named = ", ".join(_NAMED if source == STDIN else masked(source) for source in sources)
    return CoverError(f"{named} covers no tile")
