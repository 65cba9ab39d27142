"""WMTS 1.0.0: which of a server's tiles are those of the XYZ grid, told by its capabilities.

Matrices are compared by where they lie and how large their tiles are, not by their names: zooms are called `0`,
`EPSG:3857:0`, `00`; tiles of 512 pixels shift the scales by one; and a matrix may begin at any tile of the grid.

The document is a stranger's. It is read by expat, with no document type (and so without entities), up to limits of
size and depth. OWSLib would read it as well, but sends requests of its own, past our rate and limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit, urlunsplit
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from rsp.shared.credentials import environment_key, masked
from rsp.shared.errors import DownloadError, UsageError
from rsp.shared.mercator import AROUND, HALF
from rsp.shared.tiles import MAX_ZOOM, Tile
from rsp.shared.tileurl import WEB_MERCATOR, check_scheme

# Capabilities of whole countries have 5 MB; each becomes ten times as many bytes in memory.
MAX_BYTES, MAX_DEPTH = 16 << 20, 64
# Metres of a pixel at scale 1 (WMTS 1.0.0, 6.1).
PIXEL = 0.00028
# How far a scale may be from that of a zoom, as a part of it: servers round. 1e-5 of the world are 10 pixels at
# zoom 12, and only a set that says what it is may be further off.
EXACT, ROUNDED = 1e-5, 1e-3
MAX_SIDE = 4096
# What of an error lists names.
LISTED = 20

FORMATS = {"image/jpeg": "jpg", "image/jpg": "jpg", "image/png": "png", "image/webp": "webp", "image/tiff": "tif"}
# What we ask for ourselves; the rest of the query of an address goes along.
_OWN = {"SERVICE", "REQUEST", "VERSION", "LAYER", "STYLE", "TILEMATRIXSET", "FORMAT"}


class Matrix(NamedTuple):
    """A matrix whose tiles are those of a zoom.

    Attributes:
        name: What the server calls it.
        column: Of the grid, where its first column lies.
        row: Of the grid, where its first row lies.
        columns: First and last column that the layer has, counted by the matrix.
        rows: First and last row that the layer has.
    """

    name: str
    column: int
    row: int
    columns: tuple[int, int]
    rows: tuple[int, int]


@dataclass
class MatrixSet:
    """A matrix set: what it is called, its CRS as the document writes it, and its matrices by zoom of the grid."""

    name: str
    crs: str
    matrices: dict[int, Matrix] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} ({self.crs})"


class WmtsLayer:
    """The tiles of a layer of a WMTS.

    Attributes:
        format: What the tiles come as, as `jpg`.
        identity: The address without credentials, with what was chosen.
    """

    def __init__(
        self, found: MatrixSet, url: Callable[[Matrix, int, int], str], tile_format: str, identity: str
    ) -> None:
        self.format, self.identity = tile_format, identity
        self._set, self._url = found, url

    def check_zooms(self, zooms: Sequence[int]) -> None:
        """Raise `UsageError` where the layer has no tiles of a zoom."""
        lacking = [zoom for zoom in zooms if zoom not in self._set.matrices]
        if lacking:
            raise UsageError(
                f"the matrix set {self._set} has no matrix for zoom {lacking[0]}; it has "
                f"{_ranges(self._set.matrices)}"
            )

    def url_of(self, tile: Tile) -> str | None:
        """Return the URL of a tile; None where it lies outside the limits of the layer."""
        matrix = self._set.matrices[tile.z]
        column, row = tile.x - matrix.column, tile.y - matrix.row
        inside = matrix.columns[0] <= column <= matrix.columns[1] and matrix.rows[0] <= row <= matrix.rows[1]
        return self._url(matrix, column, row) if inside else None


def capabilities_url(url: str) -> str:
    """Return where the capabilities are: a document as it is, of a service a request for them."""
    parts = urlsplit(url)
    if parts.path.lower().endswith(".xml"):
        return url
    kept = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0].upper() not in _OWN]
    asked = {"SERVICE": "WMTS", "REQUEST": "GetCapabilities", "VERSION": "1.0.0"}
    return urlunsplit(parts._replace(query=urlencode([*kept, *asked.items()]), fragment=""))


def service_url(url: str) -> str:
    """Return the URL that a user gave with the key in its place.

    Raises:
        UsageError: no http, a placeholder but `{key}`, or the environment lacks the key.
    """
    check_scheme(url)
    if other := set(re.findall(r"\{([^{}]*)\}", url)) - {"key"}:
        raise UsageError(
            f"--type WMTS takes the address of the service or of its capabilities, without {{{min(other)}}}; a "
            "template of tiles is --type XYZ"
        )
    return url.replace("{key}", environment_key()) if "{key}" in url else url


def choose_layer(
    document: bytes,
    url: str,
    *,
    layer: str | None = None,
    style: str | None = None,
    matrix_set: str | None = None,
    tile_format: str | None = None,
    zooms: Collection[int] = (),
    dimensions: Mapping[str, str] | None = None,
) -> WmtsLayer:
    """Find a layer in the capabilities of a WMTS, and how its tiles of the XYZ grid are asked for.

    Args:
        document: The capabilities.
        url: Where they came from. LAYER, STYLE and TILEMATRIXSET in its query name what is not named otherwise;
            what else is in it, as a key, goes along with each request to the same host.
        layer: Which layer; None where there is one.
        style: Which style; None for the default one.
        matrix_set: Which matrix set; None for the first that has these zooms.
        tile_format: The format that is preferred, as `png`.
        zooms: Of the tiles that are wanted.
        dimensions: Values of dimensions, as `TIME`, by their names, whose case does not count. Others have that of
            the query, else the default one.

    Raises:
        DownloadError: it is no capabilities document, or one that breaks the rules.
        UsageError: there is no such layer, style, set, dimension or value, or none that is the grid. It lists what
            there is.
    """
    root = _parse(document, masked(url))
    contents = root.find("Contents")
    if root.tag == "ExceptionReport":
        raise DownloadError(f"{masked(url)} answers: {masked(' '.join(' '.join(root.itertext()).split()))[:200]}")
    if contents is None:
        raise DownloadError(f"{masked(url)} is no WMTS capabilities document: it has no Contents")
    named = {name.upper(): value for name, value in parse_qsl(urlsplit(url).query)}
    layers = {_text(each, "Identifier"): each for each in contents.findall("Layer")}
    name, chosen = _pick("layer", layers, layer or named.get("LAYER"))
    styles = {_text(each, "Identifier"): each for each in chosen.findall("Style")}
    default = next((key for key, each in styles.items() if each.get("isDefault") in ("true", "1")), None)
    wanted = style or named.get("STYLE") or default or next(iter(styles), "")
    if wanted and wanted not in styles:
        _pick("style", styles, wanted)
    found = _choose_set(contents, chosen, name, matrix_set or named.get("TILEMATRIXSET"), zooms)
    offered = [_bare(each.text) for each in chosen.findall("Format")]
    known = [each for each in offered if each.partition(";")[0].lower() in FORMATS]
    if not known:
        raise UsageError(f"layer {name} comes as {_list(offered)}; expected one of {_list(FORMATS)}")
    mime = next((each for each in known if _format(each) == tile_format), known[0])
    values = {"layer": name, "style": wanted, "tilematrixset": found.name, "format": mime}
    wished = {key.upper(): value for key, value in (dimensions or {}).items()}
    there = {_text(each, "Identifier"): each for each in chosen.findall("Dimension")}
    if unknown := wished.keys() - set(map(str.upper, there)):
        raise UsageError(f"layer {name} has no dimension {min(unknown)}; it has {_list(there)}")
    told = ""
    for key, each in there.items():
        value = wished.get(key.upper(), named.get(key.upper()))
        if value is not None:
            _check_value(key, value, each)
            told += f" {key}={value}"
        values[key.lower()] = value or _text(each, "Default") or _text(each, "Value")
    make = _template_of(root, chosen, mime, url, values)
    identity = f"WMTS {masked(url)} {name} {wanted} {found.name} {mime}{told}"
    return WmtsLayer(found, make, _format(mime), identity)


def _check_value(name: str, value: str, dimension: Element) -> None:
    """Refuse what a dimension does not have; what is in an interval, as `2001/2020/P1Y`, the server knows."""
    listed = [_bare(each.text) for each in dimension.findall("Value")]
    known = {*listed, _text(dimension, "Default"), *(["current"] if _text(dimension, "Current") == "true" else [])}
    if listed and value not in known and not any("/" in each for each in listed):
        raise UsageError(f"there is no {name} {value}; the server has {_list(listed)}")


# --- matrix sets --------------------------------------------------------------------------------------------


def _choose_set(
    contents: Element, layer: Element, name: str, wanted: str | None, zooms: Collection[int]
) -> MatrixSet:
    """Return a matrix set of a layer whose matrices are zooms of the grid."""
    links = {_text(each, "TileMatrixSet"): each for each in layer.findall("TileMatrixSetLink")}
    sets = {_text(each, "Identifier"): each for each in contents.findall("TileMatrixSet")}
    if wanted is not None:
        _pick("matrix set", {key: each for key, each in sets.items() if key in links}, wanted)
    there = [_matrix_set(sets[key], link) for key, link in links.items() if key in sets]
    fit = [each for each in there if each.matrices and wanted in (None, each.name)]
    if not fit:
        raise UsageError(
            f"layer {name} has no matrix set whose tiles are those of EPSG:3857, the grid of XYZ; there are "
            f"{_list(map(str, there))}"
        )
    return next((each for each in fit if each.matrices.keys() >= set(zooms)), fit[0])


def _matrix_set(element: Element, link: Element) -> MatrixSet:
    """Return a matrix set with those of its matrices that are zooms of the grid, cut to what the layer has."""
    crs = _text(element, "SupportedCRS")
    found = MatrixSet(_text(element, "Identifier"), crs)
    if not _is_web_mercator(crs):
        return found
    limits = {_text(each, "TileMatrix"): each for each in link.iter("TileMatrixLimits")}
    known = _text(element, "WellKnownScaleSet").endswith("GoogleMapsCompatible")
    for each in element.findall("TileMatrix"):
        if (fit := _fit(each, known=known)) is not None:
            zoom, matrix = fit
            limit = limits.get(matrix.name)
            if limits and limit is None:
                continue  # what is not in the list has no tile
            if limit is not None:
                matrix = matrix._replace(
                    columns=(int(_number(limit, "MinTileCol")), int(_number(limit, "MaxTileCol"))),
                    rows=(int(_number(limit, "MinTileRow")), int(_number(limit, "MaxTileRow"))),
                )
            found.matrices[zoom] = matrix
    return found


def _is_web_mercator(crs: str) -> bool:
    """Tell whether `EPSG:3857`, `urn:ogc:def:crs:EPSG::3857` or `http://.../EPSG/0/3857` is that of the grid."""
    match = re.search(r"(EPSG|ESRI)\W.*?(\d+)$", crs.strip(), re.I)
    return match is not None and f"{match[1]}:{match[2]}".upper() in WEB_MERCATOR


def _fit(element: Element, *, known: bool) -> tuple[int, Matrix] | None:
    """Return the zoom of which a matrix has the tiles, None where it has those of none.

    Args:
        element: The matrix.
        known: The set calls itself GoogleMapsCompatible: then its scales are those of the grid, however rounded.
    """
    side = _number(element, "TileWidth")
    span = _number(element, "ScaleDenominator") * PIXEL * side
    corner = _text(element, "TopLeftCorner").replace(",", " ").split()
    if len(corner) != 2 or not 1 <= side <= MAX_SIDE or span <= 0 or side != _number(element, "TileHeight"):
        return None
    slack = ROUNDED if known else EXACT
    zoom = next((zoom for zoom in range(MAX_ZOOM + 1) if abs(AROUND / 2**zoom / span - 1) < slack), None)
    if zoom is None:
        return None
    exact = AROUND / 2**zoom
    west, north = (_finite(value, "TopLeftCorner") for value in corner)
    column, row = (west + HALF) / exact, (HALF - north) / exact
    # Corners are rounded to metres, too.
    near = max(1 / 256, min(0.1, 1 / exact))
    if abs(column - round(column)) > near or abs(row - round(row)) > near:
        return None
    width, height = int(_number(element, "MatrixWidth")), int(_number(element, "MatrixHeight"))
    matrix = Matrix(_text(element, "Identifier"), round(column), round(row), (0, width - 1), (0, height - 1))
    return zoom, matrix


# --- addresses ----------------------------------------------------------------------------------------------


def _template_of(
    root: Element, layer: Element, mime: str, url: str, values: Mapping[str, str]
) -> Callable[[Matrix, int, int], str]:
    """Return what makes the URL of a tile: from the layer's own template, else from GetTile by parameters."""
    resources = [each for each in layer.findall("ResourceURL") if each.get("resourceType") == "tile"]
    fitting = [each for each in resources if each.get("format") == mime]
    if fitting:
        template = _own(fitting[0].get("template", ""), url)
        unknown = {name.lower() for name in re.findall(r"\{([^{}]*)\}", template)} - {
            *values, "tilematrix", "tilerow", "tilecol",
        }  # fmt: skip
        if unknown:
            raise DownloadError(f"the template of tiles has {{{min(unknown)}}}, and the layer no such dimension")
        return partial(_from_template, template, values)
    endpoint = _endpoint(root)
    if endpoint is None:
        raise DownloadError(f"{masked(url)} names no address for its tiles, neither ResourceURL nor GetTile")
    return partial(_from_parameters, _own(endpoint, url), values)


