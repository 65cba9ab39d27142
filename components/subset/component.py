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
    union: dsl.Input[dsl.Dataset] = None,
    union_at: str = "",
    intersection: dsl.Input[dsl.Dataset] = None,
    intersection_at: str = "",
    difference: dsl.Input[dsl.Dataset] = None,
    difference_at: str = "",
    zoom: str = "",
    tile_format: str = "",
    quality: int = 0,
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Copy tiles of a tile set into one of their own: those that a cover lists, joined with others, or converted.

    Args:
        subset: The tile set of these tiles, PMTiles.
        subset_at: Where it is, s3://bucket/key#etag; empty without `data_root`.
        tiles: The tile set to take from.
        tiles_at: The same by address, in its place.
        cover: The tiles to take, CSV; none for all of them.
        cover_at: The same by address, in its place.
        union: A tile set to take from what the first one lacks.
        union_at: The same by address, in its place.
        intersection: A cover or a tile set; only tiles that it has are taken.
        intersection_at: The same by address, in its place.
        difference: A cover or a tile set; tiles that it has are left out.
        difference_at: The same by address, in its place.
        zoom: The zooms to take, as `18`, `16,18` or `14-18`; empty for all.
        tile_format: png, jpg, webp or tif, to convert tiles to it; empty leaves them as they are.
        quality: Of jpg and webp, 1 to 100, to encode every tile again; 0 for none.
        data_root: s3://bucket/prefix where the tile set goes; empty for an artifact.
        refresh: Any text; another one makes again what is there already.
    """
    from rsp.components.reference import Target, given
    from rsp.components.subset.tool import subset as tool

    source = given(tiles, tiles_at, "tiles")
    wanted = given(cover, cover_at, "cover") if cover or cover_at else None
    more = given(union, union_at, "union") if union or union_at else None
    both = given(intersection, intersection_at, "intersection") if intersection or intersection_at else None
    without = given(difference, difference_at, "difference") if difference or difference_at else None
    what = {"tiles": source, "cover": wanted}
    # Those that were not given leave the name of what is made as it was before they were there.
    others = {
        "union": more, "intersection": both, "difference": without, "zoom": zoom, "format": tile_format,
        "quality": int(quality),
    }  # fmt: skip
    what |= {name: value for name, value in others.items() if value}
    target = Target("subset", subset, subset_at, data_root, refresh, what)
    if not target.finished():
        result = tool(
            source,
            wanted,
            target.out,
            union=more and [more],
            intersection=both and [both],
            difference=without and [without],
            zoom=zoom,
            tile_format=tile_format,
            quality=int(quality) or None,
            resume=target.remote,
            web_ui=False,
        )
        target.finish("tiles", result)
