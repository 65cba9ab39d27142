"""OpenStreetMap change files (.osc), applied to a file before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import osmium
from osmium.osm import ALL

from rsp.components.extract.source import DisorderError, Source, head_of
from rsp.shared.errors import FeatureError

FORMATS = ".osc, .osc.gz, .osc.bz2 or .o5c"

# What is written on the way is read again at once: packing it quickly counts, not tightly.
PACKED = "pbf,pbf_compression=lz4"


def apply_changes(source: Source, files: Sequence[Path]) -> None:
    """Let a source go on with the map as it is after changes: the newest version of each object, if not deleted.

    The changes are held in memory (about ten times the size of their packed files); the map is streamed from one
    file to another, in the temporary folder.

    Args:
        source: The map that the changes are for.
        files: The change files, in any order.

    Raises:
        FeatureError: a file cannot be read, holds no changes, or the map cannot take any.
    """
    if source.located:
        raise FeatureError(
            f"changes cannot be applied to {source.path}: its ways say themselves where their nodes are, which "
            "those of changes do not"
        )
    if not source.in_order:
        _bring_into_order(source)
    merger = osmium.MergeInputReader()
    for number, path in enumerate(files):
        named = source.temporary / f"change-{number}.{_format(path)}"  # osmium tells the format by the name
        named.symlink_to(path.resolve())
        try:
            merger.add_file(str(named))
        except (OSError, RuntimeError, ValueError) as error:
            raise FeatureError(
                f"cannot read the changes {path}: {str(error).removesuffix('.')}; is the download complete?"
            ) from error
    with source.rewritten() as target, osmium.io.Reader(source.file, ALL) as reader:
        header = osmium.io.Header()
        header.set("sorting", "Type_then_ID")
        writer = osmium.io.Writer(osmium.io.File(str(target), PACKED), header)
        merger.apply_to_reader(reader, writer)
        writer.close()


def _bring_into_order(source: Source) -> None:
    """Sort a map whose order nothing vouches for, unless going through it shows that it is sorted."""
    manager = osmium.area.AreaManager()
    handler = manager.second_pass_handler()  # it checks the order of what it is given
    try:
        with source.readable(), osmium.io.Reader(source.file, ALL) as reader:
            osmium.apply(reader, handler)
    except DisorderError as error:
        source.sort(error)


def _format(path: Path) -> str:
    """Return the suffix that osmium knows the format of a change file by, told by its content."""
    head, packed = head_of(path)
    if head.startswith(b"\xff\xe0\x04o5c"):
        return "o5c"
    if b"<osmChange" in head:
        return "osc" + packed
    raise FeatureError(f"{path} holds no changes; expected {FORMATS}")
