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
) -> None:
    """Extract features, as simplified GeoJSON polygons, from masks.

    Args:
        features: GeoJSON, in degrees.
        masks: Tile set of masks.
        masks_at: The same by address, in its place.
        kind: Title of the class.
        config: The configuration: the tables of `config.toml`; empty where the masks tell their classes.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
        min_area: Leave out what is smaller, in square metres.
        simplify: How far outlines may move, in pixels.
    """
    from rsp.components.artifacts import config_file, describe, named
    from rsp.components.reference import given
    from rsp.components.vectorize.tool import vectorize as tool

    with config_file(config, config_uri) as path:
        result = tool(
            given(masks, masks_at, "masks"),
            named(features, ".geojson"),
            kind=kind,
            config=path,
            min_area=float(min_area),
            simplify=float(simplify),
        )
    describe(features, "features", result)
