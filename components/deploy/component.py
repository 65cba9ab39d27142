"""How Kubeflow sees `deploy`. Switch its caching off in a pipeline: a deployment is an act, not a result."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("deploy"), packages_to_install=[], install_kfp_package=False)
def deploy(
    model: dsl.Input[dsl.Model],
    golden: dsl.Input[dsl.Dataset],
    name: str = "rsp",
    version: str = "",
    management: str = "http://127.0.0.1:8081",
    inference: str = "http://127.0.0.1:8080",
    model_store: str = "/models",
) -> None:
    """Deploy an exported model to TorchServe beside the one that serves, test it, and switch.

    Args:
        model: The exported model.
        golden: Tile set whose first tiles are the smoke test.
        name: Name of the model in the URLs.
        version: Its version; empty lets it follow from the model.
        management: URL of TorchServe's management API.
        inference: URL of its inference API.
        model_store: Folder from which TorchServe reads its archives, mounted here, too.
    """
    from pathlib import Path

    from rsp.components.deploy.tool import deploy as tool

    result = tool(
        Path(model.path),
        model_store=Path(model_store),
        name=name,
        version=version,
        management=management,
        inference=inference,
        golden=Path(golden.path),
    )
    print(result.as_dict())
