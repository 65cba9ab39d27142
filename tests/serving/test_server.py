"""Starting a server where something is missing, and what the image holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from rsp.serving.host import free_ports, preflight
from rsp.serving.management import auth_headers
from rsp.serving.server import Server, make_parser, names_of
from rsp.shared.errors import ServingError

ROOT = Path(__file__).parent.parent.parent
SERVING = ROOT / "serving"


def test_without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ServingError, match="openjdk-17-jre-headless"):
        preflight()
    with pytest.raises(ServingError, match="Java 17"):
        Server(tmp_path / "store", ["rsp"])


def test_without_java_on_the_command_line(tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path), "JAVA_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "rsp.serving.server", "--model", "x"], env=environment,
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1 and "openjdk-17-jre-headless" in done.stderr and "Traceback" not in done.stderr


def test_serve_needs_something_to_serve(rsp, monkeypatch):
    for flags in ((), ("--model", "x", "--store", "y")):
        ran = rsp("serve", *flags)
        assert ran.code == 2 and "give --model, or the --store" in ran.stderr
    assert rsp("serve", "--model", "x", "--workers", 0).code == 2
    ran = rsp("serve", "--model", "x", "--name", "a", "--name", "b")
    assert ran.code == 2 and "one --name" in ran.stderr
    ran = rsp("serve", "--store", "x", "--name", "a/b")
    assert ran.code == 2 and "'a/b'" in ran.stderr
    monkeypatch.setenv("RSP_PRECISION", "float16")
    ran = rsp("serve", "--store", "x")
    assert ran.code == 2 and "RSP_PRECISION is 'float16'; expected float32 or bfloat16" in ran.stderr
    ran = rsp("serve", "--help")
    assert ran.code == 0 and "rsp serve --model model.pt2" in ran.stdout and "In Python" not in ran.stdout


def test_every_flag_has_a_variable(monkeypatch):
    """The image's entrypoint is `rsp serve` itself."""
    flags = {"store": "s", "cache": "c", "host": "::", "port": "1", "metrics_port": "2", "workers": "3",
             "timeout": "4", "drain": "5", "model": "m", "version": "v",
             "precision": "bfloat16"}  # fmt: skip
    for flag, value in flags.items():
        monkeypatch.setenv(f"RSP_{flag.upper()}", value)
    args = vars(make_parser().parse_args([]))
    assert {flag: str(args[flag]).removesuffix(".0") for flag in flags} == flags
    assert make_parser().parse_args(["--port", "9"]).port == 9  # a flag stands over its variable
    monkeypatch.setenv("RSP_PORT", "many")
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args([])
    assert caught.value.code == 2


@pytest.mark.java
@pytest.mark.skipif(not shutil.which("java"), reason="TorchServe needs Java")
def test_behind_a_front_nobody_else_is_let_in(tmp_path, monkeypatch):
    """Others on this machine could pass by the front's tokens."""
    monkeypatch.setenv("RSP_TORCHSERVE_TOKEN", "")
    (port,) = free_ports((0,))
    server = Server(tmp_path / "store", ["roofs"], port=port, behind=True)
    try:
        server._proxy.start()
        assert server.inference.startswith("http://127.0.0.1:") and not server.inference.endswith(f":{port}")
        url = f"{server.inference}/predictions/roofs"
        for headers in ({}, {"Authorization": "Bearer guessed"}):
            assert requests.post(url, b"x", headers=headers).status_code == 401
        assert requests.post(url, b"x", headers=auth_headers()).status_code == 503  # let in: no model yet
    finally:
        server.stop()


def test_names_of_the_environment(monkeypatch):
    monkeypatch.setenv("RSP_NAMES", "roofs, roads")
    assert names_of(make_parser().parse_args([])) == ["roofs", "roads"]
    assert names_of(make_parser().parse_args(["--name", "a", "--name", "b"])) == ["a", "b"]
    monkeypatch.delenv("RSP_NAMES")
    assert names_of(make_parser().parse_args([])) == ["rsp"]


def test_free_ports():
    ports = free_ports((0, 0, 0))
    assert len(set(ports)) == 3


def test_what_the_image_copies_is_there():
    for line in (SERVING / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from=" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
