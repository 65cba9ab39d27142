"""`make test-images`: the images, built by a real engine and run as a cluster runs them.

Every tool runs as nobody in particular, on a root file system that cannot be written, without a capability and
without a network, and writes byte for byte what the command line writes here. The file is named as no test of the
suite is: it needs root, 6 GB of disk and some minutes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyogrio
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from safetensors.numpy import load_file

from examples import demo
from examples.town.generate import Scene, load_scene
from examples.town.server import CONFIG
from rsp.components.bases import base_of, base_tag, project, tools
from rsp.components.container import image_tag
from rsp.pipelines.compiler import compile_pipeline
from rsp.pipelines.compiler import parameters as compiled_parameters
from rsp.shared.images import decode_mask
from rsp.shared.tileset import open_reader
from tests.images import imports, sizes
from tests.images.bases import base_image, build_environment
from tests.images.boxes import (
    LOCKED,
    REGISTRY,
    ROOT,
    THREADS,
    Images,
    at_once,
    logs,
    open_up,
    run_in_images,
    s3_server,
    started,
)
from tests.images.champions import champions
from tests.images.engine import docker, engine, use_client
from tests.pipelines import toys

ABOUT = project(ROOT)
TOOLS = tools(ABOUT)
# The build of torch that is installed here: of two builds, the one need not compute what the other does.
TORCH = version("torch").partition("+")[2] or "cuda"
# A short training is enough: what is asked is whether both ways agree.
EPOCHS = 1
# These name the version of rsp that wrote them, which is another one where `make setup` ran before the last
# commit, and how long the training took.
DIFFER = re.compile(r"(models/|model\.|store/)")


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Iterator[Images]:
    """All images of this commit, built by components/images.sh."""
    folder = tmp_path_factory.mktemp("build")
    recipe = (ROOT / "components/bases.Dockerfile").read_text()
    named = re.search(r"^ARG BASE_IMAGE=(.*)$", recipe, re.M)[1]
    tag = image_tag()
    command = ["git", "rev-parse", "HEAD"]
    revision = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    use_client(tmp_path_factory.mktemp("client"))
    with engine():
        base = base_image(named, folder)
        with build_environment() as environment:
            command = [ROOT / "components/images.sh"]
            environment = {
                **os.environ, **environment, "RSP_IMAGE_REGISTRY": REGISTRY, "RSP_TORCH": TORCH,
                "RSP_BASE_IMAGE": base, "RSP_BASE_REFRESH": "", "RSP_SBOM": str(folder / "sbom"),
                "PYTHON": sys.executable,
            }  # fmt: skip
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-6000:]
        built = Images(tag, base_tag(ROOT, base, TORCH, ""), base, revision, folder / "sbom")
        assert done.stdout.split() == [built[name] for name in (*TOOLS, "serving")]
        yield built


@dataclass(frozen=True)
class Town:
    """A generated town: its files, how HelloWorld is told of it, and in which network its tile server is."""

    scene: Scene
    parameters: dict[str, Any]
    network: str


@pytest.fixture(scope="session")
def town(images, tmp_path_factory) -> Iterator[Town]:
    """A town of twenty tiles, whose server answers twice under one address: here, and where nothing else is."""
    folder = tmp_path_factory.mktemp("town")
    with demo.generated(folder, tiles=20, epochs=EPOCHS) as job:
        shutil.copy(CONFIG, folder / "config.toml")
        open_up(folder)
        port = urlsplit(job.parameters["url"]).port
        options = ["--volume", f"{folder}:/town:ro", "--volume", f"{ROOT / 'examples'}:/code/examples:ro",
                   "--env", "PYTHONPATH=/code", "--network", "none", "--entrypoint", "python3"]  # fmt: skip
        argv = ["-m", "examples.town.server", "/town", "--port", port]
        with started(images["extract"], *argv, options=options) as name:
            yield Town(load_scene(folder), job.parameters, f"container:{name}")


def chain(scene: Scene, url: str) -> list[str]:
    """Every tool that works on files, in a folder that has the town as `town`; with and without archives.

    What HelloWorld does is among it, with HelloWorld's settings.
    """
    parts = [
        f"subset --dir {name} --filter {part}.csv dataset/{part}/{name.removesuffix('.pmtiles')}.pmtiles"
        for part in ("training", "validation")
        for name in ("images.pmtiles", "labels")
    ]
    return [
        f"cover --type bbox {scene.bbox_text} --zoom {scene.zoom} cover.csv",
        f"download --type WMS --rate 100 '{url}' cover.csv images.pmtiles",
        "tile --zoom 19 --ts 256 --cover cover.csv town/town.tif images",
        "extract --type building town/town.osm.pbf extracted.json",
        "rasterize --config town/config.toml --geojson town/buildings.geojson cover.csv labels",
        *(f"extract --type building town/town.osm.pbf extracted.{form}" for form in ("gpkg", "fgb", "parquet")),
        *(
            f"rasterize --config town/config.toml --geojson {path} cover.csv {Path(path).suffix[1:]}.pmtiles"
            for path in ("extracted.gpkg", "extracted.fgb", "extracted.parquet", "town/buildings.shp")
        ),
        "cover --dir images.pmtiles --splits 70,30 --block 2 training.csv validation.csv",
        *parts,
        "info images.pmtiles",
        "info --json town/buildings.geojson",
        *(f"info extracted.{form}" for form in ("gpkg", "fgb", "parquet")),
        "info --channels dataset/training/images.pmtiles --labels dataset/training/labels.pmtiles",
        "info --dataset dataset --config town/config.toml",
        f"train --config town/config.toml --dataset dataset --epochs {EPOCHS} --workers 0 models",
        "export --checkpoint models/best.safetensors --type pt2 model.pt2",
        "export --checkpoint models/best.safetensors --type onnx model.onnx",
        "info model.onnx",
        "predict --checkpoint model.pt2 images.pmtiles masks.pmtiles",
        "evaluate --checkpoint model.pt2 labels images.pmtiles evaluation",
        "compare --mode list --labels labels --masks masks.pmtiles list.txt",
        "compare --mode side --images images labels masks.pmtiles side",
        "vectorize --config town/config.toml --type building masks.pmtiles found.json",
        "changes --mapped town/buildings.geojson --predicted masks.pmtiles --suspects suspects.csv changes.json",
        "review --changes changes.json --mapped town/buildings.geojson --accept_worst 15 --corrected c.json",
        "deploy --model model.pt2 --checkpoint models/best.safetensors --golden images --store store --name town",
    ]


# The command line, several times in one process: what it imports is imported once.
COMMAND_LINES = """
import json, sys
from rsp.shared.cli import main
for argv in json.load(sys.stdin):
    if code := main(argv):
        sys.exit(f"{argv} ended with {code}")
