"""The guides: their commands run in an empty folder, one after the other, and come to what the pages say."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import zipfile
from collections import defaultdict
from importlib import import_module

import pytest

from rsp.components.review.decisions import write_decisions
from rsp.components.review.suspects import read_suspects
from rsp.pipelines.cli import make_parser as pipeline_parser
from rsp.shared.cli import make_parser, parse, tools
from rsp.shared.features import read_features
from rsp.shared.tiles import read_cover, write_cover
from rsp.shared.tileset import open_reader
from tests.guides import ROOT, blocks, commands, page
from tests.review import MAPPED, PREDICTED, RED, TILES, make_masks, make_tiles, write
from tests.serving.tiny import make_checkpoint
from tests.tilesets import CONFIG, make_tileset

GUIDES = {path.name: path.read_text("utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
GUIDES = {name: text for name, text in GUIDES.items() if commands(text)}


def test_change_detection(follow, tmp_path):
    text = page("change-detection")
    said = follow(commands(text))
    counts, head = blocks(text, "")
    first, again = (said[line] for line in said if "--predicted buildings.geojson" in line)
    assert counts.strip() in first and head in said["head -n 3 suspects.csv"]
    # The table has the worst object of each status.
    found = defaultdict(list)
    for each in read_features(tmp_path / "demo" / "dates" / "between.gpkg"):
        found[each.properties["status"]].append(each.properties)
    names = ("score", "iou", "offset_m", "support")
    rows = re.findall(r"^\| `(\w+)` \|" + r" ([\d.]*) ?\|" * len(names), text, re.M)
    assert {status for status, *_ in rows} == found.keys()
    for status, *cells in rows:
        for name, cell in zip(names, cells, strict=True):
            value = found[status][0][name]
            assert (value is None) == (not cell), (status, name)
            assert not cell or value == pytest.approx(float(cell), abs=0.06 if name == "offset_m" else 0.006)
    # What was corrected is as things are today.
    assert "objects: 100, matched: 100," in again
    with open_reader(tmp_path / "demo" / "dates" / "images_to_review") as reader:
        assert reader.tiles() == sorted(read_cover(tmp_path / "demo" / "dates" / "suspects.csv"))


# Of one of our tools, with what stands for more of the same left out.
OURS = re.compile(r"(?:\w+=\S+ )*rsp (.*?)(?: \.\.\.)?$")


@pytest.mark.parametrize("name", sorted(GUIDES))
def test_commands_are_taken_by_the_real_parsers(name):
    """Each `rsp` line of each page, run elsewhere or not."""
    for line in commands(GUIDES[name]):
        if (ours := OURS.match(line)) and not ours[1].startswith(("help", "completion")):
            taken(line, *shlex.split(ours[1]))


def taken(line, name, *argv):
    try:
        if name == "pipeline":
            pipeline_parser().parse_args(argv)
            return
        module = import_module(tools()[name])
        parser = module.make_parser() if hasattr(module, "make_parser") else make_parser(name, module)
        parse(parser, argv)
    except SystemExit:
        pytest.fail(line)


THREE = CONFIG.replace(
    "[model]",
    '[[classes]]\ntitle = "road"\ncolor = "gray"\n\n[[classes]]\ntitle = "field"\ncolor = "green"\n\n[model]',
)


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """Name a background and a building where nobody says `--config`."""
    (tmp_path / "config.toml").write_text(CONFIG)
    monkeypatch.setenv("RSP_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path / "config.toml"


def test_review(follow, tmp_path, configured):
    lines = commands(page("review"))
    write(tmp_path / "buildings.geojson", MAPPED)
    make_tiles(tmp_path / "images", RED)
    write_cover(tmp_path / "cover", TILES)
    for name, shapes in (("masks.pmtiles", PREDICTED), ("masks", PREDICTED), ("labels", MAPPED)):
        make_masks(tmp_path / name, shapes)
    follow(lines[:2])
    # What a person saves: of the last kind, one is in doubt.
    suspects = read_suspects(tmp_path / "changes.geojson")
    decided = dict.fromkeys((each.number for each in suspects.objects), "accept")
    (doubt,) = (each.number for each in suspects.objects if each.status == "moved")
    write_decisions(tmp_path / "decisions.json", suspects, decided | {doubt: "doubt"})
    said = follow(lines[2:])
    assert "doubt: 1" in said[lines[2]] and "added: 1" in said[lines[2]]
    with open_reader(tmp_path / "labels_2") as reader:
        assert reader.tiles() == sorted(set(TILES) - set(read_cover(tmp_path / "doubtful.csv")))
    new = [each.geometry for each in read_features(tmp_path / "new.geojson")]
    assert max(each.intersection(PREDICTED[-1]).area for each in new) > 0.99 * PREDICTED[-1].area


@pytest.mark.skipif(not shutil.which("ogr2ogr"), reason="needs gdal-bin")
def test_vectors(follow, tmp_path, configured, scene, scene_server):
    lines = commands(page("vectors"))
    configured.write_text(THREE)
    shutil.copyfile(scene.pbf, tmp_path / "liechtenstein.osm.pbf")
    subprocess.run(["ogr2ogr", tmp_path / "roofs.shp", scene.features], check=True)
    with zipfile.ZipFile(tmp_path / "cadastre.zip", "w") as archive:
        for path in tmp_path.glob("roofs.*"):
            archive.write(path, path.name)
    masks = next(nth for nth, line in enumerate(lines) if line.startswith("rsp vectorize"))
    of_three = ("^rsp rasterize", r"\g<0> --type building")
    follow(lines[:masks], [of_three, (r"https://wfs\.example/\?", f"{scene_server.url}/wfs?SERVICE=WFS&")])
    shutil.copytree(tmp_path / "labels", tmp_path / "masks")
    make_tileset(tmp_path / "images", read_cover(tmp_path / "cover"))
    make_checkpoint(tmp_path / "model.safetensors")
    follow(lines[masks:], [of_three])
    assert len(list(read_features(tmp_path / "buildings.parquet"))) > 20
