"""How Kubeflow sees `tile`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("tile"), packages_to_install=[], install_kfp_package=False)
def tile(
    tiles: dsl.Output[dsl.Dataset],
    tiles_at: dsl.OutputPath(str),
    raster: str,
    zoom: int = 18,
    kind: str = "image",
    cover: dsl.Input[dsl.Dataset] = None,
    cover_at: str = "",
    config: dict = {},
    config_uri: str = "",
    tile_size: int = 0,
    tile_format: str = "",
    bands: list = [],
    value_range: list = [],
    percentiles: list = [],
    no_data: str = "",
    nodata_threshold: float = 0,
    keep_borders: bool = False,
    max_tiles: int = 10_000_000,
    attribution: str = "",
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Cut a georeferenced raster into tiles.

    Args:
        tiles: The tile set, PMTiles.
        tiles_at: Where it is, s3://bucket/key#etag; empty without `data_root`.
        raster: Path, s3://bucket/key, glob pattern of either, or URL of the raster, or of several that make one
            mosaic.
        zoom: Zoom of the tiles.
        kind: image, or label for one band of class indices.
        cover: Cut only these tiles, CSV.
        cover_at: The same by address, in its place.
        config: The configuration: the tables of `config.toml`; it says how large tiles are, and names the
            classes of labels.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
        tile_size: Side of a tile in pixels; 0 for the configuration's, 512 where there is none.
        tile_format: What tiles are stored as; empty for what suits the raster.
        bands: Bands to take, as [3, 2, 1]; empty for all but alpha.
        value_range: What becomes 0 and 255, where values are scaled: [0, 4095], or two numbers for each band;
            empty for what the values suggest.
        percentiles: Scale each band from one percentile of its values to another, as [2, 98]; empty for
            `value_range`.
        no_data: Drop tiles of which a whole border has this value; empty keeps them.
        nodata_threshold: Drop tiles of which at least so many percent are no data; 0 keeps them.
        keep_borders: Keep tiles in spite of their borders: then `no_data` counts for `nodata_threshold` alone.
        max_tiles: Refuse to make more tiles.
        attribution: Whose the imagery is, as its licence asks for it; may hold links.
        data_root: s3://bucket/prefix where the tile set goes; empty for an artifact.
        refresh: Any text; another one makes again what is there already.
    """
    from rsp.components.artifacts import config_file, read_config
    from rsp.components.reference import Target, content, given
    from rsp.components.tile.tool import tile as tool
    from rsp.shared.config import parse_config

    source = content(raster)
    tables = read_config(config, config_uri)
    size = int(tile_size) or (parse_config(tables).model.side if tables else 512)
    wanted = given(cover, cover_at, "cover") if cover or cover_at else None
    what = {
        "raster": source,
        "zoom": zoom,
        "kind": kind,
        "cover": wanted,
        "config": tables if kind == "label" else {},
        "tile_size": size,
        "tile_format": tile_format,
    }
    options = {
        "bands": [int(band) for band in bands] or None,
        "value_range": [float(value) for value in value_range] or None,
        "percentiles": [float(value) for value in percentiles] or None,
        "no_data": float(no_data) if no_data else None,
        "nodata_threshold": float(nodata_threshold) or None,
        "keep_borders": keep_borders,
        "attribution": attribution or None,
    }
    # What nobody asks for is no part of what names the output: it stays what it was.
    what |= {name: value for name, value in options.items() if value is not None and value is not False}
    target = Target("tile", tiles, tiles_at, data_root, refresh, what)
    if not target.finished():
        with config_file(config, config_uri) as path:
            result = tool(
                [raster],
                target.out,
                zoom=int(zoom),
                kind=kind,
                config=path,
                tile_size=size,
                tile_format=tile_format or None,
                cover=wanted,
                max_tiles=int(max_tiles),
                resume=target.remote,
                web_ui=False,
                **{name: value for name, value in options.items() if value is not None},
            )
        target.finish("tiles", result)
