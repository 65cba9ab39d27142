"""What is distributed: the wheel and the sdist, and the wheel at work where nothing of the checkout can help."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from rsp.serving.client import TileClient
from rsp.serving.host import free_ports
from rsp.shared.images import decode_mask, encode
from tests.tilesets import BLOCK, CONFIG, make_tileset, noise, squares
from tests.toy import make_config, make_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ROOMS = ("components", "pipelines", "serving", "shared")
# Folders and files that a project may well have where its people start `rsp`; importing one of them fails.
HOSTILE = [*ROOMS, "tests", "examples", "docs", "src", "torch", "kfp", "json.py", "numpy.py", "logging.py"]
# What the rooms hold for those who work on them.
NOT_INSTALLED = {"README.md", "Dockerfile", "bases.Dockerfile", "code.Dockerfile", "images.sh"}


def run(*argv: object, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{argv}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def git(root: Path, *argv: object) -> str:
    return run("git", "-C", root, "-c", "user.name=t", "-c", "user.email=t@example.org", *argv).stdout


def tracked() -> list[str]:
    return [name for name in git(ROOT, "ls-files", "-z").split("\0") if name and os.path.lexists(ROOT / name)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A checkout of one commit with the files as they are now: a build leaves its traces there, not here."""
    root = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name, follow_symlinks=False)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all")
    return root


