"""The tiles that features cover."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import shapely

from rsp.components.cover.runs import Gathered, runs_of
from rsp.shared.covers import Cover
from rsp.shared.credentials import masked
from rsp.shared.crs import parse_crs
from rsp.shared.features import expand, project, read_batches, read_crs
from rsp.shared.mercator import HALF


def cover_features(
    sources: Iterable[str], zoom: int, crs: str | None, max_tiles: int, layer: str | None = None
) -> Cover:
    """Return the tiles that the features of files meet.

    Args:
        sources: Paths, addresses in S3, glob patterns of either, and URLs.
        zoom: Zoom of the tiles.
        crs: The CRS of all files, whatever they say.
        max_tiles: How many tiles there may be.
        layer: The layer of the files, where they have several.

    Raises:
        FeatureError: a file that cannot be read, or coordinates that cannot be meant.
        UsageError: too many tiles.
    """
    given = None if crs is None else parse_crs(crs)
    paths = dict.fromkeys(path for source in sources for path in expand(source))
    what = f"{masked(', '.join(map(str, sources)))} at zoom {zoom}"
    gathered = Gathered(max_tiles, what)
    for path in paths:
        epsg = read_crs(path, layer) if given is None else given
        for batch in read_batches(path, layer=layer):
            there = ~shapely.is_missing(batch.geometries)
            numbers = batch.numbers[there]
            mercator = project(
                batch.geometries[there],
                epsg,
                lambda nth, path=path, numbers=numbers: f"{path}: feature {numbers[nth]}",  # type: ignore[misc]
            )
            for runs in runs_of(in_tiles(mercator, zoom), zoom, max_tiles, what):
                gathered.add(runs)
    return Cover({zoom: gathered.keys()})


def in_tiles(mercator: npt.NDArray[np.object_], zoom: int) -> npt.NDArray[np.object_]:
    """Return geometries in metres of EPSG:3857 in units of tiles, y down."""
    found: npt.NDArray[np.object_] = shapely.transform(
        mercator, lambda xy: (xy * (1, -1) + HALF) * ((1 << zoom) / (2 * HALF))
    )
    return found
