"""The site of the documentation: it builds without a warning, holds every page, and asks nobody else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs.site import LINK, pages, relink
from tests.browser import Tab, chromium, serve

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    # Pages that no section has are only told of.
    assert 'not included in the "nav"' not in done.stderr, done.stderr
    return folder


class Fetched(HTMLParser):
    """What a page fetches by itself, and where its links go."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "a":
            self.links.add(found.get("href") or "")
        self.fetched |= {found[name] for name in ("src", "srcset") if found.get(name)}
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.fetched.add(found["href"])


def test_every_page_is_there_and_fetches_nothing_from_elsewhere(site):
    for page in pages().values():
        assert (site / page).with_suffix(".html").is_file(), page
    found = sorted(site.rglob("*.html"))
    assert len(found) > 45
    for path in found:
        seen = Fetched(path.read_text("utf-8"))
        assert not [each for each in seen.fetched if re.match(r"(https?:)?//", each)], path
        for link in seen.links:
            target = link.partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists() or path.name == "404.html", f"{path}: {link}"


def test_the_api_has_functions_with_their_parameters(site):
    text = (site / "api" / "functions.html").read_text("utf-8")
    assert 'id="rsp.components.vectorize.tool.vectorize"' in text
    assert "Side in tiles" in text  # of `block` of cover: its docstring
    assert 'id="rsp.shared.errors.TileError"' in (site / "api" / "configuration-and-errors.html").read_text(
        "utf-8"
    )


def test_links_of_the_checkout(site):
    text = (site / "index.html").read_text("utf-8")
    assert 'href="training.html"' in text and 'href="components/cover.html"' in text
    assert (
        'href="https://github.com/rsp-tools/rsp/blob/main/k8s/README.md"' in (site / "kubeflow.html").read_text()
    )
    assert list(site.rglob("*.py")) == []
    match = LINK.search("see [this](gone.md)")
    with pytest.raises(ValueError, match=r"docs/training.md: there is no docs/gone.md"):
        relink(match, "docs/training.md", "training.md", "https://example.org")


@pytest.mark.browser
def test_a_person_searches(site):
    with serve(site) as server, chromium() as browser:
        tab = Tab(browser.new_page())
        tab.page.goto(f"{server.url}index.html")
        tab.page.keyboard.press("/")
        tab.page.keyboard.type("shared borders", delay=20)
        first = tab.page.locator(".md-search-result__link").first
        first.wait_for(timeout=60_000)
        assert "Vector formats" in first.inner_text()
        first.click()
        tab.page.wait_for_url(re.compile(r"/vectors\.html"))
        assert tab.hosts <= {"127.0.0.1"} and not tab.errors
