"""What the oldest backend that we promise knows of the compiled pipelines.

A field that its messages do not have is dropped there without a word: a secret that need not be there holds up
a step for ever, a toleration is none.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rsp.pipelines.compiler import COMPILED, PIPELINES
from rsp.pipelines.connection import OLDEST

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv" / f"kfp-{OLDEST[0]}.{OLDEST[1]}"


def parse(text: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(Path(__file__).with_name("old_protos.py")), str(FOLDER)]
    return subprocess.run(program, input=text, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def oldest():
    if not (FOLDER / "kfp" / "kubernetes").is_dir():
        pytest.skip(f"the messages of KFP {OLDEST} are not there; tests/install.sh fetches them")


def test_the_versions_are_the_same():
    assert f"kfp-{OLDEST[0]}.{OLDEST[1]}" in (ROOT / "tests" / "install.sh").read_text()


@pytest.mark.parametrize("name", PIPELINES)
def test_the_oldest_backend_knows_every_field(oldest, name):
    done = parse((COMPILED / f"{name}.yaml").read_text())
    assert done.returncode == 0, done.stderr


def test_what_it_does_not_know_is_noticed(oldest):
    text = (COMPILED / "training.yaml").read_text()
    for field in ("componentInputParameter", "command", "emptyDirMounts"):
        assert f"{field}:" in text
        done = parse(text.replace(f"{field}:", f"{field}Of216:", 1))
        assert done.returncode and f"{field}Of216" in done.stderr
