"""How Kubeflow sees `cover`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("cover"), packages_to_install=[], install_kfp_package=False)
def cover(
    cover: dsl.Output[dsl.Dataset],
    source: str,
    kind: str = "bbox",
    zoom: int = 18,
    crs: str = "",
    pg: str = "",
    out_format: str = "cover",
    union: bool = False,
    max_tiles: int = 10_000_000,
    layer: str = "",
) -> None:
    """Make a tile cover from a bounding box, features, rasters, a tile set, another cover or a query.

    Args:
        cover: The cover, CSV.
        source: As `rsp cover` takes it: numbers, a path or s3://bucket/key, a pattern of either, or a SELECT.
        kind: bbox, geojson, raster, dir, cover or sql.
        zoom: Zoom of the cover.
        crs: CRS of the source, as EPSG:2154; empty for what it says.
        pg: How to connect to PostGIS, without a password; empty for what the environment of the step says.
        out_format: cover, extent or geojson.
        union: Of geojson, one outline around all tiles that touch.
        max_tiles: Refuse to make a cover of more tiles.
        layer: Layer of the features, where their file has several.
    """
    from rsp.components.artifacts import describe, named
    from rsp.components.cover.tool import cover as tool

    result = tool(
        source,
        [named(cover, ".geojson" if out_format == "geojson" else ".csv")],
        kind=kind,
        zoom=zoom,
        crs=crs or None,
        pg=pg or None,
        out_format=out_format,
        union=bool(union),
        max_tiles=int(max_tiles),
        layer=layer or None,
    )
    describe(cover, "features" if out_format == "geojson" else out_format, result)


@dsl.component(base_image=image("cover"), packages_to_install=[], install_kfp_package=False)
def split(
    training: dsl.Output[dsl.Dataset],
    validation: dsl.Output[dsl.Dataset],
    tiles: dsl.Input[dsl.Dataset] = None,
    tiles_at: str = "",
    share: int = 70,
    seed: int = 0,
    block: int = 1,
    stable: bool = False,
) -> None:
    """Split the tiles of a tile set into a training and a validation cover.

    Args:
        training: The cover of `share` percent of the tiles, CSV.
        validation: The cover of the rest, CSV.
        tiles: A tile set.
        tiles_at: The same by address, in its place.
        share: Percentage that goes to training.
        seed: Seed of the shuffle.
        block: Side in tiles of the squares that stay together.
        stable: Let a hash of its place decide where a block goes, so that tiles that come later move none.
    """
    from rsp.components.artifacts import describe, named
    from rsp.components.cover.tool import cover as tool
    from rsp.components.reference import given

    result = tool(
        str(given(tiles, tiles_at, "tiles")),
        [named(training, ".csv"), named(validation, ".csv")],
        kind="dir",
        splits=[int(share), 100 - int(share)],
        seed=int(seed),
        block=int(block),
        stable=bool(stable),
    )
    describe(training, "cover", result)
    describe(validation, "cover", result)


@dsl.component(base_image=image("cover"), packages_to_install=[], install_kfp_package=False)
def blocks(cover: dsl.Input[dsl.Dataset], data_root: str, size: int = 20_000, at_once: int = 1) -> list:
    """Cut a cover into blocks that can be worked on at the same time.

    Args:
        cover: The cover, CSV.
        data_root: s3://bucket/prefix where the covers of the blocks go.
        size: How many tiles a block may have.
        at_once: How many blocks may be worked on at the same time.

    Returns:
        For each block the addresses of two covers, `own`, its tiles, and `seen`, these and the tiles around them;
        and `at_once`, how many blocks are worked on at the same time.
    """
    from pathlib import Path

    from rsp.components.cover.blocks import listed

    return listed(Path(cover.path), data_root, size=int(size), at_once=int(at_once))
