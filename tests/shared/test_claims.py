"""What a tool may write to: never over what it reads, under a name that tells what it writes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rsp.shared.claims import COVER, FOLDER, GEOJSON, Output, check_paths, reporting, tile_set, tiles_output
from rsp.shared.errors import UsageError
from rsp.shared.tiles import write_cover
from tests.networks import make_card, make_checkpoint
from tests.tilesets import BLOCK, CONFIG, make_tileset, squares


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with `in.json`, a link and a hard link to it, `tiles/`, and a link to that."""
    monkeypatch.chdir(tmp_path)
    Path("in.json").write_text("{}")
    Path("link.json").symlink_to("in.json")
    Path("hard.json").hardlink_to("in.json")
    Path("tiles/3").mkdir(parents=True)
    Path("folder").symlink_to("tiles")
    return tmp_path


@pytest.mark.parametrize(
    "out", ["in.json", "./in.json", "link.json", "hard.json", "tiles/../in.json", "folder/../in.json"]
)
@pytest.mark.parametrize("source", ["in.json", "link.json", "i?.json"])
def test_an_output_that_is_an_input(here, out, source):
    with pytest.raises(UsageError, match=r"is the input .*; choose another output"):
        check_paths([Output(Path(out), GEOJSON)], [source])


def test_absolute_and_relative_names_are_the_same(here):
    with pytest.raises(UsageError, match="is the input"):
        check_paths([Output(here / "in.json", GEOJSON)], [Path("in.json")])


@pytest.mark.parametrize("out", ["tiles/sub", "tiles/deep/sub", "folder/sub"])
@pytest.mark.parametrize("source", ["tiles", "folder"])
def test_an_output_inside_an_input(here, out, source):
    with pytest.raises(UsageError, match="lies inside the input"):
        check_paths([tiles_output(Path(out), web_ui=True)], [Path(source)])


@pytest.mark.parametrize("out", [".", "..", "tiles", "folder"])
def test_an_output_that_contains_an_input(here, out):
    with pytest.raises(UsageError, match="contains the input"):
        check_paths([tiles_output(Path(out), web_ui=True)], [Path("tiles/3")])


def test_two_outputs(here):
    check_paths([Output(Path("a"), COVER), Output(Path("b"), COVER)], ["in.json"])
    with pytest.raises(UsageError, match="written twice"):
        check_paths([Output(Path("a"), COVER), Output(here / "a", COVER)], [])
    with pytest.raises(UsageError, match="inside each other"):
        check_paths([Output(Path("a"), COVER), Output(Path("a/b"), COVER)], [])
    with pytest.raises(UsageError, match="inside each other"):
        check_paths([Output(Path("a/b"), COVER), Output(Path("a"), COVER)], [])


def test_what_is_written_beside_counts(here):
    page, failed = Path("x.pmtiles.html"), Path("x.pmtiles.failed.csv")
    for read in (page, failed):
        with pytest.raises(UsageError, match="is the input"):
            check_paths([tiles_output(Path("x.pmtiles"), web_ui=True)], [read])
    check_paths([tiles_output(Path("x.pmtiles"), web_ui=False)], [page])
    # Tiles that failed before are tried again.
    check_paths([tiles_output(Path("x.pmtiles"), web_ui=True)], [], cover=failed)
    with pytest.raises(UsageError, match="is the input"):
        check_paths([tiles_output(Path("x.pmtiles"), web_ui=True)], [], cover=page)


def test_a_report_is_an_output(here):
    with reporting(Path("in.json")), pytest.raises(UsageError, match="is the input"):
        check_paths([], [Path("in.json")])
    with reporting(Path("out")), pytest.raises(UsageError, match="written twice"):
        check_paths([Output(Path("out"), FOLDER)], [])
    with reporting(Path("out/report.json")):
        check_paths([Output(Path("out"), FOLDER)], [])
    check_paths([], [Path("in.json")])


def test_what_may_lie_in_the_output(here):
    check_paths([Output(Path("tiles"), FOLDER)], [], inside=[Path("tiles/best.safetensors"), None])
    with pytest.raises(UsageError, match="is the input"):
        check_paths([Output(Path("tiles"), FOLDER)], [], inside=[Path("folder")])


def test_streams_and_addresses_are_no_files(here):
    check_paths([Output(Path("/dev/stdout"), COVER)], [Path("/dev/stdin"), "/dev/stdout", "https://host/x.tif"])
    check_paths([Output(Path("out"), COVER)], ["/vsimem/x.tif", None])


