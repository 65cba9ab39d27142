"""How Kubeflow sees `evaluate`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("evaluate"), packages_to_install=[], install_kfp_package=False)
def evaluate(
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    page: dsl.Output[dsl.HTML],
    tiles: dsl.Output[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    labels: dsl.Input[dsl.Dataset] = None,
    labels_at: str = "",
    masks: dsl.Input[dsl.Dataset] = None,
    masks_at: str = "",
    model: dsl.Input[dsl.Model] = None,
    model_at: str = "",
    images: dsl.Input[dsl.Dataset] = None,
    images_at: str = "",
    probabilities: dsl.Input[dsl.Dataset] = None,
    probabilities_at: str = "",
    cover: dsl.Input[dsl.Dataset] = None,
    cover_at: str = "",
    config: dict = {},
    config_uri: str = "",
    boundary: str = "2%",
    block: int = 4,
    seed: int = 0,
    overlap: int = -1,
    tta: str = "none",
    threshold: dict = {},
    max_failed: float = 0.0,
) -> None:
    """Evaluate masks, or the model that makes them, against labels.

    Args:
        metrics: IoU, mIoU, F1, precision, recall, MCC, accuracy, boundary IoU, with probabilities ECE and Brier
            score,
            and IoU and boundary IoU of each class.
        confusion: Confusion matrix of the pixels of all tiles.
        page: The measures and what of them may be chance, calibration, and the tiles of which most is wrong.
        tiles: The measures of each tile, CSV.
        evaluation: All of it but the tiles, JSON.
        labels: Tile set of the labels.
        labels_at: The same by address, in its place.
        masks: Tile set of the masks.
        masks_at: The same by address, in its place.
        model: A checkpoint or an exported model that predicts the images, in place of masks.
        model_at: The same by address, in its place.
        images: Tile set of the images: to predict, or to show beside the masks.
        images_at: The same by address, in its place.
        probabilities: Tile set of the probabilities of the masks: uint8, a band for each class.
        probabilities_at: The same by address, in its place.
        cover: Evaluate only these tiles, CSV.
        cover_at: The same by address, in its place.
        config: The configuration: the tables of `config.toml`; empty where labels, masks or model tell their
            classes.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
        boundary: How far from outlines boundary IoU looks: pixels (7), metres on the ground (0.5m), or a share of
            the
            diagonal of a tile (2%).
        block: Side in tiles of the blocks that are drawn.
        seed: Of the draws.
        overlap: Pixels of the neighbouring tiles that a model sees on each side; -1 for the model's.
        tta: Test-time augmentation of a model: `none`, `flips` (4 ways to see a tile) or `d4` (8).
        threshold: From what probability on a model answers a class, by its title.
        max_failed: The share of failed tiles, 0 to 1, that is no failure of the step.
    """
    from rsp.components.artifacts import config_file, describe, named
    from rsp.components.evaluate.tool import evaluate as tool
    from rsp.components.reference import given

    def maybe(artifact: object, address: str, name: str) -> object:
        return given(artifact, address, name) if artifact or address else None

    outs = [named(evaluation, ".json"), named(tiles, ".csv"), named(page, ".html")]
    with config_file(config, config_uri) as path:
        result = tool(
            given(labels, labels_at, "labels"),
            outs,
            masks=maybe(masks, masks_at, "masks"),
            checkpoint=maybe(model, model_at, "model"),
            images=maybe(images, images_at, "images"),
            probabilities=maybe(probabilities, probabilities_at, "probabilities"),
            config=path,
            cover=maybe(cover, cover_at, "cover"),
            boundary=boundary,
            block=int(block),
            seed=int(seed),
            tile_overlap=None if int(overlap) < 0 else int(overlap),
            tta=tta,
            threshold=threshold or None,
        )
    for name, value in result.measures().items():
        metrics.log_metric(name, value)
    confusion.log_confusion_matrix([each["title"] for each in result.classes], result.confusion)
    # KFP's cache takes a step for done only where its outputs are files.
    named(metrics, "").touch()
    named(confusion, "").touch()
    for artifact, kind in ((evaluation, "evaluation"), (tiles, "list"), (page, "page")):
        describe(artifact, kind, result, max_failed)
