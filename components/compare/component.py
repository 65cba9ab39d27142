"""How Kubeflow sees `compare`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("compare"), packages_to_install=[], install_kfp_package=False)
def compare(
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    map: dsl.Output[dsl.HTML],
    side_by_side: dsl.Output[dsl.HTML],
    table: dsl.Output[dsl.Dataset],
    images: dsl.Input[dsl.Dataset] = None,
    labels: dsl.Input[dsl.Dataset] = None,
    masks: dsl.Input[dsl.Dataset] = None,
    images_at: str = "",
    labels_at: str = "",
    masks_at: str = "",
    config: dict = {},
    config_uri: str = "",
) -> None:
    """Measure how well masks agree with labels, and show it: on a map, and on a page with the worst tiles.

    Args:
        metrics: IoU, F1, precision and recall of the classes but the background, mIoU, MCC, mean QoD, and the IoU
            of each class.
        confusion: Confusion matrix of the pixels of all tiles.
        map: Map of image, label and mask stacked: pink is predicted only, green labelled only, grey both.
        side_by_side: Page of the measures of each class, the confusion matrix, how many tiles are how good, and
            the tiles of lowest quality of data: image, label and mask side by side.
        table: IoU, precision, recall, F1, MCC and QoD of each tile and class, the worst tiles first: Parquet.
        images: Tile set of the images.
        labels: Tile set of the labels.
        masks: Tile set of the masks.
        images_at: The same as `images` by address, in its place.
        labels_at: The same as `labels` by address, in its place.
        masks_at: The same as `masks` by address, in its place.
        config: The configuration: the tables of `config.toml`; empty where labels or masks tell their classes.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
    """
    from rsp.components.artifacts import config_file, describe, named
    from rsp.components.compare.overview import overview
    from rsp.components.reference import given

    with config_file(config, config_uri) as path:
        result = overview(
            given(images, images_at, "images"),
            given(labels, labels_at, "labels"),
            given(masks, masks_at, "masks"),
            config=path,
            webmap=named(map, ".html"),
            side_by_side=named(side_by_side, ".html"),
            metrics=[named(table, ".parquet")],
        )
    for name, value in result.measures().items():
        metrics.log_metric(name, value)
    confusion.log_confusion_matrix(list(result.classes), result.confusion)
    # KFP's cache takes a step for done only where its outputs are files.
    named(metrics, "").touch()
    named(confusion, "").touch()
    describe(map, "map", result)
    describe(side_by_side, "side by side", result)
    describe(table, "measures", result)


@dsl.component(base_image=image("compare"), packages_to_install=[], install_kfp_package=False)
def review(
    listing: dsl.Output[dsl.Dataset],
    cover: dsl.Output[dsl.Dataset],
    labels: dsl.Input[dsl.Dataset] = None,
    masks: dsl.Input[dsl.Dataset] = None,
    labels_at: str = "",
    masks_at: str = "",
    config: dict = {},
    config_uri: str = "",
    minimum_fg: float = 0.0,
    maximum_fg: float = 100.0,
    minimum_qod: float = 0.0,
    maximum_qod: float = 100.0,
    minimum: list = [],
    maximum: list = [],
) -> None:
    """List the tiles where masks and labels agree least, the worst first, as GeoJSON and as a cover to work on.

    Args:
        listing: The tiles with their scores, GeoJSON.
        cover: The same tiles as a cover, CSV: for `subset`, or for labelling again. It may be empty.
        labels: Tile set of the labels.
        masks: Tile set of the masks.
        labels_at: The same as `labels` by address, in its place.
        masks_at: The same as `masks` by address, in its place.
        config: The configuration: the tables of `config.toml`; empty where labels or masks tell their classes.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
        minimum_fg: List tiles with at least this percentage of foreground.
        maximum_fg: List tiles with at most this percentage of foreground.
        minimum_qod: List tiles with at least this quality of data, 0 to 100.
        maximum_qod: List tiles with at most this quality of data, 0 to 100.
        minimum: List tiles on which measures of classes reach these values, as `[["building", "recall", 0.5]]`:
            iou, precision, recall, f1 (0 to 1), mcc (-1 to 1), fg, qod (0 to 100).
        maximum: List tiles on which they are at most these values.
    """
    from rsp.components.artifacts import config_file, describe, named
    from rsp.components.compare.listing import cover_of
    from rsp.components.compare.tool import compare as tool
    from rsp.components.reference import given

    path = named(listing, ".geojson")
    with config_file(config, config_uri) as settings:
        result = tool(
            path,
            mode="list",
            geojson=True,
            labels=given(labels, labels_at, "labels"),
            masks=given(masks, masks_at, "masks"),
            config=settings,
            minimum_fg=float(minimum_fg),
            maximum_fg=float(maximum_fg),
            minimum_qod=float(minimum_qod),
            maximum_qod=float(maximum_qod),
            minimum=minimum,
            maximum=maximum,
        )
    describe(listing, "listing", result)
    describe(cover, "cover", result)
    cover.metadata["tiles"] = cover_of(path, named(cover, ".csv"))
