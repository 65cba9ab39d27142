"""The README's HelloWorld runs as it stands, its URLs pointing at the generated town and its size made small."""

from __future__ import annotations

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

ROOT = Path(__file__).parent.parent
EPOCHS = 2
WHITE, PINK = (255, 255, 255), (255, 20, 147)


def hello_world() -> str:
    """The commands of the README."""
    found = re.search(
        r"^## HelloWorld$.*?^```bash\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.S | re.M
    )
    assert found, "README.md has no bash block under the heading HelloWorld"
    return found[1]


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
    for pattern, replacement in changes:
        block, count = re.subn(pattern, replacement, block)
        assert count == 1, f"HelloWorld has {count} times {pattern}"
    assert "https://" not in block
    return block


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("wget") or not shutil.which("bash"), reason="needs wget and bash")
def test_the_readme_runs_as_it_stands(scene, scene_server, tmp_path):
    script = made_local(hello_world(), scene_server.url, scene.bbox_text)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),  # no configuration but the one that the script fetches
        "no_proxy": "127.0.0.1",
    }
    environment.pop("RSP_CONFIG", None)
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=work, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr

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
