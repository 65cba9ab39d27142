"""Comparisons of tile sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.bench.data import write_config, write_tilesets
from tests.bench.harness import Growth, Row, rival, rsp


def rows(folder: Path) -> Iterator[Row | Growth]:
    """Yield the rows of `rsp compare`."""
    config = write_config(folder)
    images, labels, masks = write_tilesets(folder / "tiles", 23, 22)
    ours, theirs = folder / "ours", folder / "theirs"

    def scored(out: Path, labels: Path, masks: Path) -> list[object]:
        sets = ["--labels", labels, "--masks", masks, "--config", config]
        return rsp("compare", "--mode", "list", "--workers", 1, *sets, "--out", out)

    def same_text() -> None:
        assert ours.read_bytes() == theirs.read_bytes(), "other scores"

    yield Row(
        "compare: list of 506 tiles of 512 px",
        scored(ours, labels, masks),
        rival("qod_list", labels, masks, theirs),
        "Pillow and numpy",
        0.8,
        same_text,
        before="6.2 s",
    )
    stacked, other = folder / "stacked", folder / "other"

    def same_pictures() -> None:
        found = {path.relative_to(other): path for path in other.rglob("*.jpg")}
        assert len(found) == 506, f"{len(found)} pictures"
        for place, path in found.items():
            assert (stacked / place).read_bytes() == path.read_bytes(), f"{place} differs"

    yield Row(
        "compare: stack of 506 images, labels and masks of 512 px, JPEG",
        rsp("compare", "--mode", "stack", "--format", "jpg", "--workers", 1, "--no_web_ui",
            "--images", images, labels, masks, "--out", stacked),
        rival("mean_stack", images, labels, masks, other),
        "Pillow and numpy",
        1,
        same_pictures,
        fresh=(stacked, other),  # both write new files
        before="8.2 s",
    )  # fmt: skip
    _, *many = write_tilesets(folder / "many", 70, 70, size=128)
    _, *few = write_tilesets(folder / "few", 70, 7, size=128)
    yield Growth(
        "compare: list of 4,900 tiles of 128 px", scored(ours, *few), scored(ours, *many), tiles=4900 - 490
    )