@pytest.mark.parametrize(
    ("path", "form", "said"),
    [
        ("out.gpkg", GEOJSON, r"GeoJSON \(.json, .geojson or no suffix\)"),
        ("out.json.gz", GEOJSON, "GeoJSON"),
        ("out.pmtiles", COVER, r"a cover \(.csv, .txt or no suffix\)"),
        ("out.JSON", COVER, "a cover"),
        ("out.tif", tiles_output(Path(), web_ui=True).form, r"tiles \(.pmtiles or no suffix for a folder\)"),
        ("best.safetensors", FOLDER, r"a folder \(no suffix\)"),
    ],
)
def test_a_name_that_promises_another_format(here, path, form, said):
    with pytest.raises(UsageError, match=f"cannot write {path}: the output is {said}"):
        check_paths([Output(Path(path), form)], [])


def test_names_that_promise_nothing_else(here):
    for path in ("out", "out.geojson", "OUT.JSON", "out.2024-01", "v1.5", ".hidden", "a.gpkg/out"):
        check_paths([Output(Path(path), GEOJSON)], [])
    for path in ("masks.old", "lr0.01", "x.PMTILES", "tiles.gpkg/x"):
        check_paths([tiles_output(Path(path), web_ui=True)], [])
    Path("there.tif").mkdir()
    check_paths([tiles_output(Path("there.tif"), web_ui=True)], [])


def test_a_folder_of_channels_is_no_tile_set(here):
    assert tile_set(Path("tiles")) == Path("tiles") and tile_set(here) is None
    assert tile_set(Path("in.json")) == Path("in.json") and tile_set(None) is None


def digest(root: Path) -> dict[str, str]:
    """What is in a folder: each path, where it leads to, and the digest of its content."""
    found = {}
    for path in sorted(root.rglob("*")):
        what = path.readlink() if path.is_symlink() else ""
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(root))] = f"{what} {content}"
    return found


# Each of these would destroy what it reads, write one output over another, or write under a false name.
COLLISIONS = {
    "cover over its features": "cover --zoom 14 truth.json truth.json",
    "cover over its features by a link": "cover --zoom 14 truth.json link.csv",
    "cover over one of a pattern": "cover --zoom 14 tr*.json truth.json",
    "cover inside its tile set": "cover --type dir images images/cover",
    "cover twice": "cover --type dir images --splits 50,50 s.csv ./s.csv",
    "cover as GeoJSON": "cover --bbox 0,0,1,1 --zoom 3 out.geojson",
    "cover as an archive": "cover --bbox 0,0,1,1 --zoom 3 out.pmtiles",
    "extract over its data": "extract --type building m.osm.pbf m.osm.pbf",
    "extract as a shapefile": "extract --type building m.osm.pbf out.shp",
    "vectorize as a shapefile": "vectorize --type building masks out.shp",
    "vectorize into its masks": "vectorize --type building masks masks/out.json",
    "vectorize over its masks": "vectorize --type building masks.pmtiles masks.pmtiles",
    "changes over its map": "changes --mapped truth.json --predicted masks truth.json",
    "changes into its masks": "changes --mapped truth.json --predicted masks masks/out.json",
    "changes twice": "changes --mapped truth.json --predicted masks --metrics out.json out.json",
    "changes as a cover": "changes --mapped truth.json --predicted masks out.csv",
    "changes with suspects in masks": "changes --mapped truth.json --predicted masks --suspects masks/s out.fgb",
    "review over its map": "review --changes c.json --mapped truth.json --accept_worst 1 --corrected truth.json",
    "review twice": "review --changes c.json --accept_worst 1 --accepted out.json --doubtful out.json --zoom 9",
    "rasterize over its features": "rasterize --geojson labels labels.csv labels",
    "rasterize around its features": "rasterize --geojson truth.json cover .",
    "rasterize over its cover": "rasterize --geojson truth.json cover cover",
    "rasterize into a picture": "rasterize --geojson truth.json cover out.png",
    "tile around its rasters": "tile --zoom 15 plain.tif .",
    "tile over its raster": "tile --zoom 15 plain.tif plain.tif",
    "tile into a picture": "tile --zoom 15 plain.tif out.png",
    "download over its cover": "download http://127.0.0.1:9/{z}/{x}/{y}.png cover cover",
    "download around its cover": "download http://127.0.0.1:9/{z}/{x}/{y}.png cover .",
    "subset into itself": "subset --dir images --filter cover images",
    "subset inside itself": "subset --dir images --filter cover images/part",
    "subset over an archive": "subset --dir masks.pmtiles --filter cover masks.pmtiles",
    "subset over its cover": "subset --dir images --filter cover cover",
    "predict over its images": "predict --checkpoint model.safetensors images images",
    "predict inside its images": "predict --checkpoint model.safetensors images images/masks",
    "predict over a channel": "predict --checkpoint model.safetensors dataset/training dataset/training/images",
    "predict around its channels": "predict --checkpoint model.safetensors dataset/training dataset",
    "evaluate over its masks": "evaluate labels masks masks",
    "evaluate inside its labels": "evaluate labels masks labels/metrics.json",
    "evaluate over its images": "evaluate --checkpoint model.safetensors labels images images",
    "evaluate as an archive": "evaluate labels masks out.pmtiles",
    "evaluate twice": "evaluate labels masks out out/metrics.json",
    "compare over its images": "compare --images images labels images",
    "compare list over its labels": "compare --mode list --labels labels --masks masks --geojson labels",
    "compare list as a page": "compare --mode list --labels labels --masks masks out.html",
    "train over its data": "train --dataset dataset dataset/training",
    "train around its data": "train --dataset dataset dataset",
    "train into a file": "train --dataset dataset best.safetensors",
    "export over its checkpoint": "export --checkpoint model.safetensors model.safetensors",
    "export as another kind": "export --type pt2 --checkpoint model.safetensors out.onnx",
    "report over an input": "cover --zoom 14 truth.json out --report truth.json",
    "report over the output": "cover --zoom 14 truth.json out --report ./out",
    "report into the tiles": "vectorize --type building masks out.json --report masks/r.json",
    "report of a deployment": "deploy --model model.safetensors --store store --report model.safetensors",
    "deploy a store into golden tiles": "deploy --model model.safetensors --golden images --store images/store",
    "deploy a store over golden tiles": "deploy --model model.safetensors --golden images --store images",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, scene) -> Path:
    root = tmp_path_factory.mktemp("workplace")
    make_tileset(root / "images")
    make_tileset(root / "labels", draw=squares)
    make_tileset(root / "masks", draw=squares)
    make_tileset(root / "masks.pmtiles")
    (root / "config.toml").write_text(CONFIG)
    for name in ("cover", "s.csv", "labels.csv"):
        write_cover(root / name, BLOCK)
    make_checkpoint(root / "model.safetensors", make_card(tile_size=64))
    for part in ("training", "validation"):
        for name in ("images", "labels"):
            shutil.copytree(root / name, root / "dataset" / part / name)
    shutil.copy(scene.features, root / "truth.json")
    shutil.copy(scene.pbf, root / "m.osm.pbf")
    (root / "plain.tif").write_bytes(b"II*\0")
    (root / "store").mkdir()
    (root / "link.csv").symlink_to("truth.json")
    return root


