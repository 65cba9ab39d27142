"""How Kubeflow sees `subset`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("subset"), packages_to_install=[], install_kfp_package=False)
def subset(
    subset: dsl.Output[dsl.Dataset],
    subset_at: dsl.OutputPath(str),
    tiles: dsl.Input[dsl.Dataset] = None,
    tiles_at: str = "",
    cover: dsl.Input[dsl.Dataset] = None,
    cover_at: str = "",
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Copy the tiles that a cover lists from a tile set into one of their own.

    Args:
        subset: The tile set of these tiles, PMTiles.
        subset_at: Where it is, s3://bucket/key#etag; empty without `data_root`.
        tiles: The tile set to take from.
        tiles_at: The same by address, in its place.
        cover: The tiles to take, CSV.
        cover_at: The same by address, in its place.
        data_root: s3://bucket/prefix where the tile set goes; empty for an artifact.
        refresh: Any text; another one makes again what is there already.
    """
    from rsp.components.reference import Target, given
    from rsp.components.subset.tool import subset as tool

    source = given(tiles, tiles_at, "tiles")
    wanted = given(cover, cover_at, "cover")
    target = Target("subset", subset, subset_at, data_root, refresh, {"tiles": source, "cover": wanted})
    if not target.finished():
        target.finish("tiles", tool(source, wanted, target.out, resume=target.remote, web_ui=False))
