"""The digest of tiles and their labels, by which metrics of different models are known to be of the same tiles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby

from rsp.shared.tiles import Tile
from rsp.shared.tileset.base import TileReader
from rsp.shared.tileset.hilbert import id_of

# Columns of tiles whose digests are held at once, and tiles that are read at once: squares of 8 by 8 lie together.
STRIP, TOGETHER = 8, 64


def tiles_digest(images: Sequence[TileReader], labels: TileReader, tiles: Iterable[Tile]) -> str:
    r"""Return what identifies tiles of imagery together with their labels.

    It is the SHA-256 of a text with one line a tile, `z/x/y IMAGE... LABEL\n` in the order of z, x, y: `IMAGE...`
    are the SHA-256 of the tile in each tile set of imagery, each value once and sorted, `LABEL` is that of the
    label; all in hexadecimal.

    The encoded bytes are hashed, not the pixels: they are the same in a directory and in an archive, whatever the
    names of the tile sets, anybody can compute it with `sha256sum`, and no version of a JPEG or WebP decoder
    changes it. Tiles that were encoded again count as others, which errs on the safe side.

    Args:
        images: The tile sets of imagery.
        labels: Their labels.
        tiles: Tiles that all of them have.

    Raises:
        TileError: a tile cannot be read.
    """
    digest = hashlib.sha256()
    order = sorted(tiles, key=lambda tile: (tile.z, tile.x, tile.y))
    for _, group in groupby(order, key=lambda tile: (tile.z, tile.x // STRIP)):
        strip = list(group)
        shown, labelled = [_digests(reader, strip) for reader in images], _digests(labels, strip)
        for tile in strip:
            pictures = sorted({each[tile].hex() for each in shown})
            line = " ".join([f"{tile.z}/{tile.x}/{tile.y}", *pictures, labelled[tile].hex()])
            digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _digests(reader: TileReader, tiles: Sequence[Tile]) -> dict[Tile, bytes]:
    """Return the SHA-256 of each tile."""
    # As archives store them: what is asked for together lies together.
    ordered = sorted(tiles, key=id_of)
    found: dict[Tile, bytes] = {}
    for start in range(0, len(ordered), TOGETHER):
        chunk = ordered[start : start + TOGETHER]
        data = reader.read_many(chunk)
        for tile in chunk:
            # `read` says what is wrong with a tile that is not there.
            found[tile] = hashlib.sha256(data[tile] if tile in data else reader.read(tile)).digest()
    return found
