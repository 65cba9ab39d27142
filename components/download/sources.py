"""Where tiles come from: the template of a URL, or a layer of a WMTS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from rsp.shared.credentials import masked
from rsp.shared.errors import DownloadError, UsageError
from rsp.shared.tiles import Tile
from rsp.shared.tileserver import Client, FetchError
from rsp.shared.tileurl import TileTemplate, subdomains_of
from rsp.shared.wmts import capabilities_url, choose_layer, service_url

ServerKind = Literal["XYZ", "WMS", "TMS", "WMTS"]


class Source(Protocol):
    """Where tiles come from.

    Attributes:
        identity: Names it, without credentials.
    """

    identity: str

    def check_zooms(self, zooms: Sequence[int]) -> None:
        """Raise `UsageError` where it has no tiles of these zooms."""

    def url_of(self, tile: Tile) -> str | None:
        """Return the URL of a tile; None where it is known that there is none."""


def find_source(
    url: str,
    kind: ServerKind,
    zooms: Sequence[int],
    *,
    subdomains: str,
    tile_format: str,
    rate: float,
    timeout: int,
    dimensions: Sequence[str] = (),
    **chosen: str | None,
) -> Source:
    """Return the source that a URL names; that of a WMTS is asked for its capabilities.

    Args:
        url: As `download` takes it.
        kind: What kind of server it is.
        zooms: Of the tiles that are wanted.
        subdomains: What `{s}` may be.
        tile_format: The format that is preferred; empty for any.
        rate: Requests a second.
        timeout: Seconds to wait.
        dimensions: `NAME=VALUE` of a WMTS.
        chosen: `layer`, `style` and `matrix_set` of a WMTS.

    Raises:
        UsageError: the URL cannot be that of a tile, or the server has not what is asked for.
        DownloadError: the capabilities cannot be read.
    """
    names = subdomains_of(subdomains)
    wished = _parse_dimensions(dimensions)
    if kind != "WMTS":
        if given := [name for name, value in chosen.items() if value]:
            raise UsageError(f"--{given[0]} is for --type WMTS; a WMS names its layers in the URL")
        if wished:
            raise UsageError(f"--dimension is for --type WMTS; a WMS has {min(wished)}=... in the URL")
        source: Source = TileTemplate(url, kind, names)
    else:
        url = service_url(url)
        with Client(rate, timeout, 1) as client:
            try:
                answer = client.fetch(capabilities_url(url))
            except FetchError as error:
                raise DownloadError(f"cannot read the capabilities of {masked(url)}: {error}") from None
        source = choose_layer(
            answer.body, url, tile_format=tile_format, zooms=zooms, dimensions=wished, **chosen
        )  # fmt: skip
    source.check_zooms(zooms)
    return source


def _parse_dimensions(entries: Sequence[str]) -> dict[str, str]:
    """Return the values of `NAME=VALUE` by their names in capitals; raise `UsageError`."""
    found: dict[str, str] = {}
    for entry in entries:
        name, _, value = (part.strip() for part in entry.partition("="))
        if not name or not value or name.upper() in found:
            raise UsageError(f"--dimension is NAME=VALUE, as TIME=2020-06-01, each name once; got {entry!r}")
        found[name.upper()] = value
    return found
