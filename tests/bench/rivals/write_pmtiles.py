"""Write tiles with the package pmtiles: python write_pmtiles.py COUNT SIZE OUT.pmtiles [ours]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.bench.tilesets import some

count, size, out, *ours = sys.argv[1:]
tiles = some(int(count), int(size))
if ours:
    from rsp.shared.tileset import open_writer

    with open_writer(out, "png") as target:
        for tile, data in tiles:
            target.write(tile, data)
else:
    from pmtiles.tile import Compression, TileType, zxy_to_tileid
    from pmtiles.writer import Writer

    # It wants tiles in the order of archives.
    ordered = sorted((zxy_to_tileid(tile.z, tile.x, tile.y), data) for tile, data in tiles)
    with Path(out).open("wb") as file:
        writer = Writer(file)
        for tile_id, data in ordered:
            writer.write_tile(tile_id, data)
        writer.finalize({"tile_type": TileType.PNG, "tile_compression": Compression.NONE}, {})
