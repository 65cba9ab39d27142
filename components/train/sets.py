"""The tile sets of a training, wherever they are, as the folder that a loader reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rsp.shared.config import Config
from rsp.shared.errors import ConfigError
from rsp.shared.locations import Location, fetched, location
from rsp.shared.tileset import open_reader

# `training` and `validation`, each with the places of `images` and `labels`: paths, or archives in S3. In training
# there may be `weights`, too, those of pixels.
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


def check_weights(config: Config, given: bool) -> None:
    """Raise `ConfigError` where the configuration names weights of pixels and there are none, or the reverse.

    Args:
        config: The configuration.
        given: Whether a tile set of weights was given.
    """
    name = config.recipe.weights
    if name is None and given:
        raise ConfigError(
            "weights of pixels were given, and the configuration does not use them: name them there, as "
            '`weights = "weights"` in [train]'
        )
    if name is not None and not given:
        raise ConfigError(
            f"[train] weights: {name!r}: no weights of pixels were given: make them with "
            "`rsp rasterize --weights`, and name their place by the parameter `weights` of the pipeline "
            "`training`; no other pipeline takes them, so leave the key out there"
        )
    if name is not None and (Path(name).name != name or name in ("labels", config.channels[0].name)):
        raise ConfigError(
            f"[train] weights: {name!r}: expected a name of its own for a plain folder, as 'weights'"
        )


def check_sets(config: Config, sets: Sets) -> None:
    """Raise `ConfigError` where tile sets are not what the configuration trains on."""
    check_channels(config)
    check_weights(config, "weights" in sets.get("training", {}))


def link_sets(folder: Path, config: Config, sets: Sets) -> Path:
    """Make a data set of links to tile sets: images under the name of the channels, and labels, in each part.

    Weights of pixels, where there are any, are linked under the name that the configuration has for them.

    Args:
        folder: Where; it is made.
        config: The configuration, whose channels all take their bands from `images`; see `check_sets`.
        sets: The tile sets. Archives in S3 are fetched into the cache of this machine.

    Returns:
        The folder.

    Raises:
        ConfigError: a channel is of another tile set, or the configuration names weights that are not there.
        TileSetError: a tile set is missing or damaged.
        StorageError: one cannot be fetched.
    """
    check_sets(config, sets)
    names = {"images": config.channels[0].name, "labels": "labels", "weights": config.recipe.weights or ""}
    for part, places in sets.items():
        (folder / part).mkdir(parents=True)
        for what, place in places.items():
            source = fetched(location(place)).resolve()
            with open_reader(source):  # says what is wrong under the name that the pipeline knows
                pass
            (folder / part / names[what]).symlink_to(source)
    return folder