"""


@pytest.fixture(scope="session")
def worked(images, town, tmp_path_factory) -> tuple[Path, Path]:
    """What the chain wrote: by the command line here, and by the images."""
    here, boxed = (open_up(tmp_path_factory.mktemp(name)) for name in ("here", "boxed"))
    for folder in (here, boxed):
        shutil.copytree(town.scene.path, folder / "town")
        about, table = pyogrio.read_arrow(folder / "town" / "buildings.geojson", columns=[])
        pyogrio.write_arrow(
            table, folder / "town" / "buildings.shp", driver="ESRI Shapefile", crs=about["crs"],
            geometry_name=about["geometry_name"] or "wkb_geometry", geometry_type="Polygon",
        )  # fmt: skip
        open_up(folder)
    commands = [shlex.split(command) for command in chain(town.scene, town.parameters["url"])]
    assert {command[0] for command in commands} == set(TOOLS)

    def work_here() -> None:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND_LINES], input=json.dumps(commands), text=True, cwd=here,
            env={**os.environ, **THREADS}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]

    def work_boxed() -> None:
        # A container for what one tool does in a row.
        for tool, row in groupby(commands, key=itemgetter(0)):
            network = town.network if tool == "download" else "none"
            options = [*LOCKED, "--network", network, "--volume", f"{boxed}:/work", "--workdir", "/work"]
            lines = [shlex.join(words) for _, *words in row]
            if len(lines) == 1:
                docker("run", "--rm", *options, images[tool], *shlex.split(lines[0]))
            else:
                script = " && ".join(f"rsp-tool {line}" for line in lines)
                docker("run", "--rm", *options, "--entrypoint", "tini", images[tool], "--", "sh", "-c", script)

    at_once(work_here, work_boxed)
    return here, boxed


def made(folder: Path) -> Path:
    """Make a folder that the images may write."""
    folder.mkdir()
    return open_up(folder)


def files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def test_every_tool_writes_what_it_writes_without_an_image(worked):
    here, boxed = (
        {name: path for name, path in files(folder).items() if not name.startswith("store/")} for folder in worked
    )
    assert set(here) == set(boxed)
    same = [name for name in here if not DIFFER.match(name)]
    assert len(same) > 60 and not [name for name in same if here[name].read_bytes() != boxed[name].read_bytes()]
    assert boxed["masks.pmtiles"].stat().st_uid == boxed["models/best.safetensors"].stat().st_uid == 10001


def test_a_training_in_an_image_has_the_same_weights(worked):
    here, boxed = (load_file(folder / "models/best.safetensors") for folder in worked)
    assert set(here) == set(boxed) and all(np.array_equal(here[name], boxed[name]) for name in here)
    cards = [json.loads((folder / "model.pt2.json").read_text()) for folder in worked]
    for card in cards:
        del card["versions"]["rsp"]
    assert cards[0] == cards[1]


# What a container asks of itself.
LOOK = """
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
assert os.getuid() == os.getgid() == 10001
assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0 and status["NoNewPrivs"].strip() == "1"
assert os.listdir("/sys/class/net") == ["lo"]
open("/tmp/file", "w")
for path in ("/file", "/home/rsp/file", "/usr/local/file", "/opt/rsp/file"):
    try:
        open(path, "w")
    except OSError:
        continue
    raise SystemExit(f"{path} can be written")
