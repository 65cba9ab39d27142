"""What is generated is fresh, and what is written points at things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import ROOT, documents

WRITTEN = sorted(
    path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("components/*/README.md")]
)


def test_generated_documents_are_fresh():
    stale = [
        str(path.relative_to(ROOT))
        for path, text in documents().items()
        if not path.exists() or path.read_text("utf-8") != text
    ]
    assert not stale, "run `make docs` and commit what it wrote"


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"https?:|#|mailto:", target):
            continue
        assert (path.parent / target.partition("#")[0]).exists(), target


def test_every_target_of_the_makefile_is_explained():
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.M)
    for target in phony.split():
        assert re.search(rf"^{target}:.*## \S", text, re.M), target
