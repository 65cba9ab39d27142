"""How Kubeflow sees `subset`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("subset"), packages_to_install=[], install_kfp_package=False)
def subset(
    tiles: dsl.Input[dsl.Dataset],
    cover: dsl.Input[dsl.Dataset],
    subset: dsl.Output[dsl.Dataset],
) -> None:
    """Copy the tiles that a cover lists from a tile set into one of their own.

    Args:
        tiles: The tile set to take from.
        cover: The tiles to take, CSV.
        subset: The tile set of these tiles, PMTiles.
    """
    from pathlib import Path

    from rsp.components.artifacts import describe, named
    from rsp.components.subset.tool import subset as tool

    result = tool(Path(tiles.path), Path(cover.path), named(subset, ".pmtiles"), web_ui=False)
    describe(subset, "tiles", result)
