"""How Kubeflow sees `download`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("download"), packages_to_install=[], install_kfp_package=False)
def download(
    tiles: dsl.Output[dsl.Dataset],
    tiles_at: dsl.OutputPath(str),
    failed: dsl.Output[dsl.Dataset],
    url: str,
    cover: dsl.Input[dsl.Dataset] = None,
    cover_at: str = "",
    kind: str = "XYZ",
    layer: str = "",
    style: str = "",
    matrix_set: str = "",
    dimension: list = [],
    subdomains: str = "abc",
    rate: float = 10.0,
    timeout: int = 10,
    tile_format: str = "",
    max_failed: float = 0.0,
    allow_empty: bool = False,
    at_once: int = 1,
    attribution: str = "",
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Download the tiles of a cover from a tile server.

    Credentials for the server come from a secret: a URL stands in the pipeline for all to read. `{key}` in it is
    replaced by the environment variable RSP_HTTP_KEY, and RSP_HTTP_HEADERS holds headers.

    Args:
        tiles: The tile set, PMTiles.
        tiles_at: Where it is, s3://bucket/key#etag; empty without `data_root`.
        failed: The tiles that could not be fetched, as a cover.
        url: URL of a tile, with placeholders, as `rsp download` takes it.
        cover: The tiles to fetch, CSV.
        cover_at: The same by address, in its place.
        kind: XYZ, WMS, TMS or WMTS.
        layer: Layer of a WMTS; empty where it has one, or the URL names it as LAYER.
        style: Style of a WMTS; empty for the default one.
        matrix_set: Matrix set of a WMTS; empty for the first that is the grid of XYZ.
        dimension: Values of dimensions of a WMTS, as ["TIME=2020-06-01"].
        subdomains: What {s} in the URL may be: letters, or names with commas between them.
        rate: Requests a second at most, of all steps that download at once; may be a fraction.
        timeout: Seconds to wait for an answer.
        tile_format: What tiles are stored as; empty for what the server sends.
        max_failed: The share of failed tiles, 0 to 1, that is no failure of the step.
        allow_empty: The server may have none of the tiles: the tile set is empty then.
        at_once: How many such steps may be under way at once. Each takes its share of `rate`.
        attribution: Whose the imagery is, as its licence asks for it; may hold links.
        data_root: s3://bucket/prefix where the tile set goes; empty for an artifact.
        refresh: Any text; another one makes again what is there already.
    """
    from rsp.components.download.tool import download as tool
    from rsp.components.reference import Target, given

    wanted = given(cover, cover_at, "cover")
    chosen = {"layer": layer, "style": style, "matrix_set": matrix_set, "subdomains": subdomains}
    if dimension:
        chosen["dimension"] = dimension
    if attribution:
        chosen["attribution"] = attribution
    what = {"url": url, "cover": wanted, "kind": kind, "tile_format": tile_format, **chosen}
    target = Target("download", tiles, tiles_at, data_root, refresh, what, failed)
    if not target.finished(max_failed):
        result = tool(
            url,
            wanted,
            target.out,
            kind=kind,
            layer=layer or None,
            style=style or None,
            matrix_set=matrix_set or None,
            dimension=dimension,
            subdomains=subdomains,
            rate=float(rate) / max(1, int(at_once)),
            timeout=int(timeout),
            tile_format=tile_format,
            allow_empty=bool(allow_empty),
            attribution=attribution,
            web_ui=False,
        )
        target.finish("tiles", result, max_failed)
