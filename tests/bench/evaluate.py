"""Evaluations of masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.bench.data import write_config, write_tilesets
from tests.bench.harness import Growth, Row, rival, rsp


def rows(folder: Path) -> Iterator[Row | Growth]:
    """Yield the rows of `rsp evaluate`."""
    config = write_config(folder)
    _, labels, masks = write_tilesets(folder / "tiles", 23, 22)
    ours, theirs = folder / "ours.json", folder / "theirs.json"

    def evaluated(labels: Path, masks: Path) -> list[object]:
        return rsp("evaluate", "--workers", 1, "--config", config, labels, masks, ours, folder / "ours.csv")

    def same_numbers() -> None:
        found, expected = (json.loads(path.read_text()) for path in (ours, theirs))
        assert found["confusion"] == expected["confusion"], "other pixels"
        assert abs(found["boundary_iou"] - expected["boundary_iou"]) < 1e-12, "other boundaries"

    yield Row(
        "evaluate: 506 tiles of 512 px",
        evaluated(labels, masks),
        rival("evaluate_tiles", labels, masks, theirs),
        "Pillow and numpy, all as one image",
        1,
        same_numbers,
    )
    _, *many = write_tilesets(folder / "many", 70, 70, size=128)
    _, *few = write_tilesets(folder / "few", 70, 7, size=128)
    yield Growth("evaluate: 4,900 tiles of 128 px", evaluated(*few), evaluated(*many), tiles=4900 - 490)