def build(kind: str, source: Path, out: Path) -> Path:
    """Build the wheel or the sdist of a source tree, with setuptools as it is installed here."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    out.mkdir(parents=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith("SETUPTOOLS_SCM")}
    run(sys.executable, "-c", code, out, cwd=source, env=env)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory) -> Path:
    return build("sdist", tree, tmp_path_factory.mktemp("dist") / "sdist")


@pytest.fixture(scope="module")
def wheel(tree, sdist, tmp_path_factory) -> Path:
    # After the sdist, whose traces must not change it.
    return build("wheel", tree, tmp_path_factory.mktemp("dist") / "wheel")


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: Path) -> Message:
    (name,) = [name for name in contents(wheel) if name.endswith(".dist-info/METADATA")]
    return message_from_bytes(contents(wheel)[name])


def test_the_wheel_holds_the_package_alone_and_all_of_it(wheel):
    names = contents(wheel)
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rsp"} and len(tops) == 2
    expected = {"rsp/__init__.py", "rsp/py.typed"}
    for name in tracked():
        if name.partition("/")[0] in ROOMS and Path(name).name not in NOT_INSTALLED:
            expected.add(f"rsp/{name}")
    assert {name for name in names if name.startswith("rsp/")} == expected
    for name in ("shared/webmap/vendor/pmtiles.LICENSE", "pipelines/compiled/quality.yaml", "serving/log4j2.xml"):
        assert names[f"rsp/{name}"] == (ROOT / name).read_bytes()


def test_a_wheel_from_the_sdist_is_the_same(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
        tops = {Path(member.name).parts[1] for member in archive.getmembers() if "/" in member.name}
        assert not [member.name for member in archive.getmembers() if member.issym()]
    assert tops <= {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md",
                    "constraints.txt", "pyproject.toml", "setup.cfg", "src"}  # fmt: skip
    (source,) = (tmp_path / "unpacked").iterdir()
    again = build("wheel", source, tmp_path / "wheel")
    assert again.name == wheel.name and contents(again) == contents(wheel)


def test_the_version_is_that_of_the_commit(tree, wheel, sdist, tmp_path):
    version = metadata(wheel)["Version"]
    assert version == f"0.2.0.dev1+g{git(tree, 'rev-parse', 'HEAD')[:9]}"
    assert version in wheel.name and version in sdist.name
    # Nothing that the builds wrote is seen by git.
    assert git(tree, "status", "--porcelain") == ""


def test_a_tree_without_git_has_the_base_version(tree, tmp_path):
    """As `git archive` gives it; the images are told their version instead."""
    archive = tmp_path / "tree.tar"
    git(tree, "archive", "-o", archive, "HEAD")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "tree", filter="data")
    command = (sys.executable, "-m", "setuptools_scm")
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    assert run(*command, cwd=tmp_path / "tree", env=env).stdout.strip() == "0.2.0.dev0"
    env["SETUPTOOLS_SCM_PRETEND_VERSION_FOR_RSP_TOOLS"] = "1.2.3"
    assert run(*command, cwd=tmp_path / "tree", env=env).stdout.strip() == "1.2.3"


def test_the_licences_are_named_and_there(wheel):
    found = metadata(wheel)
    assert found["License-Expression"] == "MIT AND BSD-2-Clause AND BSD-3-Clause"
    names = contents(wheel)
    files = found.get_all("License-File")
    assert [Path(name).name for name in files] == ["LICENSE", "leaflet.LICENSE", "pmtiles.LICENSE"]
    for name in files:
        (path,) = [each for each in names if each.endswith(f".dist-info/licenses/{name}")]
        assert b"MIT License" in names[path] or b"Redistribution and use" in names[path]
    urls = dict(line.split(", ") for line in found.get_all("Project-URL"))
    assert set(urls) == {"Homepage", "Documentation", "Issues", "Changelog"}


# --- the wheel at work ------------------------------------------------------------------------------------------


class Installed:
    """An environment that has the wheel, and a hostile folder to start it in."""

    def __init__(self, root: Path, wheel: Path):
        self.bin = root / "environment" / "bin"
        venv.create(root / "environment", symlinks=True)
        self.python = self.bin / "python"
        run(sys.executable, "-m", "pip", "--python", self.python, "install", "--no-deps", "--no-index", wheel)
        # The dependencies, by a path alone: Python reads no .pth there, so the editable install is out of sight.
        packages = sysconfig.get_path("purelib", vars={"base": str(root / "environment")})
        (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.packages = Path(packages)
        self.folder = root / "hostile"
        for name in HOSTILE:
            path = self.folder / name if name.endswith(".py") else self.folder / name / "__init__.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"raise SystemExit('the hostile {name} was imported')\n")
        self.options = {
            "cwd": self.folder,
            "env": {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
                    "PATH": f"{self.bin}:{os.environ['PATH']}"},
        }  # fmt: skip

    def rsp(self, *argv: object) -> subprocess.CompletedProcess[str]:
        return run(self.bin / "rsp", *argv, **self.options)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


@pytest.fixture(scope="module")
def checkpoint(installed, tmp_path_factory) -> Path:
    """A training of two processes, over gloo."""
    root = tmp_path_factory.mktemp("training")
    make_dataset(root / "dataset")
    # Plug-ins of the current folder are found all the same.
    (installed.folder / "my_loss.py").write_text(
        "from torch import nn\n\n\ndef make(weights):\n    return nn.CrossEntropyLoss(weight=weights)\n"
    )
    config = make_config(root / "config.toml", loss='"my_loss:make"')
    torchrun = (installed.python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    options = {**installed.options, "env": {**installed.options["env"], "PYTHONSAFEPATH": "1"}}
    done = run(
        *torchrun, "-m", "rsp.shared.cli", "train", "--gpus", 0, "--config", config, "--dataset", root / "dataset",
        "--epochs", 1, root / "out", **options,
    )  # fmt: skip
    assert "2 x cpu" in done.stdout
    return root / "out" / "best.safetensors"


def test_it_is_the_wheel_that_runs(installed, wheel):
    """And the folder is hostile indeed."""
    code = "import rsp, rsp.shared.cli; print(rsp.__file__, rsp.shared.cli.__file__, rsp.__version__)"
    shown = run(installed.python, "-P", "-c", code, **installed.options).stdout.split()
    assert [Path(path).is_relative_to(installed.packages) for path in shown[:2]] == [True, True]
    assert shown[2] == metadata(wheel)["Version"]
    for name in ("shared", "json"):
        done = subprocess.run(
            [installed.python, "-c", f"import {name}"], capture_output=True, text=True, **installed.options
        )
        assert done.returncode == 1 and "the hostile" in done.stderr


def test_a_tool(installed):
    installed.rsp("cover", "--type", "bbox", "4.83,45.75,4.84,45.76", "--zoom", 15, "cover.csv")
    assert len((installed.folder / "cover.csv").read_text().split()) > 1


def test_a_local_pipeline(installed, tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    for name, draw in (("images", noise), ("labels", squares), ("masks", squares)):
        make_tileset(tmp_path / name, draw=draw)
    given = [f"{name}={tmp_path / name}" for name in ("images", "labels", "masks")]
    given.append(f"config=@{tmp_path / 'config.toml'}")
    done = installed.rsp(
        "pipeline",
        "run",
        "quality",
        "--root",
        tmp_path / "runs",
        *(word for each in given for word in ("-p", each)),
    )
    assert "compare.metrics:" in done.stdout
    log = (tmp_path / "runs" / "quality-1" / "run.log").read_text()
    assert "hostile" not in log


def test_a_training_of_two_processes(checkpoint):
    rows = json.loads((checkpoint.parent / "history.json").read_text())
    assert len(rows) == 1 and checkpoint.stat().st_size > 10_000


@pytest.mark.java
@pytest.mark.skipif(not shutil.which("java"), reason="TorchServe needs Java")
def test_torchserve_answers_a_tile(installed, checkpoint, tmp_path):
    ports = free_ports((0, 0))
    command = [
        installed.python,
        "-P",
        "-m",
        "rsp.serving.server",
        "--model",
        checkpoint,
        "--workers",
        1,
        "--drain",
        0,
    ]
    for flag, port in zip(("--port", "--metrics_port"), ports, strict=True):
        command += [flag, port]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=log, text=True, **installed.options
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith(f"serving http://127.0.0.1:{ports[0]}/"), (tmp_path / "log").read_text()
            with TileClient(f"http://127.0.0.1:{ports[0]}") as client:
                assert decode_mask(client.predict(encode(noise(BLOCK[0]), "png"))).shape == (64, 64)
        finally:
            process.terminate()
            assert process.wait(60) == 0
            process.stdout.close()
