"""The errors of every tool. A message says what was wrong, where, and what to do about it."""

from __future__ import annotations

from typing import TypeVar


class RspError(Exception):
    """Anything that a tool can explain. `rsp` prints it without a traceback and exits with `exit_code`.

    Attributes:
        status: The HTTP status that it stands for, where a server said one.
    """

    exit_code = 1
    status: int | None = None


class UsageError(RspError):
    """Arguments that cannot be meant."""

    exit_code = 2


class ConfigError(RspError):
    """A configuration file that is missing, or holds a wrong key, type or colour."""


class CoverError(RspError):
    """A cover that is empty, malformed, or mixes zooms."""


class TileSetError(RspError):
    """A tile set that is missing, malformed, or does not fit another."""


class TileError(RspError):
    """One tile that cannot be read, decoded, fetched or written."""


class FeatureError(RspError):
    """Vector data that cannot be read or makes no sense."""


class RasterError(RspError):
    """A raster that cannot be read or has no georeference."""


class SourceError(RspError):
    """A source of live imagery that cannot be opened, or does not answer now."""


class DownloadError(RspError):
    """A tile server that cannot be used."""


class StorageError(RspError):
    """An object store or a disk that refuses."""


class NotFoundError(StorageError):
    """An object that is not there."""


class ChangedError(StorageError):
    """An object that is another than the one that reading began with."""


class ConflictError(StorageError):
    """A conditional write that came too late: somebody else has written the object."""


class ReleaseError(RspError):
    """A release that is not there, is not whole, or is not what its store says."""


class ModelError(RspError):
    """A network, checkpoint or exported model that cannot be built, read or trusted."""


class TooLargeError(ModelError):
    """Work of a network that does not fit into the memory."""


class PluginError(RspError):
    """A plug-in that cannot be found or imported, fails, or returns what it should not."""


class ServingError(RspError):
    """TorchServe does not start, refuses a model, or does not answer."""


class PipelineError(RspError):
    """A pipeline that cannot be compiled, run, submitted or scheduled."""


class ClusterError(RspError):
    """A Kubernetes API that refuses or cannot be reached, or what runs there and failed."""


class PartialError(RspError):
    """A tool that did what it could, and failed on some tiles (raised where exit code 3 cannot be used)."""

    exit_code = 3


Error = TypeVar("Error", bound=RspError)


def untraced(error: Error) -> Error:
    """Return an error that can be kept, or raised again and again: one without traceback, cause and context.

    A traceback holds the frames that it went through, and so the pictures that were worked on there. It grows each
    time that the error is raised. One that is kept holds all of that for as long, and one that a function returns
    often is in a cycle with its frame, which stays until the garbage is collected.
    """
    bare = type(error).__new__(type(error), *error.args)  # not `copy`, which calls constructors that may want more
    vars(bare).update(vars(error))
    return bare