def _from_template(template: str, values: Mapping[str, str], matrix: Matrix, column: int, row: int) -> str:
    now = {**values, "tilematrix": matrix.name, "tilerow": str(row), "tilecol": str(column)}
    return re.sub(r"\{([^{}]*)\}", lambda match: quote(now[match[1].lower()], safe=":"), template)


def _from_parameters(endpoint: str, values: Mapping[str, str], matrix: Matrix, column: int, row: int) -> str:
    asked = {"SERVICE": "WMTS", "REQUEST": "GetTile", "VERSION": "1.0.0"}
    asked |= {name.upper(): value for name, value in values.items()}
    asked |= {"TILEMATRIX": matrix.name, "TILEROW": str(row), "TILECOL": str(column)}
    parts = urlsplit(endpoint)
    kept = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0].upper() not in asked]
    return urlunsplit(parts._replace(query=urlencode([*kept, *asked.items()])))


def _endpoint(root: Element) -> str | None:
    """Return where GetTile is asked with parameters."""
    for operation in root.iterfind("OperationsMetadata/Operation"):
        if operation.get("name") != "GetTile":
            continue
        for get in operation.iterfind("DCP/HTTP/Get"):
            encodings = {_bare(each.text).upper() for each in get.iter("Value")}
            if not encodings or "KVP" in encodings:
                return get.get("href")
    return None


