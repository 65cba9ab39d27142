"""Retraining night after night into a TorchServe that runs: trained, judged and deployed for real.

The nights share one store on an S3 server. What is compared are networks that were trained by the pipeline itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rsp.pipelines.local import LocalRun, run_local
from rsp.serving.manifest import sha8
from rsp.serving.releases import ReleaseStore
from rsp.shared.config import parse_tables
from rsp.shared.locations import location
from rsp.shared.page import PAGE_BYTES
from rsp.shared.storage import open_storage
from rsp.shared.tileset import open_reader
from tests.serving.load import Load
from tests.tilesets import CONFIG

pytestmark = [pytest.mark.slow, pytest.mark.java]

NAME = "nightly"
# Of twenty tiles, which are a block each, a hash holds out twelve.
SPLIT = {"seed": 3, "share": 50, "block": 1}


def trained(epochs: int, rate: float) -> dict[str, Any]:
    """The parameters of a training; the network is the smallest there is."""
    text = CONFIG.replace("ts = 64", "ts = 256\nnum_filters = 8").replace("bs = 4", "bs = 2")
    return {"epochs": epochs, "config": parse_tables(text.replace("lr = 0.001", f"lr = {rate}"))}


@dataclass
class Nights:
    """A store, a server that follows it, and what every night is given."""

    given: dict[str, Any]
    root: Path
    store: ReleaseStore
    server: Any

    def run(self, **changes: Any) -> LocalRun:
        return run_local("retraining", self.given | changes, self.root)

    @property
    def verdicts(self) -> list[tuple[str, str, str]]:
        """Champion, candidate and verdict of each night that trained."""
        return [(each.champion, each.candidate, each.verdict) for each in self.store.judgements(NAME)]


@pytest.fixture
def nights(scene, scene_server, bucket, tmp_path) -> Iterator[Nights]:
    from rsp.serving.host import preflight
    from rsp.serving.server import Server
    from rsp.shared.errors import ServingError

    try:
        preflight()
    except ServingError as error:
        pytest.skip(str(error))
    location(f"{bucket}/in").storage().upload("features.geojson", scene.features)
    with Server(f"{bucket}/store", [NAME], cache=tmp_path / "cache") as server:
        given = {
            "source": scene.bbox_text,
            "zoom": scene.zoom,
            "url": f"{scene_server.url}/xyz/{{z}}/{{x}}/{{y}}.jpg",
            "rate": 100,
            "features": f"{bucket}/in/features.geojson",
            "gpus": "0",
            "threshold": 0.0,
            "store": f"{bucket}/store",
            "status": server.status_url,
            "endpoint": server.inference,
            "model_name": NAME,
            "data_root": f"{bucket}/data",
            "refresh": "tonight",  # it may be midnight
            **SPLIT,
        }
        yield Nights(given, tmp_path / "runs", ReleaseStore(open_storage(f"{bucket}/store")), server)


def named(run: LocalRun, step: str) -> Any:
    return next(each for name, each in run.steps.items() if name.removesuffix("-s3") == step)


def test_night_after_night(nights, rsp, tmp_path):
    # The first night: nothing serves yet, and the bar alone decides.
    first = nights.run(**trained(4, 0.003))
    one = sha8(named(first, "export").outputs["model"].path)
    assert named(first, "changed").parameters == {"Output": "train"}
    assert named(first, "champion").parameters == {"version": "", "checkpoint_at": ""}
    assert named(first, "judge").parameters == {"Output": "deploy"}
    assert named(first, "deploy").parameters["version"] == one
    assert nights.verdicts == [("", one, "deploy")]
    pointer = nights.store.pointer(NAME)
    assert pointer.version == one and "there is no champion" in pointer.reason
    # The server answers as the pipeline did.
    endpoint = f"{nights.server.inference}/predictions/{NAME}"
    assert named(first, "deploy").parameters["endpoint"] == endpoint
    images, masks = (
        named(first, step).outputs[output].metadata["address"]
        for step, output in (("subset-validation-images", "subset"), ("predict", "masks"))
    )
    ran = rsp("predict", "--endpoint", endpoint, images, tmp_path / "masks")
    assert ran.code == 0, ran.stderr
    with open_reader(tmp_path / "masks") as served, open_reader(masks) as predicted:
        assert served.tiles() == predicted.tiles() and len(predicted) == 12
        for tile in served.tiles():
            assert served.read(tile) == predicted.read(tile)

    # Nothing has changed: nothing is trained, and the run says so.
    second = nights.run(**trained(4, 0.003))
    assert named(second, "changed").parameters == {"Output": "unchanged"}
    assert {"split", "champion", "train", "judge", "deploy"} <= set(second.skipped)
    assert "unchanged: images, labels and settings are those of" in second.log.read_text()
    assert named(second, "download").outputs["tiles"].metadata["reused"], "fetched once a night"
    assert len(nights.verdicts) == 1

    # A worse one, by artifacts: it is kept out, and the store knows why.
    third = nights.run(**trained(1, 0.000001), data_root="")
    two = sha8(third.path("export", "model"))
    assert third.steps["champion"].parameters["version"] == one
    assert third.steps["judge"].parameters == {"Output": "keep"} and "deploy" in third.skipped
    judged = nights.store.judgements(NAME)[-1]
    assert nights.verdicts[1:] == [(one, two, "keep")] and judged.gain < 0
    assert "kept the champion: " in judged.reason and (judged.tiles, judged.blocks) == (12, 12)
    metrics = third.metrics("judge")
    assert (metrics["iou"], metrics["champion_iou"]) == (judged.iou, judged.champion_iou)
    page = third.path("judge", "page").read_text()
    assert "Verdict: keep what serves." in page and two in page and len(page) < PAGE_BYTES
    assert nights.store.pointer(NAME) == pointer

    with Load(nights.server.inference, 2, NAME, pause=1.0, size=256) as load:
        load.wait_for(1)
        # A better one, from where the champion stopped, deployed while it is asked.
        fourth = nights.run(**trained(8, 0.002), warm_start=True)
        three = sha8(named(fourth, "export").outputs["model"].path)
        assert named(fourth, "champion").parameters["checkpoint_at"].startswith(nights.given["store"])
        assert "fine-tuning from" in fourth.log.read_text()
        assert named(fourth, "deploy").parameters == {"version": three, "endpoint": endpoint, "replaced": one}
        assert nights.verdicts[2:] == [(one, three, "deploy")]
        judged = nights.store.judgements(NAME)[-1]
        assert judged.gain >= 0.005 and judged.low >= 0
        moved = nights.store.pointer(NAME)
        assert (moved.version, moved.reason) == (three, judged.reason)
        order = json.loads(named(fourth, "judge").outputs["verdict"].path.read_text())
        assert order["candidate"] == three
        load.wait_for(max(map(len, load.moments)) + 2)
    assert load.faults == [] and load.versions == {one, three}
