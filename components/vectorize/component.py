"""How Kubeflow sees `vectorize`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("vectorize"), packages_to_install=[], install_kfp_package=False)
def vectorize(
    features: dsl.Output[dsl.Dataset],
    masks: dsl.Input[dsl.Dataset] = None,
    masks_at: str = "",
    kind: str = "building",
    config: dict = {},
    config_uri: str = "",
    min_area: float = 1.0,
    simplify: float = 1.0,
    regularize: str = "",
    lines: str = "",
    denoise: int = 0,
    grow: int = 0,
    merge_distance: float = 0.0,
    shared_borders: bool = False,
    probabilities: dsl.Input[dsl.Dataset] = None,
    probabilities_at: str = "",
) -> None:
    """Extract features, as simplified GeoJSON polygons or centre lines, from masks.

    Args:
        features: GeoJSON, in degrees.
        masks: Tile set of masks.
        masks_at: The same by address, in its place.
        kind: Title of the class, or of several, separated by commas.
        config: The configuration: the tables of `config.toml`; empty where the masks tell their classes.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
        min_area: Leave out what is smaller, in square metres.
        simplify: How far outlines may move, in pixels.
        regularize: Title of the class, or of several, whose outlines get right angles.
        lines: Title of the class, or of several, whose features are centre lines, as of roads.
        denoise: Remove what is narrower, in pixels.
        grow: Fill gaps and holes that are narrower, in pixels.
        merge_distance: Join features that are no farther apart than so many metres on the ground.
        shared_borders: Simplify all classes together: features that touch still do, and none overlap.
        probabilities: Tile set of the probabilities that were predicted with the masks: features have their mean.
        probabilities_at: The same by address, in its place.
    """
    from rsp.components.artifacts import config_file, describe, named
    from rsp.components.reference import given
    from rsp.components.vectorize.tool import vectorize as tool

    wanted = probabilities or probabilities_at
    with config_file(config, config_uri) as path:
        result = tool(
            given(masks, masks_at, "masks"),
            named(features, ".geojson"),
            kind=kind,
            config=path,
            min_area=float(min_area),
            simplify=float(simplify),
            regularize=regularize or None,
            lines=lines or None,
            denoise=int(denoise),
            grow=int(grow),
            merge_distance=float(merge_distance),
            shared_borders=shared_borders,
            probabilities=given(probabilities, probabilities_at, "probabilities") if wanted else None,
        )
    describe(features, "features", result)


@dsl.component(base_image=image("vectorize"), packages_to_install=[], install_kfp_package=False)
def vectorize_block(
    masks_at: str,
    seen_at: str,
    data_root: str,
    kind: str = "building",
    config: dict = {},
    config_uri: str = "",
    min_area: float = 1.0,
    simplify: float = 1.0,
    regularize: bool = False,
    shared_borders: bool = False,
    probabilities_at: str = "",
    refresh: str = "",
) -> str:
    """Extract the features of a block: those that are whole, and the pieces of those that go on in other blocks.

    Args:
        masks_at: Tile set of the block's masks: s3://bucket/key#etag.
        seen_at: Cover of the block and the tiles around it: s3://bucket/key#etag.
        data_root: s3://bucket/prefix where the result goes.
        kind: Title of the class.
        config: The configuration: the tables of `config.toml`; empty where the masks tell their classes.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
        min_area: Leave out what is smaller, in square metres.
        simplify: How far outlines may move, in pixels.
        regularize: Whether outlines get right angles.
        shared_borders: Whether all classes are simplified together: what touches still does, and nothing overlaps.
        probabilities_at: Tile set of the block's probabilities, as `masks_at`; empty where none are wanted.
        refresh: Any text; another one makes again what is there already.

    Returns:
        Where the result is, for `join`: s3://bucket/key#etag.
    """
    from rsp.components.artifacts import config_file
    from rsp.components.vectorize.step import part_of_block

    with config_file(config, config_uri) as path:
        return part_of_block(
            masks_at,
            seen_at,
            data_root,
            refresh,
            kind=kind,
            config=path,
            min_area=float(min_area),
            simplify=float(simplify),
            regularize=regularize,
            shared_borders=shared_borders,
            probabilities_at=probabilities_at,
        )


@dsl.component(base_image=image("vectorize"), packages_to_install=[], install_kfp_package=False)
def join(
    features: dsl.Output[dsl.Dataset],
    failed: dsl.Output[dsl.Dataset],
    absent: dsl.Output[dsl.Dataset],
    parts: list,
) -> None:
    """Join the features of blocks to one set, the same that `vectorize` makes of all masks at once.

    Args:
        features: GeoJSON, in degrees.
        failed: The tiles of all blocks that could not be downloaded or predicted, as a cover.
        absent: The tiles of all blocks that the tile server does not have, as a cover.
        parts: What `vectorize_block` returned for each block.
    """
    from rsp.components.artifacts import describe, named
    from rsp.components.vectorize.join import join as tool
    from rsp.components.vectorize.join import without_mask
    from rsp.components.vectorize.parts import Part
    from rsp.shared.locations import location

    found = [Part(location(part)) for part in parts]
    for name, cover in (("failed", failed), ("absent", absent)):
        count = without_mask(found, name, named(cover, ".csv"))
        cover.metadata.update({"rsp_kind": "cover", "tiles": count})
    describe(features, "features", tool(found, named(features, ".geojson")))
