"""How Kubeflow sees `extract`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("extract"), packages_to_install=[], install_kfp_package=False)
def extract(
    features: dsl.Output[dsl.Dataset],
    pbf: str,
    kind: str,
) -> None:
    """Extract features from OpenStreetMap data.

    Args:
        features: The features, GeoJSON in degrees.
        pbf: Path of the OpenStreetMap data (.osm.pbf).
        kind: building, road, a plug-in, or module:attribute.
    """
    from pathlib import Path

    from rsp.components.artifacts import describe, named
    from rsp.components.extract.tool import extract as tool

    result = tool(Path(pbf), named(features, ".geojson"), kind=kind)
    describe(features, "features", result)
