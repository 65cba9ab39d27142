"""How Kubeflow sees `download`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("download"), packages_to_install=[], install_kfp_package=False)
def download(
    cover: dsl.Input[dsl.Dataset],
    tiles: dsl.Output[dsl.Dataset],
    url: str,
    kind: str = "XYZ",
    rate: int = 10,
    timeout: int = 10,
    tile_format: str = "webp",
) -> None:
    """Download the tiles of a cover from a tile server.

    Credentials for the server come from a secret, as headers in the environment variable RSP_HTTP_HEADERS: a URL
    stands in the pipeline for all to read.

    Args:
        cover: The tiles to fetch, CSV.
        tiles: The tile set, PMTiles.
        url: URL of a tile, with placeholders, as `rsp download` takes it.
        kind: XYZ, WMS or TMS.
        rate: Requests a second at most.
        timeout: Seconds to wait for an answer.
        tile_format: What tiles are stored as.
    """
    from pathlib import Path

    from rsp.components.artifacts import describe, named
    from rsp.components.download.tool import download as tool

    result = tool(
        url,
        Path(cover.path),
        named(tiles, ".pmtiles"),
        kind=kind,
        rate=int(rate),
        timeout=int(timeout),
        tile_format=tile_format,
        web_ui=False,
    )
    describe(tiles, "tiles", result)
