"""The tile sets of a training, wherever they are, as the folder that a loader reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rsp.shared.config import Config
from rsp.shared.errors import ConfigError
from rsp.shared.locations import Location, fetched, location
from rsp.shared.tileset import open_reader

# `training` and `validation`, each with the places of `images` and `labels`: paths, or archives in S3.
Sets = Mapping[str, Mapping[str, str | Location]]


def check_channels(config: Config) -> None:
    """Raise `ConfigError` where a channel is not of the one tile set of images that a pipeline trains on."""
    names = [channel.name for channel in config.channels]
    own = "images" if "images" in names else names[0]
    for channel in config.channels:
        if channel.name != own or channel.kind == "classes":
            what = "classes" if channel.kind == "classes" else f"another name than {own!r}"
            raise ConfigError(
                f"a pipeline trains on one tile set of images, and the channel {channel.name!r} ({what}) is not "
                f"of it: put its bands into the tiles of {own!r}, for a channel of that name, or train with "
                "`rsp train` on a folder that has a tile set for each channel"
            )


def link_sets(folder: Path, config: Config, sets: Sets) -> Path:
    """Make a data set of links to tile sets: images under the name of the channels, and labels, in each part.

    Args:
        folder: Where; it is made.
        config: The configuration, whose channels all take their bands from `images`; see `check_channels`.
        sets: The tile sets. Archives in S3 are fetched into the cache of this machine.

    Returns:
        The folder.

    Raises:
        ConfigError: a channel is of another tile set.
        TileSetError: a tile set is missing or damaged.
        StorageError: one cannot be fetched.
    """
    check_channels(config)
    for part, places in sets.items():
        (folder / part).mkdir(parents=True)
        for link in (config.channels[0].name, "labels"):
            source = fetched(location(places["labels" if link == "labels" else "images"])).resolve()
            with open_reader(source):  # says what is wrong under the name that the pipeline knows
                pass
            (folder / part / link).symlink_to(source)
    return folder
