"""`rsp serve FOLDER` and `rsp serve --endpoint`: the front alone, as a process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import requests

from rsp.serving.server import main
from tests.serving.test_sources import card
from tests.serving.upstream import Upstream
from tests.tilesets import make_tileset


@contextmanager
def serving(*argv: object):
    """Run `rsp serve` on a free port; the URL that it prints, then SIGTERM and exit code 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rsp.shared.cli", "serve", *map(str, argv), "--port", "0", "--metrics_port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    if not found:
        raise AssertionError(process.communicate(timeout=20))
    try:
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_folders_are_shown(tmp_path):
    make_tileset(tmp_path / "tiles" / "town.pmtiles")
    with serving(tmp_path / "tiles") as url:
        assert "tiles/" in requests.get(url).text
        part = requests.get(f"{url}/tiles/town.pmtiles", headers={"Range": "bytes=0-6"})
        assert part.status_code == 206 and part.content == b"PMTiles"
        assert requests.get(f"{url}/tiles/../../etc/passwd").status_code == 404


def test_the_front_stands_before_servers_elsewhere(tmp_path):
    path = make_tileset(tmp_path / "town.pmtiles")
    with Upstream(card()) as upstream, serving("--endpoint", upstream.url, "--source", f"town={path}") as url:
        assert requests.get(f"{url}/town/roofs/15/101/201.png").status_code == 200
        assert requests.get(f"{url}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["FOLDER", "--source", "a=x"], 2, "leave out --source, or the folders"),
        (["FOLDER", "--endpoint", "http://x"], 2, "leave out --endpoint, or the folders"),
        (["FOLDER/none"], 2, "neither a folder nor a PMTiles file"),
        (["--endpoint", "http://x"], 2, "at least one --source"),
        (["--endpoint", "http://x", "--store", "s", "--source", "a=x"], 2, "not both"),
        (["--endpoint", "http://x", "--source", "a"], 2, "NAME=LOCATION"),
        (
            ["--endpoint", "http://x", "--source", "a=FOLDER", "--source", "a=FOLDER"],
            2,
            "two sources are called 'a'",
        ),
        (["--endpoint", "http://x", "--source", "a=FOLDER/none"], 1, "no tile set at"),
        (["--endpoint", "http://x", "--source", "a=FOLDER", "--cors", "maps.example"], 2, "--cors is an origin"),
        (["--endpoint", "ftp://x", "--source", "a=FOLDER"], 1, "must be a URL"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, capsys, monkeypatch, argv, code, says):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    make_tileset(tmp_path / "15").rename(tmp_path / "tiles")
    assert main([*(each.replace("FOLDER", str(tmp_path / "tiles")) for each in argv), "--port", "0"]) == code
    assert says in capsys.readouterr().err
