"""How Kubeflow sees `extract`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("extract"), packages_to_install=[], install_kfp_package=False)
def extract(
    features: dsl.Output[dsl.Dataset],
    pbf: str,
    kind: str = "building",
    tags: str = "",
    width: str = "",
    bbox: str = "",
    poly: str = "",
    clip: bool = False,
    changes: str = "",
    with_hidden: bool = False,
) -> None:
    """Extract features from OpenStreetMap data.

    Args:
        features: The features, GeoJSON in degrees.
        pbf: Path or s3://bucket/key of the OpenStreetMap data (.osm.pbf, .osm, .o5m or .opl).
        kind: building, road, parking, a plug-in, or module:attribute; several with commas; may be empty with tags.
        tags: Filters of tags, as class:key=value,value; several with semicolons.
        width: Metres of lines that the tags find, or of each class, as rail=4;river=12; areas where it is empty.
        bbox: Only what meets west,south,east,north, in degrees.
        poly: Only what meets this area: path or s3://bucket/key of a .poly file, or of GeoJSON in degrees.
        clip: Cut features off at the boundary.
        changes: Change files (.osc) to apply to the data first, as pbf; several with semicolons.
        with_hidden: Also take what cannot be seen from above, such as roads in tunnels and underground buildings.
    """
    from rsp.components.artifacts import describe, named
    from rsp.components.extract.tool import extract as tool
    from rsp.components.extract.tool import listed, widths_of
    from rsp.shared.locations import location

    result = tool(
        location(pbf),
        named(features, ".geojson"),
        kind=kind,
        tags=listed(tags),
        width=widths_of(listed(width)) if width else None,
        bbox=bbox or None,
        poly=location(poly) if poly else None,
        clip=clip,
        changes=[location(each) for each in listed(changes)],
        with_hidden=with_hidden,
    )
    describe(features, "features", result)
