"""How Kubeflow sees `review`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("review"), packages_to_install=[], install_kfp_package=False)
def correct(
    corrected: dsl.Output[dsl.Dataset],
    accepted: dsl.Output[dsl.Dataset],
    doubtful: dsl.Output[dsl.Dataset],
    changes: dsl.Input[dsl.Dataset] = None,
    changes_at: str = "",
    mapped: dsl.Input[dsl.Dataset] = None,
    mapped_at: str = "",
    decisions: dsl.Input[dsl.Artifact] = None,
    decisions_at: str = "",
    accept_worst: float = -1.0,
    crs: str = "",
    zoom: int = 18,
) -> None:
    """Correct a map by decisions on what `changes` found.

    Args:
        corrected: The map, corrected, GeoJSON, in degrees.
        accepted: The accepted objects that are real, GeoJSON: features to add to labels.
        doubtful: The tiles of doubtful objects as a cover, CSV. It may be empty.
        changes: What `changes` has written.
        changes_at: The same by address, in its place.
        mapped: The features of the map that it compared.
        mapped_at: The same by address, in its place.
        decisions: What was decided, as the page saves it; none if left out.
        decisions_at: The same by address, in its place.
        accept_worst: Accept this share of the objects, the worst, in percent; -1 for none.
        crs: The CRS of `mapped`, as EPSG:2154, whatever it says; empty for what it says.
        zoom: Zoom of the cover.
    """
    from rsp.components.artifacts import describe, named
    from rsp.components.reference import given
    from rsp.components.review.tool import review as tool

    result = tool(
        changes=given(changes, changes_at, "changes"),
        mapped=given(mapped, mapped_at, "mapped"),
        crs=crs or None,
        decisions=given(decisions, decisions_at, "decisions") if decisions or decisions_at else None,
        accept_worst=None if float(accept_worst) < 0 else float(accept_worst),
        corrected=named(corrected, ".geojson"),
        accepted=named(accepted, ".geojson"),
        doubtful=named(doubtful, ".csv"),
        zoom=int(zoom),
    )
    describe(corrected, "features", result)
    describe(accepted, "features", result)
    describe(doubtful, "cover", result)
