"""Copy tiles with the package pmtiles: python copy_pmtiles.py IN.pmtiles COVER.csv OUT.pmtiles."""

import mmap
import sys
from pathlib import Path

from pmtiles.reader import Reader, all_tiles
from pmtiles.tile import zxy_to_tileid
from pmtiles.writer import Writer

source, cover, out = sys.argv[1:]
lines = Path(cover).read_text().splitlines()
wanted = {tuple(map(int, line.split(","))) for line in lines}
with Path(source).open("rb") as file, Path(out).open("wb") as target:
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(offset: int, length: int) -> bytes:
        return memory[offset : offset + length]

    header, metadata = Reader(read).header(), Reader(read).metadata()
    writer = Writer(target)
    for (z, x, y), data in all_tiles(read):  # in the order of an archive, which is the quickest way to write one
        if (x, y, z) in wanted:
            writer.write_tile(zxy_to_tileid(z, x, y), data)
    writer.finalize(header, metadata)
