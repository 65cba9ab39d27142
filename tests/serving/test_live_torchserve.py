"""The live front before the real TorchServe, as `rsp serve` starts both: masks as of `rsp predict`."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import requests

from rsp.components.predict.tool import predict
from rsp.components.tile.tool import tile as cut
from rsp.serving.host import free_ports
from rsp.shared.images import decode_mask
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import open_reader
from tests.browser import Tab, chromium
from tests.serving.tiny import make_checkpoint
from tests.tilesets import make_tileset, noise

pytestmark = [
    pytest.mark.slow,
    pytest.mark.java,
    pytest.mark.skipif(shutil.which("java") is None, reason="no Java: install openjdk-17-jre-headless"),
]


class Served:
    """`rsp serve` with two sources, and what `rsp predict` says of the first."""

    def __init__(self, scene, folder) -> None:
        self.checkpoint = make_checkpoint(folder / "model.safetensors", tile_size=128, zoom=19)
        self.images = folder / "town.pmtiles"
        cut([str(scene.raster)], self.images, zoom=19, tile_size=128, tile_format="png", cover=scene.cover,
            web_ui=False)  # fmt: skip
        predict(self.images, folder / "masks", checkpoint=self.checkpoint, web_ui=False)
        with open_reader(folder / "masks") as reader:
            self.masks = {tile: reader.read(tile) for tile in reader.tiles()}
        port, metrics = free_ports((0, 0))
        self.url, self.metrics = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics"
        self.log = folder / "log"
        argv = ["--model", self.checkpoint, "--name", "roofs", "--port", port, "--metrics_port", metrics,
                "--workers", 1, "--source", f"town={self.images}#attribution=A generated town",
                "--source", f"ortho={scene.raster}", "--drain", 0]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rsp.shared.cli", "serve", *map(str, argv)], stdout=log, stderr=log
            )
        end = time.monotonic() + 120
        while not self.ready():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False


@pytest.fixture(scope="module")
def served(scene, tmp_path_factory):
    found = Served(scene, tmp_path_factory.mktemp("served"))
    yield found
    found.process.send_signal(signal.SIGTERM)
    assert found.process.wait(30) == 0, found.log.read_text()


@pytest.mark.browser
def test_a_person_pans_over_imagery_and_sees_the_masks_of_predict(served):
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        tab = Tab(page)
        seen: dict[Tile, bytes] = {}

        def keep(route) -> None:
            """Pass a request on, and note what comes back."""
            answer = route.fetch()
            match = re.search(r"/town/roofs/(\d+)/(\d+)/(\d+)\.png", route.request.url)
            if match and answer.status == 200:
                z, x, y = map(int, match.groups())
                seen[Tile(x, y, z)] = answer.body()
            route.fulfill(response=answer)

        page.route("**/town/roofs/**.png*", keep)
        tab.open(f"{served.url}/")
        for _ in range(6):
            page.wait_for_selector("body[data-waiting='0']")
            if len(seen) == len(served.masks):
                break
            page.mouse.move(500, 600)
            page.mouse.down()
            page.mouse.move(500, 200, steps=5)
            page.mouse.up()
            page.wait_for_timeout(300)
        assert seen.keys() == served.masks.keys()
        for tile, body in seen.items():
            assert np.array_equal(decode_mask(body), decode_mask(served.masks[tile])), tile
        assert page.inner_text("#state") == "serving" and "building" in page.inner_text("#legend")
        assert "A generated town" in page.inner_text(".leaflet-control-attribution")
        page.check("#features")
        page.locator("path.outline").first.wait_for(state="attached")
        assert tab.errors == [] and tab.hosts == {"127.0.0.1"}
        page.close()


def test_a_mask_is_that_of_predict_byte_for_byte_in_each_form(served):
    tile, mask = next(iter(served.masks.items()))
    path = f"{served.url}/town/roofs/{zxy(tile)}"
    assert requests.get(f"{path}.png").content == mask
    webp = requests.get(f"{path}.webp")
    assert webp.headers["Content-Type"] == "image/webp"
    found = requests.get(f"{path}.geojson").json()["features"]
    assert found and {each["properties"]["class"] for each in found} == {"building"}
    image = requests.get(f"{served.url}/town/{zxy(tile)}.png").content
    answer = requests.post(f"{served.url}/predictions/roofs", image)
    assert answer.status_code == 200 and decode_mask(answer.content).shape == (128, 128)
    # The same photograph, cut live, sees more around its edges than the tiles of the cover.
    assert requests.get(f"{served.url}/ortho/roofs/{zxy(tile)}.png").status_code == 200


def test_predict_names_tiles_to_a_front_that_has_them(served, rsp, tmp_path):
    argv = ("predict", "--endpoint", f"{served.url}/predictions/roofs", "--no_web_ui")
    posted = 'rsp_requests_total{model="roofs"'
    before = requests.get(served.metrics).text.count(posted)
    ran = rsp(*argv, "--source", "town", served.images, tmp_path / "masks")
    assert ran.code == 0, ran.stderr
    with open_reader(tmp_path / "masks") as reader:
        assert {tile: reader.read(tile) for tile in reader.tiles()} == served.masks
    assert requests.get(served.metrics).text.count(posted) == before or before == 0
    # Without a source the pixels are sent, and the masks are the same.
    assert rsp(*argv, served.images, tmp_path / "sent").code == 0
    with open_reader(tmp_path / "sent") as reader:
        assert {tile: reader.read(tile) for tile in reader.tiles()} == served.masks


def test_predict_does_not_believe_that_a_source_is_the_tile_set(served, rsp, tmp_path):
    argv = ("predict", "--endpoint", f"{served.url}/predictions/roofs", "--no_web_ui", "--source")
    other = make_tileset(tmp_path / "other", list(served.masks), draw=lambda tile: noise(tile, 128))
    ran = rsp(*argv, "town", other, tmp_path / "masks")
    assert ran.code == 1 and "is not this tile set: of 19/" in ran.stderr and "leave out --source" in ran.stderr
    far = make_tileset(tmp_path / "far", [Tile(1, 1, 19)], draw=lambda tile: noise(tile, 128))
    ran = rsp(*argv, "town", far, tmp_path / "masks")
    assert ran.code == 1 and "does not give them: the source 'town' has no such tile" in ran.stderr
    ran = rsp(*argv, "none", served.images, tmp_path / "masks")
    assert ran.code == 1 and "no source 'none'" in ran.stderr
    ran = rsp("predict", "--checkpoint", served.checkpoint, "--source", "town", served.images, tmp_path / "masks")
    assert ran.code == 2 and "--endpoint" in ran.stderr
