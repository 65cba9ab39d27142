"""Bad input, full disks and kills: a clear message, its exit code, and what was written stays whole."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import open_reader
from tests.networks import make_card, make_checkpoint
from tests.review import make_changes
from tests.tilesets import BLOCK, CONFIG, make_tileset, squares

# Of a file, in bytes: how a disk is made small for one process where none can be mounted.
LIMIT = resource.RLIMIT_FSIZE
pytestmark = pytest.mark.slow

SQUARE = [[0.0, 0.0], [0.001, 0.0], [0.001, 0.001], [0.0, 0.001], [0.0, 0.0]]


@dataclass
class Bench:
    """A folder with good inputs of every kind, and where to write."""

    root: Path

    def __getattr__(self, name: str) -> Path:
        return self.root / name

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def features(self, *geometries: object) -> Path:
        """Write a GeoJSON of these geometries."""
        members = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
        self.bad.write_text(json.dumps({"type": "FeatureCollection", "features": members}))
        return self.bad

    def spoil(self, tileset: str, tile: Tile = BLOCK[4]) -> Path:
        """Cut a tile in half."""
        (path,) = (self.root / tileset / str(tile.z) / str(tile.x)).glob(f"{tile.y}.*")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return self.root / tileset


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, scene) -> Path:
    """Good inputs; tests work on copies."""
    root = tmp_path_factory.mktemp("inputs")
    make_tileset(root / "images")
    make_tileset(root / "labels", draw=squares)
    make_tileset(root / "masks", draw=squares)
    (root / "config.toml").write_text(CONFIG)
    write_cover(root / "cover", BLOCK)
    (root / "empty").write_text("\n")
    write_cover(root / "zooms", [BLOCK[0], Tile(1, 1, 3)])
    make_checkpoint(root / "model.safetensors", make_card(tile_size=64))
    for part in ("training", "validation"):
        for name in ("images", "labels"):
            shutil.copytree(root / name, root / "dataset" / part / name)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(root / "plain.tif")
    shutil.copy(scene.features, root / "truth.json")
    make_changes(root)
    return root


@pytest.fixture
def bench(inputs, tmp_path, monkeypatch) -> Bench:
    shutil.copytree(inputs, tmp_path / "bench")
    monkeypatch.setenv("RSP_CONFIG", str(tmp_path / "bench" / "config.toml"))
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path / "bench")


def check_whole(root: Path) -> int:
    """Assert that everything visible below a folder is whole, and return how many tiles and files there are."""
    count = 0
    for path in root.rglob("*"):
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        count += 1
        if path.suffix == ".pmtiles":
            with open_reader(path) as reader:
                for tile in reader.tiles():
                    Image.open(io.BytesIO(reader.read(tile))).load()
        elif path.suffix in (".png", ".webp", ".jpg"):
            Image.open(path).load()
        elif path.suffix in (".json", ".geojson"):
            json.loads(path.read_text("utf-8"))
        elif path.suffix in (".html",):
            assert path.read_text("utf-8").rstrip().endswith("</html>")
        elif path.suffix == ".csv" and path.read_text("utf-8") != "old\n":
            read_cover(path)
    return count


# --- bad input ----------------------------------------------------------------------------------------------

# What is wrong; the command; its exit code; what the message says.
Command = Callable[[Bench], list[object]]
BAD: dict[str, tuple[Command, int, str]] = {
    "predict a corrupt tile": (
        lambda b: ["predict", "--checkpoint", b / "model.safetensors", b.spoil("images"), b.out],
        3, "15/101/201: .*(corrupt|truncated)",
    ),
    "compare a corrupt image": (
        lambda b: ["compare", "--images", b.spoil("images"), b.labels, "--masks", b.masks, "--out", b.out],
        3, "15/101/201: .*(corrupt|truncated)",
    ),
    "compare a corrupt mask": (
        lambda b: ["compare", "--mode", "list", "--labels", b.labels, "--masks", b.spoil("masks"), b.out],
        3, "15/101/201: .*(corrupt|truncated|not an image)",
    ),
    "vectorize a corrupt mask": (
        lambda b: ["vectorize", "--type", "building", b.spoil("masks"), b.out],
        3, "15/101/201: .*(corrupt|truncated|not an image)",
    ),
    "train on a corrupt tile": (
        lambda b: ["train", "--dataset", b.spoil("dataset/training/images").parents[1], "--epochs", 1, b.out],
        1, "15/101/201.*(corrupt|truncated)",
    ),
    "rasterize an empty cover": (
        lambda b: ["rasterize", "--geojson", b / "truth.json", b.empty, b.out], 1, "empty lists no tile",
    ),
    "subset by an empty cover": (
        lambda b: ["subset", "--dir", b.images, "--filter", b.empty, b.out], 1, "empty lists no tile",
    ),
    "download an empty cover": (
        lambda b: ["download", "http://127.0.0.1:9/{z}/{x}/{y}.png", b.empty, b.out], 1, "empty lists no tile",
    ),
    "rasterize a cover of two zooms": (
        lambda b: ["rasterize", "--geojson", b / "truth.json", b.zooms, b.out], 1, "mixes the zooms 3, 15",
    ),
    "rasterize half a GeoJSON": (
        lambda b: ["rasterize", "--geojson", half(b), b.cover, b.out], 1, "not valid JSON",
    ),
    "tile a raster without georeference": (
        lambda b: ["tile", "--zoom", 15, b / "plain.tif", b.out], 1, "georeference",
    ),
    "tile what is no raster": (
        lambda b: ["tile", "--zoom", 15, b.cover, b.out], 1, "cover",
    ),
    "predict with another network": (
        lambda b: ["predict", "--checkpoint", other_network(b), b.images, b.out], 1, "other.safetensors",
    ),
    "predict with a pickle": (
        lambda b: ["predict", "--checkpoint", pickled(b), b.images, b.out], 1, "pickle",
    ),
    "predict with half a checkpoint": (
        lambda b: ["predict", "--checkpoint", half_model(b), b.images, b.out], 1, "half.safetensors",
    ),
    "predict no tiles": (
        lambda b: ["predict", "--checkpoint", b / "model.safetensors", b.nothing, b.out],
        1, "no tile set at",
    ),
    "extract what is no extract": (
        lambda b: ["extract", "--type", "building", b / "truth.json", b.out], 1, "truth.json",
    ),
}  # fmt: skip


def half(bench: Bench) -> Path:
    text = (bench / "truth.json").read_text("utf-8")
    bench.bad.write_text(text[: len(text) // 2])
    return bench.bad


def other_network(bench: Bench) -> Path:
    """A checkpoint whose card tells of wider layers than its weights have."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = bench / "other.safetensors"
    with safe_open(bench / "model.safetensors", "pt") as file:
        metadata = file.metadata()
        card = {**json.loads(metadata["card"]), "num_filters": 24}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {**metadata, "card": json.dumps(card)})
    return path