"""


def test_containers_are_locked_as_the_other_tests_have_it(images):
    for name in ("cover", "train", "serving"):
        options = [*LOCKED, "--network", "none", "--entrypoint", "python3"]
        docker("run", "--rm", *options, images[name], "-c", LOOK)


def test_every_step_finds_in_its_image_what_it_imports(images):
    """Asked in one image of each base, as those of a base hold the same."""
    wanted = imports.by_image()
    assert set(wanted) == set(TOOLS) and all(wanted.values())
    for base in ("data", "torch"):
        on = [tool for tool in TOOLS if base_of(ABOUT, tool) == base]
        names = set().union(*(wanted[tool] for tool in on))
        options = [*LOCKED, "--network", "none", "--entrypoint", "python3"]
        docker("run", "--rm", *options, images[on[0]], "-c", imports.SCRIPT, *sorted(names))


def test_images_of_a_base_differ_in_nothing_but_their_name(images):
    digests = {name: sizes.digests(images[name]) for name in (*TOOLS, "serving")}
    for name in ("data", "torch"):
        on = [tool for tool in TOOLS if base_of(ABOUT, tool) == name]
        below = images[name]
        lowest = sizes.digests(below)
        assert len(on) >= 4
        for tool in on:
            assert digests[tool] == digests[on[0]] and digests[tool][: len(lowest)] == lowest
        # What a new commit brings is the code: some megabytes of pages, scripts and Python.
        code = sizes.layers(images[on[0]])[len(sizes.layers(below)) :]
        assert 0 < sum(layer.size for layer in code) < 10e6
    torch = sizes.digests(images["torch"])
    assert digests["serving"][: len(torch)] == torch
    # That layer is the same on both bases, and in the server.
    (made,) = {digests[tool][len(sizes.digests(images[base_of(ABOUT, tool)]))] for tool in TOOLS}
    assert made in digests["serving"]


def test_images_say_what_they_are(images):
    for name in (*TOOLS, "serving"):
        (about,) = json.loads(docker("image", "inspect", images[name]).stdout)
        labels = {key.rpartition(".")[2]: value for key, value in about["Config"]["Labels"].items()}
        assert labels["title"] == f"rsp-{name}" and labels["revision"] == images.revision
        assert labels["version"].replace("+", "-") == images.tag
        assert about["Config"]["User"] == "10001" and about["Config"]["Entrypoint"][:2] == ["tini", "--"]


def test_the_sbom_of_an_image_is_valid_and_names_what_is_in_it(images):
    for name, wanted in {
        "cover": ("pkg:pypi/rasterio@", "pkg:pypi/kfp@", "pkg:deb/debian/libexpat1@"),
        "train": ("pkg:pypi/torch@2.13.0", "pkg:pypi/rsp-tools@"),
        "serving": ("pkg:pypi/torchserve@", "pkg:deb/debian/openjdk-17-jre-headless@"),
    }.items():
        text = (images.sbom / f"rsp-{name}-{images.tag}.cdx.json").read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        found = [part["purl"] for part in json.loads(text)["components"]]
        assert all(any(purl.startswith(want) for purl in found) for want in wanted), name


def written(folder: Path) -> dict[str, Path]:
    """Return the files that the steps of a run wrote, by step and name."""
    (run,) = (path for path in folder.iterdir() if path.is_dir())
    found = [path for path in run.rglob("*") if path.is_file()]
    return {f"{path.parent.name}/{path.name}": path for path in found if path.name != "executor_output.json"}


def test_hello_world_through_kfp_in_the_images(images, town, worked, tmp_path):
    store = made(tmp_path / "store")
    parameters = {**town.parameters, "threshold": 0.0, "store": str(store)}
    mounts = {town.scene.path: "ro", store: "rw"}
    code, said, outputs = run_in_images("hello_world", images, tmp_path / "run", parameters, town.network, mounts)
    assert code == 0 and "FAILURE" not in said, said[-4000:]
    wrote, here = written(outputs), worked[0]
    for name, path in {
        "cover/cover.csv": "cover.csv",
        "download/tiles.pmtiles": "images.pmtiles",
        "split/training.csv": "training.csv",
        "subset-training-images/subset.pmtiles": "dataset/training/images.pmtiles",
        "subset-validation-images/subset.pmtiles": "dataset/validation/images.pmtiles",
        "predict/masks.pmtiles": "masks.pmtiles",
        "vectorize/features.geojson": "found.json",
    }.items():
        assert wrote[name].read_bytes() == (here / path).read_bytes(), name
    with open_reader(wrote["rasterize/labels.pmtiles"]) as labels, open_reader(here / "labels") as wanted:
        assert labels.tiles() == wanted.tiles()
        for tile in wanted.tiles():
            assert np.array_equal(decode_mask(labels.read(tile)), decode_mask(wanted.read(tile)))
    assert {"compare/map.html", "compare/side_by_side.html"} <= set(wrote)
    assert len(list(store.glob("*/releases/*/release.json"))) == 1


def test_prediction_through_kfp_in_the_images(images, town, worked, tmp_path):
    """In blocks, and with its tile sets in S3, which the images reach in the network that they share."""
    here, _ = worked
    model = made(tmp_path / "model") / "model.pt2"
    for path in here.glob("model.pt2*"):
        shutil.copy(path, model.parent)
    open_up(model.parent)
    declared = compiled_parameters(compile_pipeline("prediction"))
    parameters = {name: value for name, value in town.parameters.items() if name in declared}
    parameters |= {"model": str(model), "data_root": "s3://town/data", "block_tiles": 16, "keep_days": 1}
    mounts = {town.scene.path: "ro", model.parent: "ro"}
    with s3_server(images["extract"], town.network) as env:
        code, said, outputs = run_in_images(
            "prediction", images, tmp_path / "run", parameters, town.network, mounts, env
        )
    assert code == 0 and "FAILURE" not in said, said[-4000:]
    for step in ("blocks", "download", "predict", "vectorize-block", "join", "prune"):
        assert re.search(rf"Task .*'{step}-s3'.* finished with status .*SUCCESS", said), step
    assert len(re.findall(r"Task .*'predict-s3'.* finished with status", said)) > 1
    (features,) = outputs.rglob("features.geojson")
    assert features.read_bytes() == (here / "found.json").read_bytes()


def test_champions_through_kfp_in_the_images(images, worked, tmp_path):
    """A candidate that does just as well as the champion is kept out; the next night knows."""
    folder = open_up(shutil.copytree(worked[1], tmp_path / "work"))
    parameters = {
        "store": str(folder / "store"), "name": "town", "model": str(folder / "model.onnx"),
        "images": str(folder / "images.pmtiles"), "labels": str(folder / "labels"),
        "masks": str(folder / "masks.pmtiles"), "config_uri": str(folder / "town/config.toml"),
    }  # fmt: skip
    runs = []
    for night in ("first", "second"):
        code, said, outputs = run_in_images(
            champions, images, tmp_path / night, parameters, "none", {folder: "rw"}
        )
        assert code == 0 and "FAILURE" not in said, said[-4000:]
        runs.append(written(outputs))
    first, second = runs
    verdict = json.loads(first["judge/verdict.json"].read_text())
    assert verdict["verdict"] == "keep" and verdict["gain"] == 0
    assert not [name for name in second if name.startswith("judge/")]


def test_a_step_that_fails_in_its_image_is_a_failure(images, tmp_path):
    """kfp's own runner took half of such containers for successes; run as often as shows it."""
    with ThreadPoolExecutor(3) as pool:
        runs = pool.map(
            lambda attempt: run_in_images(toys.failing, images, tmp_path / f"{attempt}", {}, "none"), range(3)
        )
        for code, said, _ in runs:
            assert code and "ValueError: this is wrong" in said and "FAILURE" in said


