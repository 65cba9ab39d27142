"""The lists of `compare`: of tiles and their scores, and of one of them as a cover to work on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rsp.components.compare.records import Batch
from rsp.shared.claims import GEOJSON
from rsp.shared.locations import Location, location
from rsp.shared.tiles import Tile, write_cover


def note(fg: float, qod: float) -> dict[str, float]:
    """Return the scores of a tile as they are shown."""
    return {"fg": round(fg, 1), "qod": round(qod, 1)}


@contextmanager
def list_writer(out: Location, *, features: bool) -> Iterator[Callable[[Iterator[Batch]], None]]:
    """Open a list, which appears when the block ends well; what is yielded writes tiles and their scores.

    Args:
        out: Where the list goes.
        features: The outlines of the tiles: GeoJSON, or what the suffix says. Else lines of text.
    """
    from rsp.shared.atomic import atomic_text
    from rsp.shared.webmap import footprints

    suffix = location(out).suffix.lower()
    if features and suffix and suffix not in GEOJSON.suffixes:
        with _features(out) as write:
            yield write
        return
    with atomic_text(out) as file:

        def write_text(batches: Iterator[Batch]) -> None:
            rows = (row for batch in batches for row in batch)
            if features:
                file.writelines(footprints((tile, note(fg, qod)) for tile, fg, qod in rows))
            else:
                file.writelines(f"{x},{y},{z}\t\t{fg:.1f}\t\t{qod:.1f}\n" for (x, y, z), fg, qod in rows)

        yield write_text


@contextmanager
def _features(out: Location) -> Iterator[Callable[[Iterator[Batch]], None]]:
    import numpy as np
    import shapely

    from rsp.shared.features import feature_writer
    from rsp.shared.tiles import bounds_lonlat

    with feature_writer(out, schema={"x": int, "y": int, "z": int, "fg": float, "qod": float}) as writer:

        def write(batches: Iterator[Batch]) -> None:
            for batch in batches:
                rows = list(batch)
                bounds = np.array([bounds_lonlat(tile) for tile, _, _ in rows])
                properties = [{**tile._asdict(), **note(fg, qod)} for tile, fg, qod in rows]
                writer.write_batch(np.asarray(shapely.box(*bounds.T)), properties)

        yield write


def cover_of(listing: Path, cover: Path) -> int:
    """Write the tiles of a GeoJSON of `compare --mode list` as a cover, and return how many there are."""
    features = json.loads(listing.read_text("utf-8"))["features"]
    found = (each["properties"] for each in features)
    return write_cover(cover, (Tile(each["x"], each["y"], each["z"]) for each in found))
