"""Labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely
from PIL import Image

from tests.bench.data import write_config
from tests.bench.harness import Growth, Row, rival, rsp

X, Y, ZOOM, SIZE = 136000, 92800, 18, 512


def write_roofs(path: Path, count: int, columns: int, rows: int) -> Path:
    """Write turned rectangles of 3 to 12 m, some in the shape of an L, over so many tiles."""
    random = np.random.default_rng(7)
    corners = np.array([(-1, -1), (1, -1), (1, 0.2), (0.1, 0.2), (0.1, 1), (-1, 1)])
    square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    middles = random.uniform((X, Y), (X + columns, Y + rows), (count, 2))
    sides, angles = random.uniform(0.015, 0.055, (count, 2)), random.uniform(0, np.pi, count)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        for number, (middle, side, angle) in enumerate(zip(middles, sides, angles, strict=True)):
            sine, cosine = np.sin(angle), np.cos(angle)
            ring = (square if random.random() < 0.6 else corners) * side
            ring = (ring @ np.array([[cosine, sine], [-sine, cosine]]) + middle) / (1 << ZOOM)
            latitude = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * ring[:, 1]))))
            points = np.column_stack([ring[:, 0] * 360 - 180, latitude]).round(7).tolist()
            feature = {
                "type": "Feature", "properties": {"building": "yes", "id": number},
                "geometry": {"type": "Polygon", "coordinates": [[*points, points[0]]]},
            }  # fmt: skip
            file.write((",\n" if number else "") + json.dumps(feature, separators=(",", ":")))
        file.write("\n]}\n")
    return path


def write_cover(path: Path, columns: int, rows: int) -> Path:
    """Write the cover of so many tiles."""
    path.write_text("".join(f"{X + x},{Y + y},{ZOOM}\n" for x in range(columns) for y in range(rows)))
    return path


def rows(folder: Path) -> Iterator[Row | Growth]:
    """Yield the rows of `rsp rasterize`."""
    config, cover = write_config(folder), write_cover(folder / "cover.csv", 22, 23)
    ours, theirs = folder / "labels", folder / "burnt"

    def same() -> None:
        files = sorted(ours.glob("*/*/*.png"))
        assert len(files) == 506, f"{len(files)} labels"
        different = 0
        for path in files:
            mine, other = (np.asarray(Image.open(each)) for each in (path, theirs / path.relative_to(ours)))
            different += int((mine != other).sum())
        assert not different, f"{different} pixels differ"

    for count, before in ((6_000, "9.4 s"), (20_000, "21.9 s")):
        features = write_roofs(folder / f"{count}.json", count, 22, 23)
        yield Row(
            f"rasterize: {count:,} polygons on 506 tiles of {SIZE} px",
            rsp("rasterize", "--config", config, "--geojson", features, "--ts", SIZE, "--workers", 1,
                "--no_web_ui", cover, ours),
            rival("burn_labels", features, cover, SIZE, theirs),
            f"rasterio + STRtree {shapely.__version__} + PNG level 1",
            0.8,
            same,
            fresh=(ours,),
            before=before,
        )  # fmt: skip
    # Both are past the points that are held in memory: the small work took 81 MB, 5 times it 84, 10 times 87.
    sides = []
    for factor, columns in ((1, 30), (10, 300)):
        source = write_roofs(folder / f"grown{factor}.json", 60_000 * factor, columns, 50)
        tiles = write_cover(folder / f"grown{factor}.csv", columns, 50)
        sides.append(
            rsp("rasterize", "--config", config, "--geojson", source, "--ts", SIZE, "--workers", 1, "--no_web_ui",
                tiles, folder / f"grown{factor}.pmtiles")
        )  # fmt: skip
    yield Growth(
        "rasterize: 600,000 polygons on 15,000 tiles of 512 px",
        *sides,
        tiles=13_500,
        fresh=(folder / "grown1.pmtiles", folder / "grown10.pmtiles"),
        runs=3,
    )