def _own(address: str, url: str) -> str:
    """Return the address of tiles as it is asked: on the user's host by the user's scheme and with his parameters.

    Servers behind a proxy call themselves http, and leave out the key.

    Raises:
        DownloadError: it is no address.
    """
    try:
        theirs, ours = urlsplit(urljoin(url, address)), urlsplit(url)
        if theirs.scheme not in ("http", "https") or not theirs.hostname:
            raise ValueError
        plain = theirs.port is None
    except ValueError:
        raise DownloadError(f"the capabilities name {address[:80]!r} for tiles, which is no address") from None
    if theirs.hostname != ours.hostname:
        return urlunsplit(theirs)
    if ours.scheme == "https" and theirs.scheme == "http" and plain:
        theirs = theirs._replace(scheme="https")
    names = {name.upper() for name, _ in parse_qsl(theirs.query, keep_blank_values=True)} | _OWN
    more = [pair for pair in parse_qsl(ours.query, keep_blank_values=True) if pair[0].upper() not in names]
    query = "&".join(filter(None, [theirs.query.strip("&"), urlencode(more)]))
    if ours.username is not None and theirs.username is None:
        theirs = theirs._replace(netloc=f"{ours.netloc.rpartition('@')[0]}@{theirs.netloc}")
    return urlunsplit(theirs._replace(query=query))


