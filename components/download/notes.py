"""What a server said of each tile, by which it tells later whether the tile has changed: `FILE.etags.csv`.

A line is `x,y,z,source,digest,etag,last_modified`, so that the list is a cover, too. It counts for a tile only
where the source (the template of the URL) and the bytes that are there are those of which it was said: a server is
never asked for changes to something that we do not have.

While a download runs, lines go to a journal beside the output, each after its tile is written. It survives a kill;
the next run takes it over. A refresh also notes there, before it writes a tile, that the tile changes: so that
what one changed that was killed is listed all the same.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from io import StringIO
from pathlib import Path
from typing import TextIO

from rsp.shared.atomic import PREFIX, atomic_text
from rsp.shared.errors import DownloadError, StorageError
from rsp.shared.locations import Address, Location
from rsp.shared.locks import hold
from rsp.shared.tiles import Tile
from rsp.shared.tileserver import Validators

NOTES, CHANGED = ".etags.csv", ".changed.csv"
# The first line of a journal, and what the others begin with.
DOWNLOAD, REFRESH = "download", "refresh"
NOTED, CHANGES = "noted", "changes"


def digest(data: bytes) -> str:
    """Return 16 hexadecimal digits that change with the bytes of a tile."""
    return blake2b(data, digest_size=8).hexdigest()


def beside(out: Path, suffix: str) -> Path:
    """Return a path beside an output; `.` has a name too."""
    out = out.expanduser()
    if out.name in ("", ".."):
        out = out.resolve()
    return out.parent / f"{out.name}{suffix}"


class Notes:
    """The notes of an output, open for a run. Use it as a context manager.

    Attributes:
        seen: The tiles that the interrupted refresh had asked for with which this one goes on.
        changed: The tiles that this refresh, or the interrupted one, has changed.

    Args:
        out: The output. Notes are kept of outputs on this machine.
        identity: Of the source of the tiles.
        refresh: This run is a refresh.
        forget: Begin without what an interrupted run has left.

    Raises:
        DownloadError: another process notes what it downloads to the same output, and this is a refresh; or a
            refresh was interrupted, and this is none.
        StorageError: it cannot be written there.
    """

    def __init__(self, out: Location, identity: str, *, refresh: bool, forget: bool = False) -> None:
        self._out, self._source = out, digest(identity.encode())
        self._refresh, self._forget = refresh, forget
        self.seen: set[Tile] = set()
        self.changed: set[Tile] = set()
        self._file: TextIO | None = None
        self._known: dict[int, str] | None = None
        # Nothing is noted of what goes to a store, nor where another process notes already.
        self._off = isinstance(out, Address)
        if isinstance(out, Address):
            self._known = {}
            return
        self.path = beside(out, NOTES)
        self._journal = self.path.parent / f"{PREFIX}{self.path.name}"
        if self._journal.exists():
            self._open()
        if refresh:
            _ = self.known  # before threads ask for it

    # --- the journal -----------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Take the journal, and what an interrupted run has left in it."""
        try:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            descriptor = hold(self._journal)
        except BlockingIOError:
            if self._refresh:
                raise DownloadError(
                    f"another process downloads to {self._out}; try again when it has ended"
                ) from None
            self._off = True
            return
        except OSError as error:
            # As where the output is a volume, and what is around it cannot be written to.
            if self._refresh:
                raise StorageError(f"cannot write {self._journal}: {error.strerror}") from error
            print(
                f"warning: nothing is noted for a later --refresh: cannot write {self._journal}: {error.strerror}",
                file=sys.stderr,
            )
            self._off = True
            return
        self._file = os.fdopen(descriptor, "r+", encoding="utf-8", newline="")
        kind, mine = self._file.readline().strip(), REFRESH if self._refresh else DOWNLOAD
        if kind == REFRESH and not self._refresh and not self._forget:
            self._file.close()
            raise DownloadError(
                f"a refresh of {self._out} was interrupted: finish it with --refresh, or start over with "
                "--overwrite"
            )
        if kind == DOWNLOAD and not self._forget:
            self._merge()
        if kind == REFRESH and not self._forget:
            self._resume()
            return
        self._cut(0)
        self._write(mine)

    def _resume(self) -> None:
        """Go on with a refresh; a line that was not finished goes."""
        assert self._file is not None
        for what, key, _ in self._lines():
            (self.changed if what == CHANGES else self.seen).add(_tile(key))
        self._cut(self._end)

    def _cut(self, size: int) -> None:
        assert self._file is not None
        self._file.flush()
        os.ftruncate(self._file.fileno(), size)
        self._file.seek(size)

    def _lines(self) -> Iterator[tuple[str, int, str]]:
        """Yield what kind of line each is, the tile, and what was said; whole lines only."""
        assert self._file is not None
        self._file.seek(0)
        self._end = 0
        for line in iter(self._file.readline, ""):
            if not line.endswith("\n"):
                break
            self._end += len(line.encode())
            what, _, rest = line.rstrip("\n").partition(",")
            with suppress(ValueError):
                yield what, *_parsed(rest)

    def _write(self, line: str) -> None:
        if self._file is None and not self._off:
            self._open()
        if self._file is None:
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"cannot write {self._journal}: {error.strerror}") from error

    # --- a run -----------------------------------------------------------------------------------------------

    def changing(self, tile: Tile) -> None:
        """Note that a tile is about to be written that is new or another."""
        if self._refresh:
            self.changed.add(tile)
            self._write(f"{CHANGES},{tile.x},{tile.y},{tile.z}")

    def note(self, tile: Tile, data: bytes, validators: Validators) -> None:
        """Note what was said of a tile that is there as these bytes."""
        if not self._refresh and not any(validators) and _key(tile) not in self.known:
            return  # nothing was said, and nothing to take back
        text = StringIO()
        fields = [tile.x, tile.y, tile.z, self._source, digest(data), *validators]
        csv.writer(text, lineterminator="").writerow([NOTED, *fields])
        self._write(text.getvalue())

    def validators_of(self, tile: Tile, data: bytes) -> Validators | None:
        """Return what was said of a tile, where that was said of these bytes, and by this source."""
        said = self.known.get(_key(tile))
        fields = next(csv.reader([said])) if said else []
        return Validators(*fields[2:4]) if fields[:2] == [self._source, digest(data)] else None

    # --- the list --------------------------------------------------------------------------------------------

    @property
    def known(self) -> dict[int, str]:
        """What earlier runs have noted, as it stands in the list behind the tile."""
        if self._known is None:
            known: dict[int, str] = {}
            try:
                with self.path.open(encoding="utf-8", newline="") as file:
                    for line in file:
                        with suppress(ValueError):
                            key, said = _parsed(line.rstrip("\r\n"))
                            known[key] = said
            except FileNotFoundError:
                pass
            except (OSError, UnicodeDecodeError) as error:
                raise StorageError(
                    f"cannot read {self.path}: {error}; without it every tile is fetched"
                ) from error
            self._known = known
        return self._known

    def _merge(self) -> None:
        """Bring what the journal has into the list."""
        before = len(self.known)
        noted = 0
        for what, key, said in self._lines():
            if what != NOTED:
                continue
            noted += 1
            if said.endswith(",,"):  # nothing was said this time
                self.known.pop(key, None)
            else:
                self.known[key] = said
        if self.known and noted:
            with atomic_text(self.path) as file:
                for key in sorted(self.known):
                    tile = _tile(key)
                    file.write(f"{tile.x},{tile.y},{tile.z},{self.known[key]}\n")
        elif before and noted:
            self.path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Bring the notes of this run into the list, and remove the journal."""
        if self._file is not None:
            self._merge()
            self._journal.unlink(missing_ok=True)
        self.close(keep=False)

    def close(self, *, keep: bool = True) -> None:
        """Let go; the journal stays for the next run, unless nothing is in it."""
        if self._file is not None:
            if keep and next(self._lines(), None) is None:
                self._journal.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _key(tile: Tile) -> int:
    """Return the number of a tile, by which zooms, columns and rows come in order."""
    return int(tile.z) << 64 | int(tile.x) << 32 | int(tile.y)


def _tile(key: int) -> Tile:
    return Tile(key >> 32 & 0xFFFFFFFF, key & 0xFFFFFFFF, key >> 64)


def _parsed(line: str) -> tuple[int, str]:
    """Return the tile that a line begins with, and what follows; raise `ValueError` where it is no such line."""
    x, y, z, *rest = line.split(",", 3)
    return _key(Tile(int(x), int(y), int(z))), rest[0] if rest else ""