@pytest.mark.parametrize("what", COLLISIONS)
def test_every_tool_refuses_before_any_work(what, workplace, rsp, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("RSP_CONFIG", "config.toml")
    before = digest(workplace)
    ran = rsp(*COLLISIONS[what].split())
    assert ran.code == 2 and ran.stderr.startswith(f"rsp {what.split()[0] if what.split()[0] != 'report' else ''}")
    assert ran.stderr.count("\n") == 1 and "error: " in ran.stderr
    assert digest(workplace) == before


def test_outputs_in_legitimate_places(workplace, tmp_path, rsp, monkeypatch):
    """A subset of the current directory into it, two covers in one folder, masks beside the images."""
    shutil.copytree(workplace, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("RSP_CONFIG", "config.toml")
    for line in (
        "subset --dir images --filter cover",
        "subset --mode move --dir images --filter cover moved",
        "cover --type dir labels --splits 50,50 dataset/a dataset/b",
        "rasterize --geojson truth.json cover labels --append",
        "rasterize --geojson truth.json labels.failed.csv labels --resume",
        "predict --checkpoint model.safetensors dataset/training dataset/training/masks",
        "predict --checkpoint model.safetensors dataset/training dataset/training/masks --resume",
    ):
        if "failed.csv" in line:
            write_cover(Path("labels.failed.csv"), BLOCK)
        ran = rsp(*line.split())
        assert ran.code == 0, (line, ran.stderr)


def test_stdout_that_leads_to_a_file_stays_a_stream(tmp_path):
    """`rsp cover ... /dev/stdout > file`: the file gets the cover, and the name in /dev is not replaced."""
    command = [sys.executable, "-m", "rsp.shared.cli", "cover", "--bbox", "0,0,1,1", "--zoom", "3", "/dev/stdout"]
    before = os.lstat("/dev/stdout").st_ino
    with (tmp_path / "cover").open("w") as file:
        subprocess.run(command, check=True, stdout=file, stderr=subprocess.DEVNULL)
    assert (tmp_path / "cover").read_text() == "4,3,3\n" and os.lstat("/dev/stdout").st_ino == before
