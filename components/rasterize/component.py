"""How Kubeflow sees `rasterize`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("rasterize"), packages_to_install=[], install_kfp_package=False)
def rasterize(
    cover: dsl.Input[dsl.Dataset],
    labels: dsl.Output[dsl.Dataset],
    config: str,
    features: str,
    kind: str = "",
    tile_size: int = 0,
    crs: str = "",
) -> None:
    """Rasterize the polygons of a GeoJSON file to label tiles.

    Args:
        cover: The cover of the labels, CSV.
        labels: The labels, PMTiles of paletted PNG.
        config: The configuration, as TOML text.
        features: Path of the GeoJSON, or a glob pattern.
        kind: Title of the class that the polygons are; empty for the one class beside the background.
        tile_size: Side of a tile in pixels; 0 for the configuration's.
        crs: CRS of the features, as EPSG:2154; empty for what the file says.
    """
    from pathlib import Path

    from rsp.components.artifacts import config_file, describe, named
    from rsp.components.rasterize.tool import rasterize as tool

    with config_file(config) as settings:
        result = tool(
            Path(cover.path),
            named(labels, ".pmtiles"),
            geojson=features,
            config=settings,
            kind=kind or None,
            tile_size=int(tile_size) or None,
            crs=crs or None,
            web_ui=False,
        )
    describe(labels, "labels", result)
