"""Tools that are killed half way: what is there is whole, and the same command again gives the same bytes.

Each command runs once undisturbed. Then it is killed before a change half way through, before the last one that
gives a file its name, and in the middle of writing a file; and runs again, with --resume where it has that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rsp.components.changes.tool import changes as rank_changes
from rsp.components.vectorize.parts import vectorize_block
from rsp.shared.errors import TileSetError
from rsp.shared.tiles import Tile, write_cover
from rsp.shared.tileset import open_reader
from tests.components.test_extract_area import CHANGES
from tests.kills import KILLED, Ended, Forge, Moment
from tests.networks import make_card, make_checkpoint
from tests.tilesets import BLOCK, CONFIG, make_tileset, squares

pytestmark = pytest.mark.slow

MANY = [Tile(x, y, 15) for x in range(100, 110) for y in range(200, 206)]
CLASSES = CONFIG.replace("[model]", '[[classes]]\ntitle = "border"\ncolor = "red"\n\n[model]')


@dataclass(frozen=True)
class Row:
    """A command: what stands before the output, what it writes, what it says the second time, and what it changes.

    Attributes:
        command: The arguments, by the inputs.
        out: The names of what it writes, in the order of the arguments; the first counts for `size`.
        flag: What stands before them.
        again: More arguments of the run after a kill.
        changes: The input that it changes: each run has a copy of its own, below `in`.
        moves: Its tiles are in the input or in the output at any time, or in both.
        workers: Whether the process alone is killed as well, and its workers have to notice.
    """

    command: Callable[[Any], list[object]]
    out: tuple[str, ...]
    flag: str = "--out"
    again: tuple[str, ...] = ()
    changes: str = ""
    moves: bool = False
    workers: bool = False


ONE = ("--workers", 1)  # a process that has nothing to do costs its start
RESUME = {"again": ("--resume",)}
FEW = 2 * len(BLOCK) // 3


def masks(i: Any) -> list[object]:
    return ["--labels", i.labels, "--masks", i.masks]


ROWS: dict[str, Row] = {
    "cover": Row(lambda i: ["cover", "--bbox", "0,0,20,20", "--zoom", 12], ("out.csv",)),
    "cover, split in two": Row(
        lambda i: ["cover", "--dir", i.many, "--splits", "70,30", "--report", "out/report.json"],
        ("a.csv", "b/c.csv"),
    ),
    "cover as GeoJSON": Row(lambda i: ["cover", "--dir", i.many, "--format", "geojson"], ("out.json",)),
    "cover of rasters": Row(
        lambda i: ["cover", "--raster", i.raster, "--zoom", 19, "--format", "extent"], ("out.txt",)
    ),
    "download": Row(lambda i: ["download", "--rate", 1000, i.url, i.scene], ("out",)),
    "download to an archive": Row(lambda i: ["download", "--rate", 1000, i.url, i.scene], ("out.pmtiles",)),
    "extract": Row(lambda i: ["extract", "--type", "building", i.pbf], ("out.json",)),
    "extract lines of GeoJSON": Row(
        lambda i: ["extract", "--type", "building", "road", "--index", "dense_file_array", i.pbf],
        ("out.geojsonl",),
    ),
    "extract to GeoPackage": Row(
        lambda i: ["extract", "--tags", "building", "--clip", "--bbox", i.box, i.pbf], ("out.gpkg",)
    ),
    "extract to FlatGeobuf": Row(lambda i: ["extract", "--type", "building", i.pbf], ("out.fgb",)),
    "extract to GeoParquet": Row(lambda i: ["extract", "--type", "building", i.pbf], ("out.parquet",)),
    "extract after changes": Row(
        lambda i: ["extract", "--type", "building", "--changes", i.changes, "--", i.pbf],
        ("out.json",),
    ),
    "rasterize": Row(lambda i: ["rasterize", *ONE, "--geojson", i.features, i.scene], ("out",), **RESUME),
    "rasterize to an archive": Row(
        lambda i: ["rasterize", "--workers", 2, "--geojson", i.features, i.scene],
        ("out.pmtiles",),
        **RESUME,
        workers=True,
    ),
    "rasterize classes and borders": Row(
        lambda i: [
            "rasterize",
            *ONE,
            "--config",
            i.classes,
            "--geojson",
            f"building={i.features}",
            "--borders",
            "building=3",
            "--counts",
            i.scene,
        ],
        ("out",),
        **RESUME,
    ),
    "tile": Row(lambda i: ["tile", *ONE, "--zoom", 18, "--ts", 128, i.raster], ("out",), **RESUME),
    "tile to an archive": Row(
        lambda i: ["tile", "--zoom", 18, "--ts", 128, "--workers", 2, i.raster],
        ("out.pmtiles",),
        **RESUME,
        workers=True,
    ),
    "tiles to a raster": Row(lambda i: ["tile", *ONE, i.many], ("out.tif",)),
    "an archive to a raster": Row(lambda i: ["tile", *ONE, i.archive], ("out.tif",)),
    "subset": Row(lambda i: ["subset", "--dir", i.images, "--filter", i.cover], ("out",), **RESUME),
    "subset of an archive": Row(
        lambda i: ["subset", "--dir", i.archive, "--filter", i.cover],
        ("out.pmtiles",),
        **RESUME,
    ),
    "subset to an archive": Row(lambda i: ["subset", "--dir", i.many], ("out.pmtiles",), **RESUME),
    "subset from an archive": Row(lambda i: ["subset", "--dir", i.archive], ("out",), **RESUME),
    "subset by links": Row(lambda i: ["subset", "--mode", "link", "--dir", i.images], ("out",), **RESUME),
    "subset by hard links": Row(lambda i: ["subset", "--mode", "hardlink", "--dir", i.images], ("out",), **RESUME),
    "subset to another format": Row(
        lambda i: ["subset", "--format", "webp", "--dir", i.archive],
        ("out.pmtiles",),
        **RESUME,
    ),
    "subset to files of another format": Row(
        lambda i: ["subset", "--format", "jpg", "--dir", i.archive],
        ("out",),
        **RESUME,
    ),
    "subset of two sets": Row(
        lambda i: ["subset", "--dir", i.images, "--union", i.archive], ("out.pmtiles",), **RESUME
    ),
    "subset of one set without another": Row(
        lambda i: ["subset", "--dir", i.archive, "--difference", i.images],
        ("out",),
        **RESUME,
    ),
    "subset of an archive without another": Row(
        lambda i: ["subset", "--dir", i.archive, "--difference", i.images],
        ("out.pmtiles",),
        **RESUME,
    ),
    "subset moves files": Row(
        lambda i: ["subset", "--mode", "move", "--dir", "in/images", "--filter", i.cover],
        ("out",),
        **RESUME,
        changes="images",
        moves=True,
    ),
    "subset moves files into an archive": Row(
        lambda i: ["subset", "--mode", "move", "--dir", "in/images", "--filter", i.cover],
        ("out.pmtiles",),
        **RESUME,
        changes="images",
        moves=True,
    ),
    "subset moves out of an archive": Row(
        lambda i: ["subset", "--mode", "move", "--dir", "in/many.pmtiles", "--filter", i.cover],
        ("out.pmtiles",),
        **RESUME,
        changes="many.pmtiles",
        moves=True,
    ),
    "subset moves files out of an archive": Row(
        lambda i: ["subset", "--mode", "move", "--dir", "in/many.pmtiles", "--filter", i.cover],
        ("out",),
        **RESUME,
        changes="many.pmtiles",
        moves=True,
    ),
    "subset deletes files": Row(
        lambda i: ["subset", "--mode", "delete", "--dir", "in/images", "--filter", i.cover],
        (),
        **RESUME,
        changes="images",
    ),
    "subset deletes out of an archive": Row(
        lambda i: ["subset", "--mode", "delete", "--dir", "in/many.pmtiles", "--filter", i.cover],
        (),
        **RESUME,
        changes="many.pmtiles",
    ),
    "predict": Row(lambda i: ["predict", "--workers", 0, "--checkpoint", i.model, i.images], ("out",), **RESUME),
    "predict to an archive": Row(
        lambda i: ["predict", "--workers", 0, "--checkpoint", i.model, i.images], ("out.pmtiles",), **RESUME
    ),
    "predict probabilities, too": Row(
        lambda i: [
            *("predict", "--workers", 0, "--checkpoint", i.model, "--probabilities", "out/p.pmtiles", i.images)
        ],
        ("out/m",),
        **RESUME,
    ),
    "evaluate": Row(
        lambda i: ["evaluate", *ONE, "--images", i.many, "--labels", i.labels, "--masks", i.masks], ("out",)
    ),
    "evaluate a model": Row(
        lambda i: [
            "evaluate",
            *ONE,
            "--checkpoint",
            i.model,
            "--labels",
            i.dataset / "training/labels",
            "--images",
            i.dataset / "training/images",
            "--cover",
            i.cover,
        ],
        ("out", "out.csv"),
    ),
    "compare side by side": Row(
        lambda i: ["compare", *ONE, "--images", i.many, i.labels, "--report", "out/r.json"],
        ("out",),
        **RESUME,
    ),
    "compare stacked": Row(
        lambda i: ["compare", *ONE, "--mode", "stack", "--images", i.many, i.labels, *masks(i)],
        ("out.pmtiles",),
        **RESUME,
    ),
    "compare as a list": Row(lambda i: ["compare", *ONE, "--mode", "list", *masks(i)], ("out.csv",)),
    "compare as GeoJSON": Row(
        lambda i: ["compare", *ONE, "--mode", "list", "--geojson", *masks(i)], ("out.json",)
    ),
    "vectorize": Row(lambda i: ["vectorize", *ONE, "--type", "building", i.masks], ("out.json",)),
    "vectorize to GeoPackage": Row(
        lambda i: ["vectorize", "--type", "building", "--workers", 2, i.masks],
        ("out.gpkg",),
        workers=True,
    ),
    "vectorize each tile": Row(
        lambda i: ["vectorize", *ONE, "--type", "building", "--no_merge", i.masks], ("out.parquet",)
    ),
    "vectorize lines": Row(
        lambda i: ["vectorize", *ONE, "--type", "building", "--lines", "building", i.masks], ("out.fgb",)
    ),
    "changes": Row(
        lambda i: [
            *("changes", *ONE, "--mapped", i.features, "--predicted", i.masks, "--metrics", "out/m.json"),
            *("--suspects", "out/s.csv"),
        ],
        ("out.json",),
    ),
    "review": Row(
        lambda i: [
            *("review", "--changes", i.ranked, "--mapped", i.features, "--masks", i.masks, "--embed", 1),
            *("--accept_worst", 100, "--corrected", "out/c.json", "--doubtful", "out/d.csv"),
        ],
        ("out.html",),
    ),
    "info as a page": Row(lambda i: ["info", i.archive, "--json"], ("out.html",), flag="--html"),
    "info of a data set": Row(
        lambda i: ["info", "--dataset", i.dataset, "--report", "out/r.json"],
        ("out.html",),
        flag="--html",
    ),
    "part of a block": Row(lambda i: ["make a part", i.masks, i.block], ("out.part",), flag=""),
    "parts to GeoJSON": Row(lambda i: ["join parts", i.part], ("out.json",), flag=""),
}


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    with Forge() as started:
        yield started


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, scene, scene_server) -> SimpleNamespace:
    """Inputs of every kind, which nothing may change."""
    root = tmp_path_factory.mktemp("inputs")
    make_tileset(root / "images")
    for name in ("labels", "masks"):
        make_tileset(root / name, MANY, draw=squares)
    make_tileset(root / "many", MANY)
    make_tileset(root / "many.pmtiles", MANY)
    write_cover(root / "cover", BLOCK[:FEW])
    (root / "config.toml").write_text(CONFIG)
    (root / "classes.toml").write_text(CLASSES)
    (root / "changes.osc").write_text(CHANGES)
    make_checkpoint(root / "model.safetensors", make_card(tile_size=64, overlap=0))
    for part in ("training", "validation"):
        for name in ("images", "labels"):
            shutil.copytree(root / name, root / "dataset" / part / name)
    write_cover(root / "block", MANY)
    part = root / "block.part"
    vectorize_block(root / "masks", root / "block", part, kind="building", config=root / "config.toml", workers=1)
    rank_changes(
        root / "ranked.json",
        mapped=scene.features,
        predicted=root / "masks",
        config=root / "config.toml",
        workers=1,
    )
    return SimpleNamespace(
        root=root,
        ranked=root / "ranked.json",
        images=root / "images",
        labels=root / "labels",
        masks=root / "masks",
        many=root / "many",
        archive=root / "many.pmtiles",
        cover=root / "cover",
        config=root / "config.toml",
        classes=root / "classes.toml",
        changes=root / "changes.osc",
        model=root / "model.safetensors",
        dataset=root / "dataset",
        block=root / "block",
        part=part,
        pbf=scene.pbf,
        raster=scene.raster,
        features=scene.features,
        scene=scene.cover,
        box=scene.bbox_text,
        url=scene_server.url + "/xyz/{z}/{x}/{y}.png",
    )


def tree(root: Path) -> dict[str, object]:
    """What lies below a folder, temporary files apart: bytes by place, and of a link where it leads."""
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.relative_to(root).parts[0] != "tmp"
    }


def tiles_of(path: Path) -> dict[Tile, bytes]:
    """The tiles of a tile set; none where there is no such set (yet, or any more)."""
    try:
        with open_reader(path) as reader:
            return {tile: reader.read(tile) for tile in reader.tiles()}
    except TileSetError:
        return {}


def moments(row: Row, whole: Ended, root: Path) -> dict[str, Moment]:
    """When to kill a command of which an undisturbed run is known."""
    changes = whole.changes
    hidden = [any(part.startswith(".") for part in Path(path).relative_to(root).parts) for _, path in changes]
    named = [n for n, (what, _) in enumerate(changes) if what in NAMES and not hidden[n]]
    found = {"half way": Moment(len(changes) // 2)}
    if named:
        found["before the last name"] = Moment(named[-1])
    written = {path: len(data) for path, data in tree(root).items() if path.startswith("out/")}
    opened: dict[str, list[int]] = {}
    for number, (what, path) in enumerate(changes):
        if what == "open":
            opened.setdefault(Path(path).suffix, []).append(number)
    # One of each kind; where GDAL opens the file, nobody sees it, and the first change is the sign.
    for suffix, numbers in (opened or {"": [0]} if written else {}).items():
        sizes = [size for path, size in written.items() if path.endswith(suffix)] or list(written.values())
        found[f"in the middle of a file {suffix}"] = Moment(
            numbers[len(numbers) // 2], size=max(1, min(sizes) // 2)
        )
    if row.workers:
        found["alone"] = Moment(len(changes) // 2, alone=True)
    return found


NAMES = ("os.rename", "os.link", "os.symlink")


@pytest.mark.parametrize("what", ROWS)
def test_a_kill(what, inputs, forge, tmp_path):
    """SIGKILL: nothing half is seen, and the same command again gives the same bytes and tidies up."""
    row = ROWS[what]

    def run(root: Path, more: tuple[str, ...] = (), moment: Moment | None = None) -> Ended:
        out = [root / "out" / name for name in row.out]
        argv = [*row.command(inputs), *more, *([row.flag] if out and row.flag else []), *out]
        return forge.run(argv, root, moment, {"RSP_CONFIG": str(inputs.config)})

    def place(name: str) -> Path:
        root = tmp_path / name
        (root / "out").mkdir(parents=True)
        (root / "in").mkdir()
        if row.changes:
            here, there = inputs.root / row.changes, root / "in" / row.changes
            shutil.copytree(here, there) if here.is_dir() else shutil.copy(here, there)
        return root

    root = place("whole")
    before = tree(root)
    whole = run(root)
    assert whole.status == 0, whole.stderr
    after = tree(root)
    for name, moment in moments(row, whole, root).items():
        root = place(name)
        killed = run(root, moment=moment)
        assert killed.status in KILLED, f"{name}: it was not killed\n{killed.stderr}"
        for path, data in tree(root).items():
            seen = not any(part.startswith(".") for part in Path(path).parts)
            assert not seen or data in (before.get(path), after.get(path)), f"{name}: {path} is half written"
        if row.moves:
            held = tiles_of(root / "out" / row.out[0]) | tiles_of(root / "in" / row.changes)
            assert held == tiles_of(inputs.root / row.changes), f"{name}: tiles are lost"
        again = run(root, row.again)
        assert again.status == 0, f"{name}: {again.stderr}"
        assert tree(root) == after, name
        assert not list((root / "tmp").iterdir()), name
