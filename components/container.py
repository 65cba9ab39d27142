"""The one place that says which container images the components run in.

Components, committed pipelines and manifests name a tag that no image has. `rsp pipeline compile`, `submit` and
`schedule` put the tag of the code at hand in its place: KFP's cache and the nodes know an image by its text alone,
and would answer with old code for new if two versions shared a tag.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from rsp import __version__
from rsp.shared.errors import PipelineError, RspError, UsageError

IMAGES = "ghcr.io/rsp-tools"
PLACEHOLDER = "unreleased"

# Tags that are given to one build after the other.
MOVING = {"latest", "main", "master", "dev", "edge", "nightly", "stable"}
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_IMAGE = re.compile(rf"{re.escape(IMAGES)}/(rsp-[a-z]+):{PLACEHOLDER}\b")


def image(tool: str) -> str:
    """Return the image of a tool with the placeholder for its tag."""
    return f"{IMAGES}/rsp-{tool}:{PLACEHOLDER}"


def with_images(text: str, tag: str, registry: str | None = None) -> str:
    """Return a compiled pipeline or a manifest with real images in the place of placeholders.

    Args:
        text: YAML.
        tag: The tag of the images, from `image_tag`.
        registry: Where they are; `$RSP_IMAGE_REGISTRY` without it, else `ghcr.io/rsp-tools`.
    """
    registry = (registry or os.environ.get("RSP_IMAGE_REGISTRY") or IMAGES).rstrip("/")
    return _IMAGE.sub(lambda match: f"{registry}/{match[1]}:{tag}", text)


def image_tag(given: str | None = None) -> str:
    """Return the tag of the images that hold the code at hand.

    Args:
        given: A tag to take instead; without it `$RSP_IMAGE_TAG`, and without that the version.

    Raises:
        UsageError: the given tag is malformed, moves from build to build, or is the placeholder.
        PipelineError: no image can hold this code: it has uncommitted changes, or its version is unknown.
    """
    where = "the tag" if given else "RSP_IMAGE_TAG"
    tag = given or os.environ.get("RSP_IMAGE_TAG")
    if tag:
        if tag in MOVING:
            raise UsageError(f"{where} {tag!r} moves from build to build, so old code would answer for new; "
                             "give the tag of one version")  # fmt: skip
        if tag == PLACEHOLDER:
            raise UsageError(f"{where} {tag!r} is the placeholder of committed files; no image has it")
        if not _TAG.fullmatch(tag):
            raise UsageError(f"{where} {tag!r} is malformed: expected letters, digits, '_', '.' and '-'")
        return tag
    version = checkout_version() or __version__
    if re.search(r"\.d\d{8}$", version):
        raise PipelineError("this checkout has changes that are not committed, so no image holds its code; commit "
                            "and build the images, or name a tag with --tag or RSP_IMAGE_TAG")  # fmt: skip
    if ".dev" in version and "+g" not in version:
        raise PipelineError(f"the version {version} does not say which commit this code is of, so its images are "
                            "unknown; name their tag with --tag or RSP_IMAGE_TAG")  # fmt: skip
    return tag_of(version)


def tag_of(version: str) -> str:
    """Return the tag of a version: tags have no `+`."""
    return version.replace("+", "-")


def checkout_version() -> str | None:
    """Return the version of the checkout that this code runs from, asking git now; None for an installed package.

    An editable install keeps the version of the commit that it was installed at.

    Raises:
        PipelineError: setuptools-scm is not installed.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return None
    try:
        from setuptools_scm import get_version
    except ImportError:
        raise PipelineError("the version of a checkout needs setuptools-scm (pip install setuptools-scm); "
                            "or name the tag of the images with --tag or RSP_IMAGE_TAG") from None  # fmt: skip
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools_scm"]
    return str(get_version(root=str(root), **settings))


def manifests(folder: Path) -> str:
    """Return what kustomize makes of a folder, with the images of the code at hand.

    Raises:
        PipelineError: kubectl is missing or refuses the folder, or no image can hold this code.
    """
    tag = image_tag()
    try:
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise PipelineError("rendering manifests needs kubectl, which is not installed") from None
    except subprocess.CalledProcessError as error:
        raise PipelineError(f"kubectl cannot render {folder}: {error.stderr.strip()}") from error
    return with_images(done.stdout, tag)


if __name__ == "__main__":
    try:
        sys.stdout.write(manifests(Path(sys.argv[1])))
    except RspError as error:
        sys.exit(str(error))
