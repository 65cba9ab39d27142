"""The HelloWorld pipeline, whole, on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rsp.pipelines.compiler import compile_pipeline
from rsp.pipelines.local import LocalRun, run_local
from rsp.shared.images import decode_mask
from rsp.shared.tiles import read_cover
from rsp.shared.tileset import open_reader
from tests.tilesets import CONFIG

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

STEPS = {
    "cover", "download", "rasterize", "split", "subset-training-images", "subset-training-labels",
    "subset-validation-images", "subset-validation-labels", "subset-validation-masks", "train", "export",
    "predict", "compare", "vectorize", "gate", "resolve", "notify",
}  # fmt: skip


def parameters(scene, url: str, **changes) -> dict:
    return {
        "source": scene.bbox_text,
        "zoom": scene.zoom,
        "url": url,
        "rate": 100,
        "features": str(scene.features),
        # The server has tiles of 256 px, which labels and masks must have, too, whatever the network sees.
        "config": CONFIG.replace("ts = 64", "ts = 128\nnum_filters = 8"),
        "epochs": 1,
        "block": 2,
        "store": "/nowhere/store",
        **changes,
    }


# Starts loopback, which is down in a new network namespace, then the tile server, then the pipeline.
OFFLINE = """
import fcntl, json, socket, struct, sys
from pathlib import Path
from rsp.pipelines.local import run_local
from examples.town.server import SceneServer
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sh", b"lo", 1))
try:
    socket.create_connection(("192.0.2.1", 80), timeout=3)
    sys.exit("there is a network")
except OSError:
    pass
given = json.loads(Path(sys.argv[1]).read_text())
with SceneServer(Path(sys.argv[2])) as server:
    given["url"] = server.url + "/xyz/{z}/{x}/{y}.jpg"
    run_local("hello_world", given, Path(sys.argv[3]))
"""


def can_cut_the_network() -> bool:
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode
    )


def run_offline(scene, scene_server, root: Path) -> None:
    """A run without a network, where this machine lets us cut it; steps that asked for anything would fail."""
    # No model has an IoU of 2: the deployment is left out.
    given = parameters(scene, f"{scene_server.url}/xyz/{{z}}/{{x}}/{{y}}.jpg", threshold=2.0)
    if not can_cut_the_network():
        run_local("hello_world", given, root)
        return
    root.mkdir()
    (root / "given.json").write_text(json.dumps(given))
    command = ["unshare", "-n", sys.executable, "-c", OFFLINE, root / "given.json", scene.path, root]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, cwd=root)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture(scope="module")
def run(hello_world_run) -> LocalRun:
    return hello_world_run


def test_all_steps_but_the_deployment(run):
    assert set(run.steps) == STEPS and run.skipped == ["deploy"]
    assert run.steps["gate"].parameters == {"Output": "keep"}
    assert all(step.ok and step.seconds > 0 for step in run.steps.values())


def test_outputs_are_there(run):
    for step in run.steps.values():
        for name, artifact in step.outputs.items():
            assert artifact.path.exists(), f"{step.name}.{name}"
    assert "<html" in run.path("compare", "map").read_text()[:200]
    assert "<img " in run.path("compare", "side_by_side").read_text()
    assert json.loads(run.path("vectorize", "features").read_text())["type"] == "FeatureCollection"


def test_the_split_loses_no_tile(run, scene):
    training, validation = (read_cover(run.path("split", name)) for name in ("training", "validation"))
    assert sorted(training + validation) == sorted(scene.tiles)
    for part, tiles in (("training", training), ("validation", validation)):
        for kind in ("images", "labels"):
            with open_reader(run.path(f"subset-{part}-{kind}", "subset")) as reader:
                assert reader.tiles() == sorted(tiles)


def test_the_map_is_whole_and_the_measure_is_of_the_validation_part(run, scene):
    with open_reader(run.path("predict", "masks")) as reader:
        assert reader.tiles() == sorted(scene.tiles)
        masks = {tile: decode_mask(reader.read(tile)) for tile in reader.tiles()}
    inter = union = 0
    with open_reader(run.path("rasterize", "labels")) as labels:
        for tile in read_cover(run.path("split", "validation")):
            label, mask = decode_mask(labels.read(tile)) > 0, masks[tile] > 0
            inter, union = inter + np.sum(label & mask), union + np.sum(label | mask)
    assert run.metrics("compare")["iou"] == pytest.approx(inter / union, abs=1e-6)


def test_metrics_are_metrics_of_kfp(run):
    assert {"iou", "miou", "mcc", "iou_building"} <= set(run.metrics("compare"))
    matrix = run.steps["compare"].outputs["confusion"].metadata["confusionMatrix"]
    assert len(matrix["struct"]["rows"] if "struct" in matrix else matrix["rows"]) == 2


def test_the_same_pipeline_as_the_compiled_one(run):
    """What ran is what is compiled: the log shows the steps of the YAML and no pip."""
    compiled = compile_pipeline("hello_world")
    assert "pip install" not in run.log.read_text() + compiled
    assert all(f"    {step}:" in compiled for step in STEPS)


def test_the_parts_are_pipelines_too(run, scene, scene_server, tmp_path):
    """prediction with the model of the run, and quality of its masks, are what hello_world had within."""
    config = parameters(scene, "")["config"]
    predicted = run_local(
        "prediction",
        {
            "source": scene.bbox_text, "zoom": scene.zoom, "rate": 100, "config": config,
            "url": f"{scene_server.url}/xyz/{{z}}/{{x}}/{{y}}.jpg", "model": str(run.path("export", "model")),
        },
        tmp_path,
    )  # fmt: skip
    assert predicted.path("predict", "masks").read_bytes() == run.path("predict", "masks").read_bytes()
    assert predicted.path("vectorize", "features").read_bytes() == run.path("vectorize", "features").read_bytes()
    measured = run_local(
        "quality",
        {
            "images": str(run.path("subset-validation-images", "subset")),
            "labels": str(run.path("subset-validation-labels", "subset")),
            "masks": str(run.path("subset-validation-masks", "subset")),
            "config": config,
            "mapped": str(scene.features),
        },
        tmp_path,
    )
    assert measured.metrics("compare") == run.metrics("compare")
    # Object by object, worst first, and no object of the map beyond the validation part.
    ranked = json.loads(measured.path("changes", "changes").read_text())["features"]
    scores = [feature["properties"]["score"] for feature in ranked]
    assert scores == sorted(scores, reverse=True) and len(scores) > 20
    held_out = read_cover(run.path("split", "validation"))
    assert {tile[:3] for tile in read_cover(measured.path("changes", "suspects"))} <= {
        tile[:3] for tile in held_out
    }
    assert {"precision", "recall", "f1"} <= set(measured.metrics("changes"))
    assert "data:image/" in measured.path("review-page", "page").read_text()
