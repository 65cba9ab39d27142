"""The step that decides whether a model is deployed."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.components.container import image


# `dsl.If` can only look at the single unnamed output of a step (the local runner takes a named one for False).
# It has the image of `deploy`, whose checks it asks.
@dsl.component(base_image=image("deploy"), packages_to_install=[], install_kfp_package=False)
def gate(
    metrics: dsl.Input[dsl.Metrics],
    model: dsl.Input[dsl.Model],
    threshold: float,
    store: str = "",
    name: str = "rsp",
) -> str:
    """Say `deploy` where a model is good enough and there is a store to deploy it to, else `keep`.

    It is not good enough where the store's current release of that name did better on the same validation tiles,
    by what their trainings recorded.

    Args:
        metrics: The metrics of `compare`; `iou` decides.
        model: The exported model.
        threshold: The least IoU, 0 to 1.
        store: The release store; empty for no deployment.
        name: Name of the model in it.
    """
    from pathlib import Path

    if not metrics.metadata:
        raise ValueError("there are no metrics: this is not what `compare` gives")
    # Without a pixel of the class in labels and masks the IoU is 0/0, and `compare` leaves it out.
    iou = float(metrics.metadata.get("iou", "nan"))
    reasons = []
    # A NaN is not at least anything.
    if not iou >= float(threshold):
        reasons.append(f"the threshold is {threshold}")
    if not store:
        reasons.append("no store was named")
    if not reasons:
        from rsp.components.deploy.checks import worse_than_current

        reasons += filter(None, [worse_than_current(Path(model.path), store, name)])
    verdict = "keep" if reasons else "deploy"
    print(f"IoU {iou:.4f}: {verdict}" + (f" ({'; '.join(reasons)})" if reasons else ""))
    return verdict
