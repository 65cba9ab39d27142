"""Measure masks against labels."""

# mypy: disable-error-code="untyped-decorator, type-arg"

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import documented


@dsl.pipeline(name="quality")
@documented
def quality(
    images: str,
    labels: str,
    masks: str,
    config: dict = {},
    config_uri: str = "",
    review_fg: float = 5.0,
    review_qod: float = 80.0,
    mapped: str = "",
    class_title: str = "building",
    data_root: str = "",
) -> None:
    """Compare masks with labels: IoU and more, the confusion matrix, a map, and the worst tiles side by side.

    A second page says more: boundaries, each class, and between which values the measures may be by chance.
    The tiles to review are listed with their scores, as GeoJSON, and as a cover to label again. With the features
    of a map, its objects are matched with those of the masks, and listed with what is suspicious about them; a
    page shows these objects for review. No configuration is needed where labels or masks tell their classes.
    """
    with steps.notified("quality"):
        found = steps.resolve(images=images, labels=labels, masks=masks, features=mapped, config_uri=config_uri)
        settings = steps.Config(config, found["config_uri"])

        def body(place: steps.Place) -> None:
            shown = place.tiles(images, found["images"])
            truth = place.tiles(labels, found["labels"])
            predicted = place.tiles(masks, found["masks"])
            steps.compare(place, shown, truth, predicted, settings)
            steps.evaluate(place, shown, truth, predicted, settings)
            steps.review(place, truth, predicted, settings, review_fg, review_qod)
            with dsl.If(mapped != ""):
                ranked = steps.changes(place, found["features"], predicted, class_title, settings)
                steps.review_page(place, ranked, found["features"], shown, truth, predicted)

        steps.both(body, data_root, "")
