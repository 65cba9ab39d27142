"""How Kubeflow sees `info`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("info"), packages_to_install=[], install_kfp_package=False)
def info(
    page: dsl.Output[dsl.HTML],
    what: dsl.Input[dsl.Artifact] = None,
    what_at: str = "",
) -> None:
    """Say what an artifact is: a tile set, a cover, a raster, features, a model, ...

    Args:
        page: What it is, as a page; the metadata have the plain values.
        what: What to look at.
        what_at: The same by address, in its place.
    """
    from rsp.components.artifacts import named
    from rsp.components.info.tool import info as tool
    from rsp.components.reference import given

    result = tool(given(what, what_at, "what"), html=named(page, ".html"))
    (found,) = result.found
    page.metadata.update({name: value for name, value in found.items() if isinstance(value, int | float | str)})
