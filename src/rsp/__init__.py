"""RoboSat's tools for semantic segmentation on XYZ tiles: a command line, Kubeflow components, and TorchServe."""

__version__: str


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: that takes as long as to start Python."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    globals()[name] = version("rsp-tools")
    return globals()[name]  # type: ignore[no-any-return]
