"""Images are built from a commit, under its version; the engine is a stand-in that notes what it was asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rsp.components.container import IMAGES, PLACEHOLDER

ROOT = Path(__file__).parents[1]
DOCKERFILES = ("components/Dockerfile", "serving/Dockerfile")

ENGINE = """#!/bin/sh
printf '%s\\n' "$@" >> "$LOG/arguments"
tar -t > "$LOG/context"
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with the build script and one tool."""
    root = tmp_path / "checkout"
    for name in ("components/images.sh", "pyproject.toml", *DOCKERFILES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "components" / "cover").mkdir()
    (root / "components" / "cover" / "component.py").write_text("")
    (root / ".gitignore").write_text("secret\n")
    for argv in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        git(root, *argv)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text(ENGINE)
    (tmp_path / "bin" / "docker").chmod(0o755)
    return root


def git(root: Path, *argv: str) -> str:
    command = ["git", "-C", root, "-c", "user.name=t", "-c", "user.email=t@example.org", *argv]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def build(checkout: Path, *names: str, **env: str) -> subprocess.CompletedProcess[str]:
    folder = checkout.parent
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "LOG": str(folder),
           "PYTHON": sys.executable, **env}  # fmt: skip
    return subprocess.run([checkout / "components/images.sh", *names], env=env, capture_output=True, text=True)


def test_images_of_a_commit(checkout):
    (checkout / "secret").write_text("what git ignores stays out")
    done = build(checkout, RSP_IMAGE_REGISTRY="r.example/x")
    assert done.returncode == 0, done.stderr
    revision = git(checkout, "rev-parse", "HEAD")
    tag = f"0.2.0.dev1-g{revision[:9]}"
    assert done.stdout.split() == [f"r.example/x/rsp-cover:{tag}", f"r.example/x/rsp-serving:{tag}"]
    arguments = (checkout.parent / "arguments").read_text().split("\n")
    assert {"TOOL=cover", f"RSP_VERSION={tag.replace('-', '+')}", f"RSP_REVISION={revision}"} <= set(arguments)
    context = (checkout.parent / "context").read_text().split()
    assert "serving/Dockerfile" in context and "secret" not in context


def test_one_image_of_a_release(checkout):
    git(checkout, "tag", "v1.2.3")
    assert build(checkout, "cover").stdout == f"{IMAGES}/rsp-cover:1.2.3\n"


@pytest.mark.parametrize("change", ["edited", "added"])
def test_a_dirty_tree_is_refused(checkout, change):
    path = checkout / ("components/cover/component.py" if change == "edited" else "components/new.py")
    path.write_text("# not committed")
    done = build(checkout)
    assert done.returncode == 1 and path.name in done.stderr and "images hold what is committed" in done.stderr
    assert not (checkout.parent / "arguments").exists()


def test_an_unknown_image(checkout):
    done = build(checkout, "nothing")
    assert done.returncode == 2 and "no image is called nothing" in done.stderr


def test_the_version_of_the_build_is_the_tag_that_is_submitted(checkout, monkeypatch):
    from rsp.components import container

    monkeypatch.delenv("RSP_IMAGE_TAG", raising=False)
    monkeypatch.setattr(container, "__file__", str(checkout / "components" / "container.py"))
    assert build(checkout, "cover").stdout.strip() == container.with_images(
        container.image("cover"), container.image_tag(), IMAGES
    )


@pytest.mark.parametrize("path", DOCKERFILES)
def test_a_build_without_a_version_ends_at_once(path):
    """The first stage tests the arguments, and nothing is installed before it: run what it runs."""
    first, _, rest = (ROOT / path).read_text().partition("\nFROM ${BASE_IMAGE}\n")
    script = re.search(r"^RUN ((?:.*\\\n)*.*)", first, re.M)[1].replace("\\\n", "").replace(" > /rsp-", " > rsp-")
    assert "pip install" not in first and "COPY --from=arguments" in rest
    given = {"TOOL": "cover", "RSP_VERSION": "1.2"}
    wanted = re.findall(r"^ARG (TOOL|RSP_VERSION)$", first, re.M)
    for name in wanted:
        env = {"PATH": os.environ["PATH"], **{key: value for key, value in given.items() if key != name}}
        done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True)
        assert done.returncode == 1 and f"--build-arg {name}=" in done.stderr


@pytest.mark.parametrize("path", DOCKERFILES)
def test_code_is_copied_after_what_it_needs_is_installed(path):
    """A change of the code must not install torch once more."""
    text = (ROOT / path).read_text()
    install = text.index('pip install --constraint constraints.txt ".[')
    assert install < text.index("COPY src ") < text.index("--no-deps --force-reinstall .")
    # setuptools takes what it finds in build/ for newer than the code: the empty package was installed once more.
    assert install < text.index("rm -r src build") and "rsp.__version__ == os.environ['RSP_VERSION']" in text
    # An argument that changes with every commit spoils the cache of all steps after it.
    final = text.rindex("FROM ${BASE_IMAGE}")
    assert text.index("ARG RSP_VERSION", final) > text.index("COPY pipelines ")
    for label in ("version", "revision", "source", "licenses"):
        assert f"org.opencontainers.image.{label}=" in text


@pytest.mark.parametrize("path", ["k8s/base/kustomization.yaml", "k8s/overlays/front/kustomization.yaml"])
def test_manifests_name_the_placeholder(path):
    text = (ROOT / path).read_text()
    assert f"newName: {IMAGES}/rsp-serving\n    newTag: {PLACEHOLDER}" in text


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl renders the manifests; not installed")
@pytest.mark.parametrize("overlay", ["gpu", "local", "front"])
def test_manifests_with_the_images_of_a_commit(overlay):
    command = [sys.executable, "-m", "rsp.components.container", ROOT / "k8s" / "overlays" / overlay]
    env = {**os.environ, "RSP_IMAGE_TAG": "1.2.3", "RSP_IMAGE_REGISTRY": "r.example/x"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "image: r.example/x/rsp-serving:1.2.3" in done.stdout and PLACEHOLDER not in done.stdout
    command[-1] = ROOT / "k8s" / "overlays" / "nowhere"
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "kubectl cannot render" in done.stderr and "Traceback" not in done.stderr
