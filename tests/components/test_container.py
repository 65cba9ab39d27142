"""Images: a placeholder in what is committed, the version of the code in what is sent."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rsp.components import container
from rsp.components.container import checkout_version, image, image_tag, with_images
from rsp.shared.errors import PipelineError, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.delenv("RSP_IMAGE_TAG", raising=False)
    monkeypatch.delenv("RSP_IMAGE_REGISTRY", raising=False)


def git(folder: Path, *argv: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", folder, *identity, *argv], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout of one commit, from which the code seems to run."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "components").mkdir()
    (tmp_path / "components" / "container.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    monkeypatch.setattr(container, "__file__", str(tmp_path / "components" / "container.py"))
    return tmp_path


def test_the_tag_of_a_checkout_is_that_of_its_last_commit(checkout):
    first = image_tag()
    assert re.fullmatch(r"0\.2\.0\.dev1-g[0-9a-f]+", first)
    git(checkout, "commit", "-q", "--allow-empty", "-m", "two")
    assert re.fullmatch(r"0\.2\.0\.dev2-g[0-9a-f]+", image_tag()) and image_tag() != first


def test_a_tag_of_git_takes_over(checkout):
    git(checkout, "tag", "images-2031")
    git(checkout, "tag", "v1.4.0")
    assert image_tag() == "1.4.0"
    git(checkout, "commit", "-q", "--allow-empty", "-m", "two")
    assert re.fullmatch(r"1\.4\.1\.dev1-g[0-9a-f]+", image_tag())


def test_changes_that_are_not_committed_have_no_image(checkout):
    (checkout / "components" / "container.py").write_text("changed")
    with pytest.raises(PipelineError, match="not committed"):
        image_tag()
    assert image_tag("1.2.3") == "1.2.3"


def test_an_unknown_commit_has_no_image(checkout, monkeypatch):
    shutil.rmtree(checkout / ".git")
    assert checkout_version() is None
    monkeypatch.setattr(container, "__version__", "0.2.0.dev0")
    with pytest.raises(PipelineError, match=r"0\.2\.0\.dev0"):
        image_tag()
    for version in ("1.2.3", "1.2.3rc1", "1.2.4.dev7+gabc123"):
        monkeypatch.setattr(container, "__version__", version)
        assert image_tag() == version.replace("+", "-")


def test_a_checkout_without_setuptools_scm_says_what_to_do(checkout, monkeypatch):
    monkeypatch.setitem(sys.modules, "setuptools_scm", None)
    with pytest.raises(PipelineError, match="pip install setuptools-scm"):
        image_tag()


@pytest.mark.parametrize("tag", ["latest", "main", "unreleased", "1.0+g1", "a b", "-1", ""])
def test_tags_that_name_no_version_are_refused(checkout, monkeypatch, tag):
    if tag:
        with pytest.raises(UsageError, match=re.escape(repr(tag))):
            image_tag(tag)
    monkeypatch.setenv("RSP_IMAGE_TAG", tag)
    if tag:
        with pytest.raises(UsageError, match="RSP_IMAGE_TAG"):
            image_tag()
    else:
        assert image_tag().startswith("0.2.0.dev1-g")


def test_placeholders_are_replaced_and_nothing_else(monkeypatch):
    text = f"image: {image('cover')}\nimage: minio:unreleased\nprint: unreleased\n"
    assert image("cover") == "ghcr.io/rsp-tools/rsp-cover:unreleased"
    rest = "image: minio:unreleased\nprint: unreleased\n"
    assert with_images(text, "1.2") == f"image: ghcr.io/rsp-tools/rsp-cover:1.2\n{rest}"
    monkeypatch.setenv("RSP_IMAGE_REGISTRY", "registry.example:5000/team/")
    assert with_images(text, "1.2") == f"image: registry.example:5000/team/rsp-cover:1.2\n{rest}"
