"""The README's blocks run as they stand: only the size is made small, and URLs point at the generated town."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsp.shared.images import complementary, decode
from rsp.shared.tiles import read_cover
from rsp.shared.tileset import open_reader
from tests import guides

ROOT = Path(__file__).parent.parent
EPOCHS = 2
WHITE, PINK = (255, 255, 255), (255, 20, 147)


def blocks(heading: str) -> str:
    """The commands of the README under a heading."""
    return "".join(guides.blocks(guides.page("README.md"), "bash", heading))


def changed(block: str, changes: list[tuple[str, str]]) -> str:
    """Make each change, which must be possible exactly once; all else stays."""
    for pattern, replacement in changes:
        block, count = re.subn(pattern, replacement, block)
        assert count == 1, f"the block has {count} times {pattern}"
    return block


def paste(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run commands in a folder, as in a shell where `.venv/bin/activate` was sourced and nothing is configured."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "no_proxy": "127.0.0.1",
    }
    environment.pop("RSP_CONFIG", None)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def made_local(block: str, url: str, bbox: str) -> str:
    """Point the URLs at the scene's server; make the area and the number of epochs small. All else stays."""
    changes = [
        (r"https://raw\.githubusercontent\.com/\S+/config\.toml", f"{url}/config.toml"),
        (r"https://download\.data\.grandlyon\.com/wms/grandlyon", f"{url}/wms"),
        (r"https://download\.data\.grandlyon\.com/wfs/grandlyon", f"{url}/wfs"),
        (r"LAYERS=\w+", "LAYERS=town"),
        (r"WIDTH=512&HEIGHT=512", "WIDTH=256&HEIGHT=256"),
        (r"bbox 4\.8,45\.7,4\.83,45\.73 --zoom 18", f"bbox {bbox} --zoom 19"),
        (r"--epochs 5", f"--epochs {EPOCHS}"),
        (r"checkpoint-00005-of-00005", f"checkpoint-{EPOCHS:05}-of-{EPOCHS:05}"),
    ]
    block = changed(block, changes)
    assert "https://" not in block
    return block


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("wget") or not shutil.which("bash"), reason="needs wget and bash")
def test_hello_world(scene, scene_server, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    paste(made_local(blocks("HelloWorld"), scene_server.url, scene.bbox_text), work)

    tiles = sorted(scene.tiles)
    assert sorted(read_cover(work / "cover")) == tiles
    contents = {name: open_reader(work / name) for name in ("images", "labels", "masks", "compare")}
    for name, reader in contents.items():
        assert reader.tiles() == tiles, name
        page = (work / name / "index.html").read_text("utf-8")
        assert "<html" in page and (work / name / "tiles.json").exists(), name

    training, validation = (read_cover(work / "dataset" / part / "cover") for part in ("training", "validation"))
    assert (len(training), len(validation)) == (14, 6) and sorted(training + validation) == tiles
    for part, cover in (("training", training), ("validation", validation)):
        for name in ("images", "labels"):
            assert open_reader(work / "dataset" / part / name).tiles() == sorted(cover)

    plain = [WHITE, PINK]
    labelled = 0
    for tile in tiles:
        label, mask = (
            Image.open(work / name / "19" / str(tile.x) / f"{tile.y}.png") for name in ("labels", "masks")
        )
        for picture, colors in ((label, complementary(plain)), (mask, plain)):
            assert (picture.mode, picture.size) == ("P", (256, 256))
            assert [tuple(picture.getpalette()[i : i + 3]) for i in (0, 3)] == colors
        labelled += np.count_nonzero(label)
        assert decode(contents["compare"].read(tile)).shape == (256, 256, 3)
    assert 0.08 < labelled / (len(tiles) * 256 * 256) < 0.4

    checkpoints = sorted(path.name for path in (work / "models").glob("checkpoint-*.pth"))
    assert f"checkpoint-{EPOCHS:05}-of-{EPOCHS:05}.pth" in checkpoints
    assert not list(work.rglob("*.failed.csv"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_step_by_step(tmp_path):
    """As in a checkout; the model is good enough to find buildings after one short training."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = changed(blocks("Step by step"), [("--tiles 40", "--tiles 16"), ("--epochs 3", "--epochs 1")])
    assert "http" not in script
    paste(script, tmp_path)
    town = tmp_path / "demo" / "town"
    tiles = read_cover(town / "cover.csv")
    for name in ("images", "labels", "masks", "side"):
        assert open_reader(town / name).tiles() == sorted(tiles), name
    training, validation = (read_cover(town / name) for name in ("training.csv", "validation.csv"))
    assert sorted(training + validation) == sorted(tiles) and len(validation) >= 4
    assert len((town / "tiles.txt").read_text().splitlines()) == len(validation)
    assert json.loads((town / "buildings_found.geojson").read_text())["features"]
    assert (town / "model.pt2").stat().st_size > 1_000_000
    for page in ("images/index.html", "side/index.html"):  # which the README says to open
        assert page in (ROOT / "README.md").read_text("utf-8") and (town / page).exists()


def test_install_puts_rsp_on_the_path():
    """`source .venv/bin/activate` follows `make setup`, and precedes the first `rsp`."""
    text = blocks("Install")
    assert text.index("make setup\n") < text.index("source .venv/bin/activate\n") < text.index("\nrsp ")


@pytest.mark.parametrize("heading", ["Install", "Two commands", "Step by step", "Serve a model", "On Kubeflow"])
def test_blocks_can_be_pasted_into_any_shell(heading):
    """zsh takes no comments at its prompt: `make demo  # text` would ask for the targets `#` and `text`."""
    assert not re.search(r"(^|\s)#", blocks(heading), re.M)
