"""RoboSat's tools for semantic segmentation on XYZ tiles: a command line, Kubeflow components, and TorchServe."""

from importlib.metadata import version

__version__ = version("rsp-tools")
