"""How Kubeflow sees `deploy`. Switch its caching off in a pipeline: a deployment is an act, not a result."""

from typing import NamedTuple

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("deploy"), packages_to_install=[], install_kfp_package=False)
def deploy(
    model: dsl.Input[dsl.Model],
    store: str,
    golden: dsl.Input[dsl.Dataset] = None,
    golden_at: str = "",
    checkpoint: dsl.Input[dsl.Model] = None,
    verdict: dsl.Input[dsl.Artifact] = None,
    name: str = "rsp",
    version: str = "",
    status: str = "",
    endpoint: str = "",
) -> NamedTuple("Deployed", [("version", str), ("endpoint", str), ("replaced", str)]):
    """Put a model into the release store as what is wanted, and wait until all servers serve it.

    Args:
        model: The exported model.
        store: The release store, as s3://bucket/prefix.
        golden: Tile set whose first tiles servers have to answer right.
        golden_at: The same by address, in its place.
        checkpoint: What the model was exported from, to be kept with it.
        verdict: What `judge` found about the model; it is deployed only if that lets it through and still holds.
        name: Name of the model in the URLs.
        version: Its version; empty lets it follow from the model.
        status: URLs of the status of the servers, with spaces between; empty to wait for nobody.
        endpoint: URL of the server, for the output `endpoint`; empty takes it from `status`.

    Returns:
        version: The version that is wanted now.
        endpoint: Where tiles are predicted; empty where no server was named.
        replaced: The version that was wanted before; empty where there was none, or nothing was changed.
    """
    from pathlib import Path

    from rsp.components.deploy.tool import deploy as tool
    from rsp.components.reference import given

    result = tool(
        Path(model.path),
        store=store,
        name=name,
        version=version,
        checkpoint=Path(checkpoint.path) if checkpoint else None,
        golden=given(golden, golden_at, "golden"),
        verdict=Path(verdict.path) if verdict else None,
        status=status.split() or None,
        endpoint=endpoint,
    )
    print(result.as_dict())
    return (result.version, result.endpoint, result.replaced)
