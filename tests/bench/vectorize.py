"""Features of masks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely

from rsp.components.vectorize.parts import vectorize_block
from rsp.shared.tiles import write_cover
from rsp.shared.tileset import open_reader, open_writer
from tests.bench.data import write_config, write_roads, write_tilesets
from tests.bench.harness import Growth, Row, rival, rsp


def rows(folder: Path) -> Iterator[Row | Growth]:
    """Yield the rows of `rsp vectorize`."""
    config = write_config(folder)
    ours, theirs = folder / "ours.json", folder / "theirs.json"

    def traced(masks: Path, out: Path) -> list[object]:
        return rsp("vectorize", "--type", "building", "--workers", 1, "--config", config, masks, out)

    def same() -> None:
        mine, other = (
            set(shapely.to_wkt(shapely.normalize(read(path)), rounding_precision=7)) for path in (ours, theirs)
        )
        assert mine == other, f"{len(mine - other)} outlines of {len(mine)} are ours alone"
        assert read(ours).size == read(theirs).size, "one has a feature twice"

    def alike() -> None:
        mine, other = read(ours), read(theirs)
        assert 0.98 < len(mine) / len(other) < 1.02, f"{len(mine)} features, and {len(other)} without"
        assert 0.98 < shapely.area(mine).sum() / shapely.area(other).sum() < 1.02, "the area is another"

    def lined() -> None:
        lines, outlines = read(ours), shapely.union_all(read(theirs))
        shapely.prepare(outlines)
        assert len(lines) > 1000 and shapely.covers(outlines, shapely.line_interpolate_point(
            lines, 0.5, normalized=True)).mean() > 0.99, "lines are not in the middle of roads"  # fmt: skip

    _, _, masks = write_tilesets(folder / "tiles", 23, 22)
    yield Row(
        "vectorize: 506 tiles of 512 px, 20,000 buildings",
        [*traced(masks, ours), "--min_area", 0],  # the rival fills no holes
        rival("shapes", masks, 512, theirs),
        "rasterio's shapes and shapely on the mosaic",
        0.8,
        same,
        before="8.9 s",
        runs=3,
    )
    options = {
        "borders shared": ["--shared_borders"],
        "right angles, cleaned": ["--regularize", "building", "--denoise", 3, "--grow", 2],
    }
    for what, given in options.items():
        yield Row(
            f"vectorize: 506 tiles of 512 px, {what}",
            [*traced(masks, ours), *given],
            traced(masks, theirs),
            "without",
            2.0,
            alike,
            runs=3,
        )
    for size, columns, rows_of in ((512, 12, 10), (256, 20, 12)):
        roads = write_roads(folder / f"roads{size}", columns, rows_of, size)
        yield Row(
            f"vectorize: {columns * rows_of} tiles of {size} px, centre lines of roads",
            [*traced(roads, ours), "--lines", "building"],
            traced(roads, theirs),
            "without",
            2.0,
            lined,
            runs=3,
        )
    *_, few = write_tilesets(folder / "few", 40, 8, size=256)
    *_, many = write_tilesets(folder / "many", 40, 80, size=256)
    yield Growth("vectorize: 3,200 tiles of 256 px", traced(few, ours), traced(many, ours), tiles=2880)
    near = [[*traced(masks, ours), "--merge_distance", 1] for masks in (few, many)]
    yield Growth("vectorize: 3,200 tiles of 256 px, what is near merged", *near, tiles=2880)
    options["centre lines"] = ["--lines", "building"]
    for what, given in options.items():
        both = [[*traced(masks, ours), *given] for masks in (few, many)]
        yield Growth(f"vectorize: 3,200 tiles of 256 px, {what}", *both, tiles=2880)
    parts = [part_of(many, 8 * band, config, folder) for band in range(10)]
    yield Growth(
        "vectorize: parts of 10 blocks of 320 tiles joined",
        joined(parts[:1], ours),
        joined(parts, ours),
        tiles=2880,
    )


# As the component of the pipeline does it.
JOIN = """
import sys
from pathlib import Path
from rsp.components.vectorize.join import join
from rsp.components.vectorize.parts import Part
join([Part(Path(part)) for part in sys.argv[2:]], Path(sys.argv[1]))
"""


def joined(parts: list[Path], out: Path) -> list[object]:
    """Return the command that joins parts."""
    return [sys.executable, "-c", JOIN, out, *parts]


def part_of(masks: Path, first: int, config: Path, folder: Path) -> Path:
    """Make the part of a band of eight rows of masks, which begins there."""
    tiles = sorted(open_reader(masks).tiles(), key=lambda tile: (tile.y, tile.x))
    north = tiles[0].y
    band, seen = folder / f"band{first}.pmtiles", folder / f"band{first}.csv"
    with open_reader(masks) as reader, open_writer(band, "png") as writer:
        for tile in tiles:
            if first <= tile.y - north < first + 8:
                writer.write(tile, reader.read(tile))
    write_cover(seen, [tile for tile in tiles if first - 1 <= tile.y - north <= first + 8])
    out = folder / f"band{first}.part"
    vectorize_block(band, seen, out, kind="building", config=config, workers=1)
    return out


def read(path: Path) -> np.ndarray:
    """Return the polygons of a file."""
    features = json.loads(path.read_text())["features"]
    return shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
