"""Put the tiles of a set together to one raster, a Cloud Optimized GeoTIFF."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from rsp.components.tile.blocks import TOGETHER, Blocks, Job, Pyramid, Square, samples, sampling_of
from rsp.components.tile.geotiff import Layout, Part, write_raster
from rsp.shared.atomic import atomic_path, scratch
from rsp.shared.attribution import of_readers, to_text
from rsp.shared.claims import FAILED, GEOTIFF, Output, check_paths
from rsp.shared.covers import read_tiles
from rsp.shared.errors import CoverError, TileError, TileSetError, UsageError
from rsp.shared.images import Rgb, sniff
from rsp.shared.jobs import Failure, run_job
from rsp.shared.locations import Location
from rsp.shared.memory import keep_memory
from rsp.shared.progress import progress
from rsp.shared.report import note_failures
from rsp.shared.tilekeys import Keys
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import TileReader, open_reader, tile_format
from rsp.shared.tileset.hilbert import columns_at, ids_at

# Blocks of a raster, missing ones too: its directories name each.
MAX_BLOCKS = 100_000_000
MAX_SIDE = (1 << 31) - 1


def put_together(
    tiles: str,
    out: Location,
    *,
    zoom: int | None,
    cover: Location | None,
    block_format: str | None,
    workers: int | None,
    attribution: str = "",
) -> dict[str, Any]:
    """Write a raster of the tiles of a set; return what `TileResult` takes. See `rsp.components.tile.tool.tile`.

    Tiles in JPEG and WebP become blocks byte for byte. All others are stored without loss.
    """
    keep_memory()
    check_paths([Output(out, GEOTIFF, (FAILED,))], [tiles], cover=cover)
    with open_reader(tiles) as reader:
        keys, zoom = _keys(reader, zoom, cover)
        layout = replace(
            _layout(reader, keys, zoom, block_format), owners=to_text(attribution or of_readers([reader]))
        )
    failed: dict[Tile, str] = {}
    with atomic_path(out) as path, scratch(out) as folder:
        parts: list[Part] = []
        above = Blocks(folder / "above", layout)
        top = min(TOGETHER, layout.levels - 1)
        pyramid = Pyramid(layout, layout.levels - 1, above.emit)
        job = Job(tiles, layout, folder)
        count = len(np.unique(_along(keys, layout) >> 2 * top))
        with closing(run_job(job, _squares(keys, layout, top), count, workers, worth=2)) as results:
            for square, made in progress(results, "tile", len(keys), size=lambda item: len(item[0].tiles)):
                if isinstance(made, Failure):
                    failed |= dict.fromkeys(square.tiles, made.reason)
                    continue
                failed |= made.failed
                parts.append(made.part)
                if made.image is not None:
                    pyramid.push(top, square.x, square.y, made.image, made.valid)
        pyramid.finish()
        parts.append(above.close())
        if len(failed) == len(keys):
            found, reason = min(failed.items())
            raise TileSetError(f"no tile of {tiles} can be put into a raster; {zxy(found)}: {reason}")
        with path.open("wb") as file:
            write_raster(file, layout, parts)
    note_failures(out, failed)
    return {"tiles": len(keys) - len(failed), "tile_format": layout.compression, "failed": failed}


def _keys(reader: TileReader, zoom: int | None, cover: Location | None) -> tuple[Keys, int]:
    """Return the tiles to take, and their zoom."""
    found = reader.cover()
    if zoom is None:
        zoom = found.zoom(reader.path)
    if cover is not None:
        found = found & read_tiles(cover)
    if not len(found.keys(zoom)):
        raise CoverError(f"{reader.path} has no tile of zoom {zoom}" + (f" that {cover} lists" if cover else ""))
    return found.keys(zoom), zoom


def _layout(reader: TileReader, keys: Keys, zoom: int, block_format: str | None) -> Layout:
    """Return what the raster is, told from the place of the tiles and from the first one that can be read."""
    x, y = keys >> 32, keys & 0xFFFFFFFF
    columns, rows = int(x.max() - x.min()) + 1, int(y.max() - y.min()) + 1
    if columns * rows > MAX_BLOCKS:
        raise UsageError(
            f"the tiles of {reader.path} lie far apart: the raster around them would have {columns} x {rows} "
            f"blocks for {len(keys)} tiles; take a part of them with --cover"
        )
    error: TileError | None = None
    for key in keys[:1000].tolist():
        try:
            data = reader.read(Tile(key >> 32, key & 0xFFFFFFFF, zoom))
            palette = _palette(reader, data)
            image = samples(data, None, palette=palette is not None)
            break
        except TileError as failure:
            error = error or failure
    else:
        raise TileSetError(f"no tile of {reader.path} can be read: {error}")
    height, width, bands = image.shape
    if height != width or width % 16 or width > 4096 or max(columns, rows) * width > MAX_SIDE:
        raise UsageError(
            f"the tiles of {reader.path} have {width}x{height} pixels; blocks of a raster are squares whose side "
            "is a multiple of 16"
        )
    layout = Layout(
        zoom, int(x.min()), int(y.min()), columns, rows, width, bands, str(image.dtype), "deflate", palette=palette
    )
    wanted = tile_format(block_format) if block_format else sniff(data)
    picture = palette is None and image.dtype == np.uint8 and bands in (1, 3)
    if wanted == "jpg" and picture:
        return replace(layout, compression="jpg", sampling=(sniff(data) == "jpg" and sampling_of(data)) or (2, 2))
    if wanted == "webp" and picture and bands == 3:
        return replace(layout, compression="webp")
    if block_format and wanted in ("jpg", "webp"):
        raise UsageError(f"{wanted} cannot hold the tiles of {reader.path}; leave --format away")
    return layout if palette or image.dtype.kind == "f" else replace(layout, predictor=2)


def _palette(reader: TileReader, data: bytes) -> tuple[Rgb, ...] | None:
    """Return the colours of labels and masks: those of their classes, else those that a tile has itself."""
    classes = reader.info.classes
    if classes:
        return tuple(entry.color for entry in classes)
    if sniff(data) != "png":
        return None
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
    except (OSError, SyntaxError, ValueError) as error:
        raise TileError("the image is corrupt or truncated") from error
    colors = image.getpalette("RGB") if image.mode == "P" else None
    return None if colors is None else tuple(zip(colors[::3], colors[1::3], colors[2::3], strict=True))


def _along(keys: Keys, layout: Layout) -> Keys:
    """Return where tiles lie along the curve of Hilbert that begins with the first column and row."""
    return ids_at(layout.levels, (keys >> 32) - layout.x, (keys & 0xFFFFFFFF) - layout.y)


def _squares(keys: Keys, layout: Layout, top: int) -> Iterator[Square]:
    """Yield the tiles below each block of a level, along the curve."""
    along = np.sort(_along(keys, layout))
    starts = np.flatnonzero(np.diff(along >> 2 * top, prepend=-1))
    for number, (start, end) in enumerate(zip(starts.tolist(), [*starts[1:].tolist(), len(along)], strict=True)):
        x, y = columns_at(layout.levels, along[start:end])
        tiles = tuple(
            Tile(column + layout.x, row + layout.y, layout.zoom)
            for column, row in zip(x.tolist(), y.tolist(), strict=True)
        )
        yield Square(number, int(x[0]) >> top, int(y[0]) >> top, tiles)
