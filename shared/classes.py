"""The classes of labels and masks: told by the tile sets themselves, or by a configuration."""

from __future__ import annotations

from collections.abc import Sequence

from rsp.shared.config import ClassDef, find_config, load_config
from rsp.shared.errors import ConfigError, UsageError
from rsp.shared.locations import Location
from rsp.shared.tileset import read_info
from rsp.shared.tileset.metadata import titles


def find_classes(
    config: Location | None, tilesets: Sequence[Location], *, extended: bool = False
) -> tuple[ClassDef, ...]:
    """Return the classes of labels or masks.

    Args:
        config: The configuration that the user named, if any. Those that stand in its usual places are read only
            where no tile set tells its classes.
        tilesets: Labels and masks, all of the same classes.
        extended: The configuration may have further classes at the end, which are to be added to the tile sets.

    Raises:
        UsageError: two of them contradict each other; names both.
        ConfigError: a configuration that cannot be read, or neither a configuration nor a tile set that tells.
    """
    told: dict[str, tuple[ClassDef, ...]] = {}
    if config is not None:
        told[str(config)] = load_config(config).classes
    for path in tilesets:
        info = read_info(path)
        if info.classes is not None:
            told.setdefault(str(path), info.classes)
    if not told:
        try:
            return load_config(find_config(None)).classes
        except ConfigError as error:
            names = " and ".join(map(str, tilesets))
            raise ConfigError(f"{names} do not say which classes they hold, and there is {error}") from error
    (first, classes), *others = told.items()
    for name, theirs in others:
        ours = classes[: len(theirs)] if extended and config is not None else classes
        if titles(ours) != titles(theirs):
            raise UsageError(
                f"{first} has the classes {titles(classes)}, and {name} has {titles(theirs)}: give what belongs "
                "together"
            )
    return classes


def ignored_classes(classes: Sequence[ClassDef]) -> tuple[int, ...]:
    """Return the indices of the classes with `ignore = true`, whose pixels of labels count nowhere."""
    return tuple(index for index, each in enumerate(classes) if each.ignore)


def class_index(classes: Sequence[ClassDef], title: str) -> int:
    """Return the index of the class of this title, in upper or lower case if only one class is called so.

    Raises:
        ConfigError: there is no such class, or several that differ in case only.
    """
    exact = [index for index, entry in enumerate(classes) if entry.title == title]
    found = exact or [index for index, entry in enumerate(classes) if entry.title.casefold() == title.casefold()]
    if len(found) > 1 and not exact:
        raise ConfigError(f"{title!r} may be any of {', '.join(classes[index].title for index in found)}")
    if not found:
        raise ConfigError(f"no class {title!r}; the classes are {titles(classes)}")
    return found[0]


def class_indices(classes: Sequence[ClassDef], wanted: str | Sequence[str]) -> tuple[int, ...]:
    """Return the indices of classes, each once, in the order in which they are asked for; see `class_index`.

    Args:
        classes: The classes.
        wanted: Title of a class, titles separated by commas, or several of either.

    Raises:
        ConfigError: there is no such class.
    """
    found: list[int] = []
    for title in [wanted] if isinstance(wanted, str) else wanted:
        known = any(entry.title.casefold() == title.casefold() for entry in classes)  # it may hold a comma
        found += [class_index(classes, each.strip()) for each in ([title] if known else title.split(","))]
    if not found:
        raise ConfigError(f"no class is asked for; the classes are {titles(classes)}")
    return tuple(dict.fromkeys(found))
