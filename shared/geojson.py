"""Reads GeoJSON in blocks of bytes: where features end is found by numpy, and each block is parsed at once.

A file is a FeatureCollection, a Feature, a bare geometry, or several of these one after another (GeoJSONSeq, with
or without record separators). What is held is a block and, at most, the feature that goes on beyond it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from rsp.shared.errors import FeatureError
from rsp.shared.webfiles import FileAt

# Bytes that are parsed at a time: the lists of more would outgrow the processor's caches, and start the garbage
# collector. And how deep brackets may be nested (those of GeoJSON go 8 deep).
BLOCK, MAX_DEPTH = 1 << 18, 200

# Bytes that a feature may have: the parser needs some ten times as much.
MAX_FEATURE = 1 << 30

BOM = b"\xef\xbb\xbf"

# White space of JSON, and the record separator of RFC 8142.
_SPACE = b" \t\r\n\x1e"

_OPEN, _CLOSE, _QUOTE = 1, 2, 3
_KINDS = bytes(
    _OPEN if byte in b"[{" else _CLOSE if byte in b"]}" else _QUOTE if byte == ord('"') else 0
    for byte in range(256)
)
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_SURROGATES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)

# Brackets at this depth are kept: those of a file's objects, of their members, and of features.
_FEATURE = 2


class _Structure:
    """The text of a file as it is read, and the brackets that show its structure.

    Attributes:
        text: What was read and not dropped yet.
        offset: Where in the file it begins.
        at: Where in the text brackets are that are not in strings, as far as they are at most `_FEATURE` deep.
        depth: How deep each one is: after it, so 0 where an object of the file ends.
        opens: Which of them open.
    """

    def __init__(self, file: IO[bytes], path: FileAt) -> None:
        self._file, self._path = file, path
        self.text = bytearray()
        self.offset = file.tell()
        self.at = np.empty(0, np.int64)
        self.depth = np.empty(0, np.int32)
        self.opens = np.empty(0, np.bool_)
        self._deep, self._in_string, self._in_escape = 0, False, False

    def read(self) -> bool:
        """Read one more block; after a large start of a feature one as large, so that its cost stays linear."""
        if len(self.text) > MAX_FEATURE:
            raise FeatureError(
                f"{self._path}: what begins at byte {self.offset} does not end within {MAX_FEATURE >> 20} MiB; "
                "is it one feature?"
            )
        block = self._file.read(max(BLOCK, len(self.text)))
        if not block:
            return False
        start = len(self.text)
        self.text += block
        if self._in_escape:
            block = b" " + block[1:]
        if b"\\" in block:
            block = _ESCAPED.sub(b"  ", block)
        self._in_escape = block.endswith(b"\\")
        kinds = np.frombuffer(block.translate(_KINDS), np.uint8)
        at = np.flatnonzero(kinds)
        kinds = kinds[at]
        quotes = kinds == _QUOTE
        inside = np.bitwise_xor.accumulate(quotes) ^ self._in_string
        if len(inside):
            self._in_string = bool(inside[-1])
        outside = ~(quotes | inside)
        at, opens = at[outside], kinds[outside] == _OPEN
        depth = np.where(opens, 1, -1).cumsum(dtype=np.int32) + self._deep
        if len(depth):
            self._deep = int(depth[-1])
            if depth.max() > MAX_DEPTH:
                raise FeatureError(f"{self._path} nests brackets more than {MAX_DEPTH} deep: not GeoJSON")
            if depth.min() < 0:
                where = self.offset + start + int(at[np.argmax(depth < 0)])
                raise invalid(self._path, f"a bracket is closed at byte {where} that was not opened")
        shallow = depth <= _FEATURE
        self.at = np.concatenate([self.at, at[shallow] + start])
        self.depth = np.concatenate([self.depth, depth[shallow]])
        self.opens = np.concatenate([self.opens, opens[shallow]])
        return True

    def drop(self, length: int) -> None:
        """Forget the first bytes."""
        del self.text[:length]
        self.offset += length
        left = int(np.searchsorted(self.at, length))
        self.at, self.depth, self.opens = self.at[left:] - length, self.depth[left:], self.opens[left:]

    def first(self, depth: int, *, opens: bool = False) -> int | None:
        """Return where the first bracket is that leads to this depth."""
        found = np.flatnonzero((self.depth == depth) & (self.opens == opens))
        return int(self.at[found[0]]) if len(found) else None

    def last(self, depth: int) -> int | None:
        """Return where the last closing bracket is that leads to this depth."""
        found = np.flatnonzero((self.depth == depth) & ~self.opens)
        return int(self.at[found[-1]]) if len(found) else None

    def array_of_features(self) -> int | None:
        """Return where the array of the member `features` begins, in the object that the text begins with."""
        end = self.first(0)
        for where in self.at[(self.depth == _FEATURE) & self.opens]:
            if end is not None and where > end:
                break
            if self.text[where] == ord("[") and _key_before(self.text, int(where)) == "features":
                return int(where)
        return None


def _key_before(text: bytearray, where: int) -> str | None:
    """Return the key of the member whose value begins there."""
    end = where - 1
    while end >= 0 and text[end] in b" \t\r\n:":
        end -= 1
    start = text.rfind(b'"', 0, max(end, 0))
    while start > 0 and text[start - 1] == ord("\\"):  # who escapes a quote in a key means another one
        start = text.rfind(b'"', 0, start)
    if start < 0 or end < 1 or text[end] != ord('"'):
        return None
    try:
        return str(orjson.loads(text[start : end + 1]))
    except orjson.JSONDecodeError:
        return None


def invalid(path: FileAt, reason: str) -> FeatureError:
    """Return the error for what is not JSON."""
    return FeatureError(f"{path} is not valid JSON, or is cut off: {reason}")


class Items:
    """The features and geometries of a file, as lists of what JSON makes of them.

    Args:
        file: The file, past its byte order mark.
        path: Its name, for messages.
        parse: Without it, the features of a collection are passed over: lists are empty, and come as often as
            there may be something new in `crs`.

    Attributes:
        crs: The first member `crs` of an object of the file, as far as it was read.
    """

    def __init__(self, file: IO[bytes], path: FileAt, *, parse: bool = True) -> None:
        self._path, self._parse = path, parse
        self._structure = _Structure(file, path)
        self._shell = b""  # a FeatureCollection without its features
        self._in_features = self._any = self._found = False
        self.crs: Any = None

    def check(self) -> None:
        """Refuse what does not begin as JSON with an object."""
        self._structure.read()
        self._objects()

    def __iter__(self) -> Iterator[list[Any]]:
        structure = self._structure
        while structure.read():
            while True:
                if self._in_features:
                    items, more = self._features()
                elif self._shell:
                    items, more = [], self._rest_of_shell()
                else:
                    items, more = self._objects()
                if items or not self._parse:
                    yield items
                if not more:
                    break
        left = bytes(structure.text).strip(_SPACE)
        if self._in_features or self._shell or left:
            if left and not self._in_features and not self._shell:
                self._loads(left, structure.offset)
            raise invalid(self._path, "the file ends in the middle of an object")
        if not self._found:
            raise FeatureError(f"{self._path} holds no GeoJSON object")

    def _features(self) -> tuple[list[Any], bool]:
        """Return the features that are complete, and whether they were the last of their collection."""
        structure = self._structure
        end = structure.first(1)
        last = structure.last(_FEATURE) if end is None else end - 1
        if end is None and last is None:
            structure.drop(len(structure.text) - len(structure.text.lstrip(_SPACE)))
            head = bytes(structure.text[:64]).lstrip(_SPACE + b",")
            if head[:1] not in (b"", b"{"):
                raise FeatureError(f"{self._path}: a feature is not a GeoJSON object: {_excerpt(head)}")
            return [], False
        assert last is not None
        text = bytes(structure.text[: last + 1])
        items: list[Any] = []
        if self._parse:
            # What precedes the first comma is a feature already returned, for which null stands.
            before = b"[null" if self._any else b"["
            items = self._loads(before + text + b"]", structure.offset - len(before))[self._any :]
        self._any = self._any or bool(text.strip(_SPACE))
        structure.drop(last + 1)
        if end is not None:
            self._in_features = False
        return items, end is not None

    def _rest_of_shell(self) -> bool:
        """Read on behind an array of features: to the next one, or the end of the object."""
        structure = self._structure
        start = structure.array_of_features()
        end = structure.first(0)
        if start is None and end is None:
            return False
        if start is not None:
            self._enter(start)
        else:
            assert end is not None
            self._shell += bytes(structure.text[: end + 1])
            self._note(self._loads(self._shell, structure.offset, exact=False))
            self._shell = b""
            structure.drop(end + 1)
        return True

    def _objects(self) -> tuple[list[Any], bool]:
        """Return what is in complete objects, and whether features follow whose collection is not complete."""
        structure = self._structure
        begin = len(structure.text) - len(structure.text.lstrip(_SPACE))
        structure.drop(begin)
        if not structure.text:
            return [], False
        self._check_first(structure.text[0])
        ends = structure.at[(structure.depth == 0) & ~structure.opens] + 1
        items: list[Any] = []
        if len(ends):
            text = bytes(structure.text[: ends[-1]])
            pieces = map(text.__getitem__, map(slice, [0, *ends[:-1].tolist()], ends.tolist()))
            joined = b",".join(piece.lstrip(_SPACE) for piece in pieces)
            found = self._loads(b"[" + joined + b"]", structure.offset - 1, exact=len(ends) == 1)
            structure.drop(int(ends[-1]))
            items = list(chain.from_iterable(map(self._items_of, found)))
            return items, bool(structure.text)
        start = structure.array_of_features()
        if start is not None:
            self._enter(start)
        return [], start is not None

    def _items_of(self, item: Any) -> list[Any]:
        """Return what a complete object of the file holds."""
        self._found = True
        if isinstance(item, dict):
            self._note(item)
            if isinstance(item.get("features"), list) or item.get("type") == "FeatureCollection":
                return item.get("features") or []
        return [item]

    def _enter(self, start: int) -> None:
        """Go into the array of features that begins there."""
        structure = self._structure
        self._shell += bytes(structure.text[: start + 1])
        structure.drop(start + 1)
        self._in_features, self._any, self._found = True, False, True
        self._note(self._loads(self._shell + b"]}", structure.offset, exact=False))

    def _note(self, members: dict[str, Any]) -> None:
        self.crs = self.crs or members.get("crs")

    def _check_first(self, byte: int) -> None:
        """Refuse what cannot be the first character of an object."""
        if byte == ord("{"):
            return
        if self._found or byte not in b'["-0123456789tfn':
            raise invalid(
                self._path, f"{chr(byte)!r} at byte {self._structure.offset}, where an object is expected to begin"
            )
        raise FeatureError(f"{self._path} holds no GeoJSON object")

    def _loads(self, text: bytes, offset: int, *, exact: bool = True) -> Any:
        """Parse JSON that begins at an offset of the file, or about there."""
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            if "surrogate" in str(error):  # half a character, where text was cut
                mended = _SURROGATES.sub(lambda found: rb"\ufffd" if found[1] else found[0], text)
                if mended != text:
                    return self._loads(mended, offset, exact=exact)
            reason = str(error).partition(": line ")[0].removeprefix("unexpected character, ")
            where = f" at byte {offset + error.pos}" if exact else f" before byte {offset}"
            raise invalid(self._path, reason + where) from error


def _excerpt(text: bytes) -> str:
    return repr(text[:20].decode("utf-8", "replace"))


def mentions_crs(path: Path) -> bool:
    """Tell whether `"crs"` occurs in a file."""
    before = b""
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            if b'"crs"' in data or b'"crs"' in before + data[:8]:
                return True
            before = data[-8:]
    return False
