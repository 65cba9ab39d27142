"""Measure masks against labels."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import documented


@dsl.pipeline(name="quality")
@documented
def quality(images: str, labels: str, masks: str, config: str) -> None:
    """Compare masks with labels: IoU and more, the confusion matrix, a map, and the worst tiles side by side."""
    steps.compare(steps.imported(images), steps.imported(labels), steps.imported(masks), config)
