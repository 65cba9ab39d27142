"""How Kubeflow sees `tile`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("tile"), packages_to_install=[], install_kfp_package=False)
def tile(
    tiles: dsl.Output[dsl.Dataset],
    raster: str,
    zoom: int,
    kind: str = "image",
    config: str = "",
    tile_size: int = 512,
    max_tiles: int = 10_000_000,
) -> None:
    """Cut a georeferenced raster into tiles.

    Args:
        tiles: The tile set, PMTiles.
        raster: Path, glob pattern or URL of the raster, or of several that make one mosaic.
        zoom: Zoom of the tiles.
        kind: image, or label for one band of class indices.
        config: The configuration (TOML), which names the classes of labels.
        tile_size: Side of a tile in pixels.
        max_tiles: Refuse to make more tiles.
    """
    from rsp.components.artifacts import config_file, describe, named
    from rsp.components.tile.tool import tile as tool

    with config_file(config) as path:
        result = tool(
            [raster],
            named(tiles, ".pmtiles"),
            zoom=int(zoom),
            kind=kind,
            config=path,
            tile_size=int(tile_size),
            max_tiles=int(max_tiles),
            web_ui=False,
        )
    describe(tiles, "tiles", result)
