"""Measure masks against labels."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.pipelines import steps


@dsl.pipeline(name="quality")
def quality(images: str, labels: str, masks: str, config: str) -> None:
    """Compare masks with labels: IoU and more, the confusion matrix, a map, and the worst tiles side by side.

    Args:
        images: Where the tile set of images is: a path, or on a cluster an address that KFP can fetch.
        labels: Where the tile set of labels is.
        masks: Where the tile set of masks is.
        config: The configuration, as TOML text.
    """
    steps.judge(steps.given(images), steps.given(labels), steps.given(masks), config)
