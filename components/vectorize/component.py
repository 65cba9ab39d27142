"""How Kubeflow sees `vectorize`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("vectorize"), packages_to_install=[], install_kfp_package=False)
def vectorize(
    masks: dsl.Input[dsl.Dataset],
    features: dsl.Output[dsl.Dataset],
    kind: str,
    config: str = "",
    min_area: float = 1.0,
    simplify: float = 1.0,
) -> None:
    """Extract features, as simplified GeoJSON polygons, from masks.

    Args:
        masks: Tile set of masks.
        features: GeoJSON, in degrees.
        kind: Title of the class.
        config: The configuration, TOML; empty where the masks tell their classes.
        min_area: Leave out what is smaller, in square metres.
        simplify: How far outlines may move, in pixels.
    """
    from rsp.components.artifacts import config_file, describe, named
    from rsp.components.vectorize.tool import vectorize as tool

    with config_file(config) as path:
        result = tool(
            masks.path,
            named(features, ".geojson"),
            kind=kind,
            config=path,
            min_area=float(min_area),
            simplify=float(simplify),
        )
    describe(features, "features", result)
