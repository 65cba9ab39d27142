"""The tile sets of a training, wherever they are, as the folder that a loader reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rsp.shared.config import Config
from rsp.shared.locations import Location, fetched, location
from rsp.shared.tileset import open_reader

# `training` and `validation`, each with the places of `images` and `labels`: paths, or archives in S3.
Sets = Mapping[str, Mapping[str, str | Location]]


def link_sets(folder: Path, config: Config, sets: Sets) -> Path:
    """Make a data set of links to tile sets: one for each [[channels]], and the labels, in each part.

    Args:
        folder: Where; it is made.
        config: The configuration, whose channels all take their bands from `images`.
        sets: The tile sets. Archives in S3 are fetched into the cache of this machine.

    Returns:
        The folder.

    Raises:
        TileSetError: a tile set is missing or damaged.
        StorageError: one cannot be fetched.
    """
    for part, places in sets.items():
        (folder / part).mkdir(parents=True)
        for link in [*dict.fromkeys(channel.name for channel in config.channels), "labels"]:
            source = fetched(location(places["labels" if link == "labels" else "images"])).resolve()
            with open_reader(source):  # says what is wrong under the name that the pipeline knows
                pass
            (folder / part / link).symlink_to(source)
    return folder