def pickled(bench: Bench) -> Path:
    import torch

    path = bench / "seed.pth"
    torch.save({"state_dict": {}, "epoch": 1}, path)
    return path


def half_model(bench: Bench) -> Path:
    data = (bench / "model.safetensors").read_bytes()
    (bench / "half.safetensors").write_bytes(data[: len(data) // 2])
    return bench / "half.safetensors"


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what, bench, rsp):
    command, code, message = BAD[what]
    ran = rsp(*command(bench))
    assert ran.code == code, ran.stderr
    assert re.search(message, ran.stderr), ran.stderr
    assert "Traceback" not in ran.stderr
    out = bench / "out"
    if code == 3:  # what could be done is there, and the rest can be fed back in
        assert read_cover(bench / "out.failed.csv") == [BLOCK[4]]
        if out.is_dir():
            assert open_reader(out).tiles() == sorted(set(BLOCK) - {BLOCK[4]})
    elif out.exists():  # (the log of a training that failed may be)
        assert not list(out.rglob("*.png")) and not list(out.rglob("*.safetensors"))


def test_null_and_other_geometry_are_passed_over(bench, rsp):
    line = {"type": "LineString", "coordinates": SQUARE[:2]}
    point, polygon = {"type": "Point", "coordinates": [0, 0]}, {"type": "Polygon", "coordinates": [SQUARE]}
    source = bench.features(None, line, point, polygon)
    write_cover(bench / "here", [Tile(16384, 16383, 15)])
    ran = rsp("rasterize", "--geojson", source, bench.here, bench.out)
    assert ran.code == 0 and "LineString" in ran.stderr and "null" in ran.stderr
    label = np.asarray(Image.open(bench / "out" / "15" / "16384" / "16383.png"))
    assert set(np.unique(label)) == {0, 1}


def test_a_wms_exception_is_shown(scene, scene_server, tmp_path, rsp):
    """What the server says is in the message, and no tile is written (reference 9.10)."""
    wrong = scene_server.wms.replace("LAYERS=town", "LAYERS=sea")
    ran = rsp("download", "--rate", 1000, "--type", "WMS", wrong, scene.cover, tmp_path / "out")
    assert ran.code == 1 and "there is no layer sea" in ran.stderr
    assert not list(tmp_path.rglob("*.webp"))


def test_tiles_that_a_server_lacks(scene, scene_server, tmp_path, rsp):
    far = Tile(scene.tiles[0].x - 300, scene.tiles[0].y, scene.zoom)
    write_cover(tmp_path / "cover", [*scene.tiles[:3], far])
    url = scene_server.url + "/xyz/{z}/{x}/{y}.jpg"
    ran = rsp("download", "--rate", 1000, url, tmp_path / "cover", tmp_path / "out")
    assert ran.code == 0 and read_cover(tmp_path / "out.absent.csv") == [far]
    assert open_reader(tmp_path / "out").tiles() == sorted(scene.tiles[:3])


# --- full disks ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def small_disk(tmp_path_factory):
    """A disk of 160 kB; where none can be mounted, None."""
    path = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(path)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield path if mounted else None
    if mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


# The command, what it writes, and for how much of it there is room (kB).
FULL: dict[str, tuple[Command, str, int]] = {
    "cover": (lambda b: ["cover", "--bbox", "0,0,3,3", "--zoom", 12], "out.csv", 8),
    "rasterize": (lambda b: ["rasterize", "--geojson", b / "truth.json", b.cover], "out", 12),
    "subset": (lambda b: ["subset", "--dir", b.images, "--filter", b.cover], "out", 60),
    "subset to an archive": (lambda b: ["subset", "--dir", b.images, "--filter", b.cover], "out.pmtiles", 60),
    "predict": (lambda b: ["predict", "--checkpoint", b / "model.safetensors", b.images], "out", 12),
    "compare": (lambda b: ["compare", "--format", "png", "--images", b.images, b.labels], "out", 60),
    "vectorize": (lambda b: ["vectorize", "--type", "building", b.masks], "out.json", 0),
    "changes": (lambda b: ["changes", "--mapped", b / "truth.json", "--predicted", b.masks], "out.json", 0),
    "evaluate": (lambda b: ["evaluate", "--labels", b.labels, "--masks", b.masks], "out.html", 2),
    "review": (lambda b: ["review", "--changes", b / "changes.geojson"], "out.html", 60),
    "tile": (lambda b: ["tile", "--format", "png", "--zoom", 19, b / "town.tif"], "out", 100),
    "tile to an archive": (lambda b: ["tile", "--format", "png", "--zoom", 19, b / "town.tif"], "o.pmtiles", 100),
    "extract": (lambda b: ["extract", "--type", "building", b / "town.osm.pbf"], "out.json", 4),
    "download": (lambda b: ["download", "--rate", 1000, b.url, b / "scene.csv"], "out", 60),
    "train": (lambda b: ["train", "--dataset", b.dataset, "--epochs", 1], "out", 60),
    "export": (
        lambda b: ["export", "--type", "onnx", "--checkpoint", b / "model.safetensors"], "out.onnx", 60,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk(what, bench, small_disk, scene, scene_server, rsp, rsp_process):
    command, name, room = FULL[what]
    for path in (scene.raster, scene.pbf):
        (bench.root / path.name).symlink_to(path)
    shutil.copy(scene.cover, bench / "scene.csv")
    bench.url = scene_server.url + "/xyz/{z}/{x}/{y}.png"
    argv = command(bench)
    if small_disk is None:  # then every file has a limit, in a process of its own
        out = bench.root / name
        limit = max(room, 1) * 100
        ran = rsp_process(*argv, "--out", out, preexec_fn=lambda: resource.setrlimit(LIMIT, (limit, limit)))
    else:
        for old in small_disk.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        out = small_disk / name
        if "." in name:
            out.write_text("old\n")  # what is there already must survive
        fill(small_disk / ".filler", small_disk, room)
        ran = rsp(*argv, "--out", out)
    assert ran.code == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "No space left" in ran.stderr or "File too large" in ran.stderr, ran.stderr
    if small_disk is not None and "." in name:
        assert out.read_text() == "old\n"
        out.unlink()
    check_whole(out.parent if small_disk else out.parent / "out")
    left = [path for path in out.parent.rglob(".rsp-*") if not path.name.endswith(".journal")]
    assert not left, left


def fill(path: Path, disk: Path, room: int) -> None:
    """Fill a disk up to so many kB."""
    with path.open("wb") as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        file.write(b"\0" * max(0, free - room * 1024))
