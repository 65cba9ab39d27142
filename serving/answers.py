"""What a request for a prediction may ask for, in its headers, and the forms of an answer.

    Accept        image/png, image/webp, application/geo+json or application/octet-stream
    X-Overlap     width in pixels of the border that the image carries on each side, cut from its neighbours
    X-Tile        z/x/y of the tile, which GeoJSON needs

No torch here: whoever passes requests on can refuse bad ones without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rsp.shared.errors import CoverError, TileError
from rsp.shared.images import Rgb, encode_mask, encode_mask_webp
from rsp.shared.tiles import Tile, check_tile

PNG, WEBP, GEOJSON, PROBABILITIES = "image/png", "image/webp", "application/geo+json", "application/octet-stream"
# Of equally welcome ones the first is taken.
TYPES = (PNG, WEBP, GEOJSON, PROBABILITIES)

MAX_OVERLAP = 1024
# Browsers send some 150 characters.
MAX_ACCEPT = 1000
# TorchServe's max_response_size is 16 MiB, of which the head takes some.
MAX_ANSWER = (16 << 20) - (64 << 10)
# Pixels of outlines that are made GeoJSON: about 3 s of work.
MAX_OUTLINE = 100_000

_RANGE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)/([!#$%&'*+.^_`|~0-9A-Za-z-]+)")
_QUALITY = re.compile(r"[01]|0\.[0-9]{0,3}|1\.0{0,3}")


class RefusedError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: The HTTP status.
        error: What is wrong, in two or three words.
        detail: The same in a sentence, and what to do.
    """

    def __init__(self, status: int, error: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.error, self.detail = status, error, detail

    @property
    def body(self) -> str:
        """The answer's body."""
        return json.dumps({"error": self.error, "detail": self.detail})


@dataclass(frozen=True)
class Wanted:
    """What a request asks for.

    Attributes:
        media_type: One of `TYPES`.
        overlap: Width of the border that the image carries; None where the sender does not say.
        tile: Where the image lies, where the sender says.
    """

    media_type: str = PNG
    overlap: int | None = None
    tile: Tile | None = None


@dataclass(frozen=True)
class Rendered:
    """The body of an answer, its media type, and the headers that go with it."""

    body: bytes
    media_type: str
    headers: Mapping[str, str]


def wanted(headers: Mapping[str, str]) -> Wanted:
    """Return what a request asks for.

    Args:
        headers: Their names in lower case.

    Raises:
        RefusedError: 400 for a header that makes no sense, 406 where no answer would be welcome.
    """
    overlap, tile = _overlap(headers.get("x-overlap")), _tile(headers.get("x-tile"))
    media_type = negotiate(headers.get("accept"))
    if media_type == GEOJSON and tile is None:
        raise RefusedError(
            400,
            "no X-Tile",
            f"{GEOJSON} is in degrees, so say which tile this is: send the header `X-Tile: z/x/y`",
        )
    return Wanted(media_type, overlap, tile)


def negotiate(accept: str | None) -> str:
    """Return the media type of the answer: of those that an Accept header allows, the most welcome one.

    As RFC 9110, section 12.5.1 says: the most specific range that holds a type tells its quality, and 0 forbids
    it. Parts that are not media ranges, and parameters other than `q`, are passed over.

    Raises:
        RefusedError: 406 where it allows none; 400 where it is longer than any that is meant.
    """
    if accept is None or not accept.strip():
        return PNG
    if len(accept) > MAX_ACCEPT:
        raise RefusedError(400, "bad header", f"Accept: it may have {MAX_ACCEPT} characters")
    ranges: dict[tuple[str, str], float] = {}
    for part in accept.split(","):
        name, *parameters = (text.strip() for text in part.split(";"))
        match = _RANGE.fullmatch(name)
        quality = "1"
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.lower() == "q":
                quality = value
        if match and _QUALITY.fullmatch(quality) and (match[1] != "*" or match[2] == "*"):
            place = (match[1].lower(), match[2].lower())
            ranges[place] = max(float(quality), ranges.get(place, 0.0))
    best, found = 0.0, None
    for media_type in TYPES:
        kind, _, form = media_type.partition("/")
        for place in ((kind, form), (kind, "*"), ("*", "*")):
            if place in ranges:
                if ranges[place] > best:
                    best, found = ranges[place], media_type
                break
    if found is None:
        raise RefusedError(406, "not acceptable", f"Accept allows none of what there is: {', '.join(TYPES)}")
    return found


def _overlap(value: str | None) -> int | None:
    if value is None:
        return None
    # The pattern first: int() raises on thousands of digits.
    if not re.fullmatch(r"[0-9]{1,4}", value) or int(value) > MAX_OVERLAP:
        raise RefusedError(400, "bad header", f"X-Overlap: expected a whole number from 0 to {MAX_OVERLAP}")
    return int(value)


def _tile(value: str | None) -> Tile | None:
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,2})/([0-9]{1,10})/([0-9]{1,10})", value)
    if not match:
        raise RefusedError(400, "bad header", "X-Tile: expected z/x/y, as 18/134000/91000")
    z, x, y = map(int, match.groups())
    try:
        return check_tile(x, y, z)
    except CoverError as error:
        raise RefusedError(400, "bad header", f"X-Tile: {error}") from None


def render(
    array: npt.NDArray[np.uint8], request: Wanted, titles: Sequence[str], colors: Sequence[Rgb]
) -> Rendered:
    """Encode what a model answered in the form that was asked for.

    Args:
        array: Classes, shape (height, width), or, for `PROBABILITIES`, shape (classes, height, width).
        request: What was asked for.
        titles: Of the classes.
        colors: Of the classes.

    Raises:
        RefusedError: 406 where the answer would be too large in this form.
    """
    headers: dict[str, str] = {}
    if request.media_type == PROBABILITIES:
        body = array.tobytes()
        headers["X-Shape"] = ",".join(map(str, array.shape))
    elif request.media_type == WEBP:
        body = encode_mask_webp(array)
    elif request.media_type == GEOJSON:
        body = _geojson(array, request, titles)
    else:
        body = encode_mask(array, colors)
    if len(body) > MAX_ANSWER:
        raise _too_large(request.media_type, f"the answer would have {len(body)} bytes, the limit is {MAX_ANSWER}")
    return Rendered(body, request.media_type, headers)


def _geojson(mask: npt.NDArray[np.uint8], request: Wanted, titles: Sequence[str]) -> bytes:
    from rsp.shared.featuretext import feature_collection
    from rsp.shared.polygons import mask_features

    assert request.tile is not None
    try:
        features = mask_features(mask, titles, request.tile, max_outline=MAX_OUTLINE)
        return feature_collection(features).encode()
    except TileError as error:
        raise _too_large(GEOJSON, str(error)) from None


def _too_large(media_type: str, reason: str) -> RefusedError:
    return RefusedError(406, "answer too large", f"{media_type} is too large here: {reason}; ask for {PNG}")
