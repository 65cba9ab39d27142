"""How Kubeflow sees `compare`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("compare"), packages_to_install=[], install_kfp_package=False)
def compare(
    images: dsl.Input[dsl.Dataset],
    labels: dsl.Input[dsl.Dataset],
    masks: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    map: dsl.Output[dsl.HTML],
    side_by_side: dsl.Output[dsl.HTML],
    config: str = "",
) -> None:
    """Measure how well masks agree with labels, and show it: on a map, and the worst tiles side by side.

    Args:
        images: Tile set of the images.
        labels: Tile set of the labels.
        masks: Tile set of the masks.
        metrics: IoU of the classes but the background, mIoU, MCC, mean QoD, and the IoU of each class.
        confusion: Confusion matrix of the pixels of all tiles.
        map: Map of image, label and mask stacked: pink is predicted only, green labelled only, grey both.
        side_by_side: Image, label and mask of the tiles of lowest quality of data.
        config: The configuration, TOML; empty where labels or masks tell their classes.
    """
    from rsp.components.artifacts import config_file, describe, named
    from rsp.components.compare.overview import overview

    with config_file(config) as path:
        result = overview(
            images.path,
            labels.path,
            masks.path,
            config=path,
            webmap=named(map, ".html"),
            side_by_side=named(side_by_side, ".html"),
        )
    for name, value in result.measures().items():
        metrics.log_metric(name, value)
    confusion.log_confusion_matrix(list(result.classes), result.confusion)
    # KFP's cache takes a step for done only where its outputs are files.
    named(metrics, "").touch()
    named(confusion, "").touch()
    describe(map, "map", result)
    describe(side_by_side, "side by side", result)
