"""How Kubeflow sees `rasterize`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("rasterize"), packages_to_install=[], install_kfp_package=False)
def rasterize(
    labels: dsl.Output[dsl.Dataset],
    labels_at: dsl.OutputPath(str),
    cover: dsl.Input[dsl.Dataset] = None,
    cover_at: str = "",
    images: dsl.Input[dsl.Dataset] = None,
    images_at: str = "",
    features: dsl.Input[dsl.Dataset] = None,
    features_at: str = "",
    layers: dict = {},
    postgis: str = "",
    queries: dict = {},
    config: dict = {},
    config_uri: str = "",
    layer: str = "",
    kind: str = "",
    type_field: str = "",
    order: str = "",
    buffer: float = 0.0,
    all_touched: bool = False,
    borders: str = "",
    border_type: str = "border",
    tile_size: int = 0,
    crs: str = "",
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Rasterize polygons, of files or of PostGIS queries, to label tiles.

    Args:
        labels: The labels, PMTiles of paletted PNG.
        labels_at: Where they are, s3://bucket/key#etag; empty without `data_root`.
        cover: The cover of the labels, CSV.
        cover_at: The same by address, in its place.
        images: Tiles whose side the labels get, where `tile_size` is 0.
        images_at: The same by address, in its place.
        features: The features, GeoJSON or another format of vectors.
        features_at: Path of the features, a glob pattern, s3://bucket/key, or a URL, in place of `features`.
        layers: The same of several classes, as {"building": "s3://bucket/roofs.json"}, in place of `features`.
        postgis: SQL that selects the polygons, in place of `features`.
        queries: The same of several classes, as {"building": "SELECT geom FROM roofs"}.
        config: The configuration: the tables of `config.toml`.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
        layer: Layer of the files, of several.
        kind: Title of the class that the polygons are; empty for the one class beside the background.
        type_field: Property whose value is the title of the class of each feature.
        order: Titles of classes from the lowest to the highest; empty for the order of the configuration.
        buffer: Metres on the ground by which the polygons are widened, or shrunk below 0.
        all_touched: Burn every pixel that a polygon touches.
        borders: Metres on the ground: what is no farther from two features becomes a border; or CLASS=METRES.
        border_type: Title of the class that borders get.
        tile_size: Side of a tile in pixels; 0 for that of `images`, without them the configuration's.
        crs: CRS of the features, as EPSG:2154; empty for what the file says.
        data_root: s3://bucket/prefix where the tile set goes; empty for an artifact.
        refresh: Any text; another one makes again what is there already.
    """
    from datetime import UTC, datetime

    from rsp.components.artifacts import config_file, read_config
    from rsp.components.rasterize.tool import rasterize as tool
    from rsp.components.reference import Target, content, given, side_of

    wanted = given(cover, cover_at, "cover")
    selects = [postgis] if postgis else [f"{title}={text}" for title, text in queries.items()]
    if selects:
        files = []
    elif layers:
        files = [f"{title}={path}" for title, path in layers.items()]
    else:
        files = [features_at or str(given(features, features_at, "features"))]
    meaning = {
        "layer": layer or None,
        "kind": kind or None,
        "type_field": type_field or None,
        "order": order or None,
        "buffer": float(buffer),
        "all_touched": all_touched,
        "borders": borders or None,
        "border_type": border_type,
        "tile_size": int(tile_size) or side_of(images, images_at),
        "crs": crs or None,
    }
    what = {
        "cover": wanted,
        "features": [content(path) for path in layers.values()] if layers else [content(path) for path in files],
        "files": list(layers),
        # What a query finds today nobody knows before.
        "query": [selects, datetime.now(UTC).isoformat()] if selects else None,
        "config": read_config(config, config_uri),
        **meaning,
    }
    target = Target("rasterize", labels, labels_at, data_root, refresh, what)
    if not target.finished():
        with config_file(config, config_uri) as settings:
            result = tool(
                wanted,
                target.out,
                geojson=files or None,
                postgis=selects or None,
                config=settings,
                **meaning,
                resume=target.remote,
                web_ui=False,
            )
        target.finish("labels", result)
