"""How Kubeflow sees `extract`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("extract"), packages_to_install=[], install_kfp_package=False)
def extract(
    features: dsl.Output[dsl.Dataset],
    pbf: str,
    kind: str = "building",
    with_hidden: bool = False,
) -> None:
    """Extract features from OpenStreetMap data.

    Args:
        features: The features, GeoJSON in degrees.
        pbf: Path or s3://bucket/key of the OpenStreetMap data (.osm.pbf, .osm, .o5m or .opl).
        kind: building, road, a plug-in, or module:attribute.
        with_hidden: Also take what cannot be seen from above, such as roads in tunnels and underground buildings.
    """
    from rsp.components.artifacts import describe, named
    from rsp.components.extract.tool import extract as tool
    from rsp.shared.locations import location

    result = tool(location(pbf), named(features, ".geojson"), kind=kind, with_hidden=with_hidden)
    describe(features, "features", result)
