"""How Kubeflow sees `changes`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("changes"), packages_to_install=[], install_kfp_package=False)
def changes(
    changes: dsl.Output[dsl.Dataset],
    suspects: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    evaluation: dsl.Output[dsl.Artifact],
    mapped: dsl.Input[dsl.Dataset] = None,
    mapped_at: str = "",
    predicted: dsl.Input[dsl.Dataset] = None,
    predicted_at: str = "",
    masks: dsl.Input[dsl.Dataset] = None,
    masks_at: str = "",
    probabilities: dsl.Input[dsl.Dataset] = None,
    probabilities_at: str = "",
    kind: str = "",
    config: dict = {},
    config_uri: str = "",
    crs: str = "",
    iou: float = 0.5,
    max_offset: float = 10.0,
    worst: float = 15.0,
    zoom: int = -1,
    max_failed: float = 0.0,
) -> None:
    """Match the objects of a map with those that are predicted, and rank them: the most suspicious first.

    Args:
        changes: What became of each object, GeoJSON, in degrees; the worst first.
        suspects: The tiles of the worst objects as a cover, CSV, with reason and score. It may be empty.
        metrics: Precision, recall and F1 of objects, and boundary IoU.
        evaluation: The same by IoU, and numbers and areas by status, JSON.
        mapped: Features of the map, or of the older date.
        mapped_at: The same by address, in its place.
        predicted: Features that are predicted, or of the newer date; or a tile set of masks.
        predicted_at: The same by address, in its place.
        masks: Tile set of masks: its tiles are where anything can be said. Those of `predicted` if left out.
        masks_at: The same by address, in its place.
        probabilities: Tile set of probabilities: uint8, a band for each class.
        probabilities_at: The same by address, in its place.
        kind: Title of the class, or of several, separated by commas. Needed where masks have several.
        config: The configuration: the tables of `config.toml`; empty where the masks tell their classes.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
        crs: The CRS of `mapped`, as EPSG:2154, whatever it says; empty for what it says.
        iou: From which IoU on a pair is matched.
        max_offset: How far, in metres, an object may have moved.
        worst: Which share of the objects is suspect, in percent.
        zoom: Zoom of the cover; -1 for that of the masks, or 18 where there are none.
        max_failed: The share of failed tiles, 0 to 1, that is no failure of the step.
    """
    from rsp.components.artifacts import config_file, describe, named
    from rsp.components.changes.tool import changes as tool
    from rsp.components.reference import given

    def maybe(artifact: object, address: str, name: str) -> object:
        return given(artifact, address, name) if artifact or address else None

    found = given(predicted, predicted_at, "predicted")
    area = maybe(masks, masks_at, "masks"), maybe(probabilities, probabilities_at, "probabilities")
    level = None if any(area) or found.suffix.lower() == ".pmtiles" else 18
    with config_file(config, config_uri) as path:
        result = tool(
            named(changes, ".geojson"),
            mapped=given(mapped, mapped_at, "mapped"),
            predicted=found,
            masks=area[0],
            probabilities=area[1],
            kind=kind or None,
            config=path,
            crs=crs or None,
            iou=float(iou),
            max_offset=float(max_offset),
            suspects=named(suspects, ".csv"),
            worst=float(worst),
            zoom=level if int(zoom) < 0 else int(zoom),
            metrics=named(evaluation, ".json"),
        )
    for name, value in result.measures().items():
        metrics.log_metric(name, value)
    # KFP's cache takes a step for done only where its outputs are files.
    named(metrics, "").touch()
    for artifact, kind_of in ((changes, "features"), (evaluation, "evaluation"), (suspects, "cover")):
        describe(artifact, kind_of, result, max_failed)
