"""The demo on a small town and on tiles of one's own, and what it says when something is missing."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from examples.demo import default_epochs, main, serving
from tests.tilesets import make_tileset


@pytest.fixture
def own_tiles(scene, scene_server, tmp_path):
    """A folder as a person would have it: images/z/x/y.jpg and a GeoJSON."""
    import requests

    folder = tmp_path / "mine"
    for tile in scene.tiles:
        path = folder / "images" / str(tile.z) / str(tile.x) / f"{tile.y}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            requests.get(f"{scene_server.url}/xyz/{tile.z}/{tile.x}/{tile.y}.jpg", timeout=30).content
        )
    shutil.copy(scene.features, folder / "houses.geojson")
    return folder


@pytest.mark.slow
@pytest.mark.java
def test_own_tiles_end_to_end(own_tiles, tmp_path, capsys):
    from rsp.serving.host import preflight
    from rsp.shared.errors import ServingError

    try:
        preflight()
    except ServingError as error:
        pytest.skip(str(error))
    out = tmp_path / "out"
    assert main(["--out", str(out), "--scene", str(own_tiles), "--epochs", "1"]) == 0
    text = capsys.readouterr().out
    # Every path that is named is there.
    named = re.findall(rf"^  ({re.escape(str(out))}\S+)", text, re.M)
    assert len(named) >= 8
    for path in named:
        assert (out / path).exists()
    numbers = json.loads((out / "metrics.json").read_text())
    assert numbers["deployed"] and numbers["tiles_over_http"] == numbers["same_as_the_pipeline"] > 0
    assert {"train", "deploy"} <= set(numbers["seconds"])
    assert f"IoU of buildings on the validation tiles: {numbers['metrics']['iou']:.3f}" in text
    # The page shows the same number, and links to files that are there.
    page = (out / "index.html").read_text("utf-8")
    assert f"  {out / 'index.html'}\n" in text
    assert f"<strong>{numbers['metrics']['iou']:.3f}</strong>" in page
    assert f"reports an IoU of {numbers['training_iou']:.3f}" in page
    links = re.findall(r'<a href="([^"]+)"', page)
    assert len(links) == len(named) - 1
    for link in links:
        assert (out / link).exists()


def test_without_java_the_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "none"))
    with serving(tmp_path) as server:
        assert server is None
    assert "openjdk-17-jre-headless" in capsys.readouterr().out


def test_epochs_follow_the_amount_of_imagery():
    assert default_epochs(48, 512) > default_epochs(480, 512) > 1
    assert default_epochs(1, 64) <= 100


def test_a_folder_that_is_no_scene(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), "--scene", str(tmp_path)]) == 1
    assert "images" in capsys.readouterr().err
    make_tileset(tmp_path / "images")
    assert main(["--out", str(tmp_path / "out"), "--scene", str(tmp_path)]) == 2
    assert "one GeoJSON" in capsys.readouterr().err
