"""The import contracts catch what they are there for, in modules that nobody has listed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINTER = Path(sys.executable).with_name("lint-imports")

# What is added to which module, and the import that the linter must name.
FORBIDDEN = {
    "rsp/shared/metrics.py": ("import torch", "rsp.shared.metrics -> torch"),
    "rsp/components/download/failures.py": ("import kfp", "rsp.components.download.failures -> kfp"),
    "rsp/shared/young.py": ("import transformers", "rsp.shared.young -> transformers"),
    "rsp/shared/tileset/young.py": (
        "from rsp.shared.learning import card", "rsp.shared.tileset.young -> rsp.shared.learning.card",
    ),
    "rsp/shared/learning/young.py": ("import kfp", "rsp.shared.learning.young -> kfp"),
    "rsp/shared/upward.py": ("import rsp.serving.client", "rsp.shared.upward -> rsp.serving.client"),
    "rsp/serving/upward.py": ("import rsp.components.artifacts", "rsp.serving.upward -> rsp.components.artifacts"),
    "rsp/components/young/tool.py": ("import kfp", "rsp.components.young.tool -> kfp"),
    "rsp/components/young/work.py": (
        "from rsp.components.cover import tool", "rsp.components.young.work -> rsp.components.cover.tool",
    ),
    "rsp/components/cover/young.py": (
        "from rsp.pipelines import steps", "rsp.components.cover.young -> rsp.pipelines.steps",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package, its links followed, and the contracts."""
    root = tmp_path_factory.mktemp("contracts")
    shutil.copytree(ROOT / "src" / "rsp", root / "rsp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def lint(root: Path) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([LINTER, "--no-cache"], cwd=root, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_g_imports_that_the_contracts_forbid_are_found_wherever_they_stand(copy):
    code, text = lint(copy)
    assert code == 0 and "0 broken" in text, text
    for name, (line, _) in FORBIDDEN.items():
        path = copy / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        with path.open("a") as file:
            file.write(f"\n{line}\n")
    (copy / "rsp/room").mkdir()
    (copy / "rsp/room/__init__.py").touch()
    code, text = lint(copy)
    assert code == 1 and " 0 kept" in text, text
    missed = [expected for _, expected in FORBIDDEN.values() if f"{expected} (l." not in text]
    assert not missed, text
    assert "- rsp.room\n" in text  # a room of which nobody has said who may import it