def test_an_image_that_is_not_there_is_not_pulled(images, tmp_path):
    nowhere = replace(images, tag="no-such-tag")
    code, said, _ = run_in_images(toys.plain, nowhere, tmp_path / "run", {"text": "abc"}, "none")
    assert code and "No such image" in said and "Pulling" not in said


def test_the_serving_image_serves_a_release_of_a_folder(images, town, worked, tmp_path):
    here, boxed = worked
    options = ["--network", "none", "--volume", f"{boxed / 'store'}:/store:ro", "--env", "RSP_STORE=/store",
               "--env", "RSP_NAMES=town", "--env", "RSP_DRAIN=0",
               "--tmpfs", "/cache:rw,mode=0700,uid=10001,gid=10001"]  # fmt: skip
    with started(images["serving"], options=options) as name:
        (about,) = json.loads(docker("image", "inspect", images["serving"]).stdout)
        kind, *probe = about["Config"]["Healthcheck"]["Test"]
        assert kind == "CMD"
        deadline = time.monotonic() + 180
        while docker("exec", name, *probe, check=False).returncode:
            running = docker("inspect", "--format", "{{.State.Running}}", name).stdout.strip()
            assert running == "true" and time.monotonic() < deadline, logs(name)
            time.sleep(1)
        # A pod beside it in the same network, with the image of `predict`.
        docker("run", "--rm", *LOCKED, "--network", f"container:{name}", "--volume", f"{boxed}:/work",
               "--workdir", "/work", images["predict"], "--endpoint", "http://127.0.0.1:8080/predictions/town",
               "images.pmtiles", "served.pmtiles")  # fmt: skip
        with open_reader(boxed / "served.pmtiles") as served, open_reader(here / "masks.pmtiles") as masks:
            assert served.tiles() == masks.tiles() == sorted(town.scene.tiles)
            for tile in masks.tiles():
                assert np.array_equal(decode_mask(served.read(tile)), decode_mask(masks.read(tile)))
        # tini hands SIGTERM on, and the server ends in order.
        docker("stop", "--time", "60", name)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "0"


def test_sizes_in_the_docs_are_about_those_of_the_images(images):
    """`RSP_WRITE_SIZES=1 make test-images` writes them; a part that grows by half wants a look."""
    if TORCH != "cpu":
        pytest.skip("the page has the sizes with torch's CPU build")
    page = ROOT / "docs" / "images.md"
    if os.environ.get("RSP_WRITE_SIZES"):
        sizes.write(page, images)
    stated, measured = sizes.read(page), sizes.measure(images)
    assert [row[:2] for row in stated] == [row[:2] for row in measured]
    for (part, text, said), (_, _, size) in zip(stated, measured, strict=True):
        assert 0.5 < (size + 1) / (said + 1) < 1.5, f"{part}: {text}"
