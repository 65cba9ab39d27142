"""The step that decides whether a model is deployed."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.components.container import image


# `dsl.If` can only look at the single unnamed output of a step (the local runner takes a named one for False).
# The body is all there is: any image with kfp's executor runs it, and `compare` has run in the same pod anyway.
@dsl.component(base_image=image("compare"), packages_to_install=[], install_kfp_package=False)
def gate(
    metrics: dsl.Input[dsl.Metrics],
    threshold: float,
    baseline: float = 0.0,
    management: str = "",
) -> str:
    """Say `deploy` where a model is good enough and there is a server to deploy it to, else `keep`.

    Args:
        metrics: The metrics of `compare`; `iou` decides.
        threshold: The least IoU, 0 to 1.
        baseline: The IoU of the model that is deployed now; a worse one does not take its place.
        management: URL of the management API of TorchServe; empty for no deployment.
    """
    if not metrics.metadata:
        raise ValueError("there are no metrics: this is not what `compare` gives")
    # Without a pixel of the class in labels and masks the IoU is 0/0, and `compare` leaves it out.
    iou = float(metrics.metadata.get("iou", "nan"))
    reasons = []
    # A NaN is not at least anything.
    if not iou >= float(threshold):
        reasons.append(f"the threshold is {threshold}")
    if not iou >= float(baseline):
        reasons.append(f"the deployed model has {baseline}")
    if not management:
        reasons.append("no server was named")
    verdict = "keep" if reasons else "deploy"
    print(f"IoU {iou:.4f}: {verdict}" + (f" ({'; '.join(reasons)})" if reasons else ""))
    return verdict
