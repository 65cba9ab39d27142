"""The workflows: they run what runs everywhere, with no more rights than each job needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github" / "workflows"


def load(name: str) -> dict:
    workflow = yaml.safe_load((FOLDER / name).read_text())
    workflow["on"] = workflow.pop(True)  # YAML 1.1 takes `on` for a truth value
    return workflow


def steps(job: dict) -> list[dict]:
    return job.get("steps", [])


WORKFLOWS = sorted(path.name for path in FOLDER.glob("*.yml"))


def test_the_checks_run_on_every_change():
    workflow = load("ci.yml")
    assert {"push", "pull_request"} <= set(workflow["on"])
    last = {name: steps(job)[-1]["run"] for name, job in workflow["jobs"].items()}
    assert last == {"check": ".ci/run", "images": "make test-images"}
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("name", WORKFLOWS)
def test_least_rights_and_pinned_actions(name):
    workflow = load(name)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        for step in [job, *steps(job)]:
            if uses := step.get("uses"):
                assert uses.startswith("./") or re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+)*", uses), uses
                if uses.startswith("./"):
                    assert (ROOT / uses).is_file()
            # What a stranger may choose (a branch's name, a title) would be run as part of the script.
            assert "${{" not in step.get("run", "")
            if step.get("uses", "").startswith("actions/checkout@"):
                # The version counts commits; a step's code has no business with the token.
                assert step["with"] == {"fetch-depth": 0, "persist-credentials": False}


def test_a_release_follows_a_tag_and_the_checks():
    workflow = load("release.yml")
    assert set(workflow["on"]) == {"push"} and set(workflow["on"]["push"]) == {"tags"}
    jobs = workflow["jobs"]
    assert jobs["check"]["uses"] == "./.github/workflows/ci.yml"
    assert {"check", "distributions", "images"} <= set(jobs["publish"]["needs"])
    rights = {name: job["permissions"] for name, job in jobs.items() if "permissions" in job}
    assert rights == {
        "images": {"contents": "read", "packages": "write"},
        "publish": {"id-token": "write"},
        "release": {"contents": "write"},
    }
    assert "secrets." not in str(jobs["publish"])


def test_a_release_pushes_every_image_and_tells_what_is_in_them():
    jobs = load("release.yml")["jobs"]
    (build,) = (step["run"] for step in steps(jobs["images"]) if "images.sh" in step.get("run", ""))
    assert build.endswith("components/images.sh --push")  # all of them: no name is given
    assert "images" in jobs["release"]["needs"]
    used = [step for step in steps(jobs["release"]) if "download-artifact" in step.get("uses", "")]
    assert [step["with"]["name"] for step in used] == ["dist", "sbom"]