# --- XML ----------------------------------------------------------------------------------------------------


def _parse(document: bytes, where: str) -> Element:
    """Return the root of a document, names without their namespaces.

    Raises:
        DownloadError: it is too large or too deep, has a document type, or is no XML.
    """
    if len(document) > MAX_BYTES:
        raise DownloadError(f"{where} has more than {MAX_BYTES >> 20} MiB")
    builder = TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise DownloadError(f"{where} is nested more than {MAX_DEPTH} deep")
        builder.start(_local(name), {_local(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_local(name))

    def refuse(*_: object) -> None:
        raise DownloadError(f"{where} has a document type, which capabilities have no need of")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(document, True)
        return builder.close()
    except expat.ExpatError as error:
        raise DownloadError(f"{where} is no XML document: {error}") from None


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _bare(text: str | None) -> str:
    return (text or "").strip()


def _text(element: Element, name: str) -> str:
    """Return the text of a child, empty where there is none."""
    return _bare(element.findtext(name))


def _number(element: Element, name: str) -> float:
    return _finite(_text(element, name), name)


def _finite(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e12:
        raise DownloadError(f"the capabilities have {name} {text[:40]!r}, which is no number")
    return value


def _format(mime: str) -> str:
    return FORMATS[mime.partition(";")[0].strip().lower()]


def _pick(what: str, there: Mapping[str, Element], wanted: str | None) -> tuple[str, Element]:
    """Return what was named, or the only one; raise `UsageError` with a list of what there is."""
    if wanted is None and len(there) == 1:
        return next(iter(there.items()))
    if wanted is not None and wanted in there:
        return wanted, there[wanted]
    asked = f"there is no {what} {wanted}" if wanted is not None else f"name a {what}"
    raise UsageError(f"{asked}; the server has {_list(there)}")


def _list(names: Collection[str] | Iterator[str]) -> str:
    every = [str(name) for name in names]
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return (", ".join(every[:LISTED]) or "none") + more


def _ranges(numbers: Collection[int]) -> str:
    """Return whole numbers as `0 to 19, 21`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in runs)
