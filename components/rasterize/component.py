"""How Kubeflow sees `rasterize`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("rasterize"), packages_to_install=[], install_kfp_package=False)
def rasterize(
    labels: dsl.Output[dsl.Dataset],
    labels_at: dsl.OutputPath(str),
    cover: dsl.Input[dsl.Dataset] = None,
    cover_at: str = "",
    features: dsl.Input[dsl.Dataset] = None,
    features_at: str = "",
    postgis: str = "",
    config: dict = {},
    config_uri: str = "",
    kind: str = "",
    tile_size: int = 0,
    crs: str = "",
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Rasterize polygons, of a GeoJSON file or of a PostGIS query, to label tiles.

    Args:
        labels: The labels, PMTiles of paletted PNG.
        labels_at: Where they are, s3://bucket/key#etag; empty without `data_root`.
        cover: The cover of the labels, CSV.
        cover_at: The same by address, in its place.
        features: The GeoJSON.
        features_at: Path of the GeoJSON, a glob pattern, or s3://bucket/key, in place of `features`.
        postgis: SQL that selects the polygons, in place of `features`.
        config: The configuration: the tables of `config.toml`.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
        kind: Title of the class that the polygons are; empty for the one class beside the background.
        tile_size: Side of a tile in pixels; 0 for the configuration's.
        crs: CRS of the features, as EPSG:2154; empty for what the file says.
        data_root: s3://bucket/prefix where the tile set goes; empty for an artifact.
        refresh: Any text; another one makes again what is there already.
    """
    from datetime import UTC, datetime

    from rsp.components.artifacts import config_file, read_config
    from rsp.components.rasterize.tool import rasterize as tool
    from rsp.components.reference import Target, content, given

    wanted = given(cover, cover_at, "cover")
    polygons = None if postgis else features_at or str(given(features, features_at, "features"))
    what = {
        "cover": wanted,
        "features": None if polygons is None else content(polygons),
        # What a query finds today nobody knows before.
        "query": [postgis, datetime.now(UTC).isoformat()] if postgis else None,
        "config": read_config(config, config_uri),
        "kind": kind,
        "tile_size": tile_size,
        "crs": crs,
    }
    target = Target("rasterize", labels, labels_at, data_root, refresh, what)
    if not target.finished():
        with config_file(config, config_uri) as settings:
            result = tool(
                wanted,
                target.out,
                geojson=polygons,
                postgis=postgis or None,
                config=settings,
                kind=kind or None,
                tile_size=int(tile_size) or None,
                crs=crs or None,
                resume=target.remote,
                web_ui=False,
            )
        target.finish("labels", result)
