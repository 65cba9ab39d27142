"""How Kubeflow sees `review`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("review"), packages_to_install=[], install_kfp_package=False)
def review_page(
    page: dsl.Output[dsl.HTML],
    changes: dsl.Input[dsl.Dataset] = None,
    changes_at: str = "",
    mapped: dsl.Input[dsl.Dataset] = None,
    mapped_at: str = "",
    images: dsl.Input[dsl.Dataset] = None,
    images_at: str = "",
    labels: dsl.Input[dsl.Dataset] = None,
    labels_at: str = "",
    masks: dsl.Input[dsl.Dataset] = None,
    masks_at: str = "",
    crs: str = "",
    worst: float = 15.0,
    embed: float = 8.0,
    title: str = "Review",
) -> None:
    """Make a page to review what `changes` found.

    Args:
        page: The page, HTML, with tiles inside.
        changes: What `changes` has written.
        changes_at: The same by address, in its place.
        mapped: The features of the map that it compared; none if left out.
        mapped_at: The same by address, in its place.
        images: Tile set of imagery to show; none if left out.
        images_at: The same by address, in its place.
        labels: Tile set of labels to show; none if left out.
        labels_at: The same by address, in its place.
        masks: Tile set of masks to show; none if left out.
        masks_at: The same by address, in its place.
        crs: The CRS of `mapped`, as EPSG:2154, whatever it says; empty for what it says.
        worst: Which share of the objects it shows, in percent: the worst.
        embed: Megabytes of tiles that it holds, those of the worst objects first.
        title: Its heading.
    """
    from rsp.components.artifacts import describe, named
    from rsp.components.reference import given
    from rsp.components.review.tool import review as tool

    def maybe(artifact: object, address: str, name: str) -> object:
        return given(artifact, address, name) if artifact or address else None

    shown = maybe(images, images_at, "images")
    result = tool(
        named(page, ".html"),
        changes=given(changes, changes_at, "changes"),
        mapped=maybe(mapped, mapped_at, "mapped"),
        crs=crs or None,
        images=None if shown is None else [shown],
        labels=maybe(labels, labels_at, "labels"),
        masks=maybe(masks, masks_at, "masks"),
        worst=float(worst),
        embed=float(embed),
        title=title,
    )
    describe(page, "page", result)


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
