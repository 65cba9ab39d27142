"""Completion in real shells: what they offer after a beginning."""

from __future__ import annotations

import shutil
import subprocess

import pytest

BASH = """
source {script}
ask() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_rsp; echo "${{COMPREPLY[@]}}"; }}
ask rsp tr
ask rsp cover --type ""
ask rsp train --ep
ask rsp pipeline run --verb
ask rsp help vec
ask rsp completion ""
ask rsp predict --checkpoint mod
ask rsp compare --images mod
ask rsp tile mod
"""
FISH = """
source {script}
function ask; complete -C "$argv" | string replace -r "\t.*" "" | string join " "; end
ask "rsp tr"
ask "rsp cover --type "
ask "rsp train --ep"
ask "rsp pipeline run --verb"
ask "rsp help vec"
ask "rsp completion "
ask "rsp predict --checkpoint mod"
ask "rsp compare --images mod"
ask "rsp tile mod"
"""
OFFERED = [
    "train", "geojson bbox dir cover raster sql extent", "--epochs", "--verbose", "vectorize", "bash zsh fish",
    "model.pt2", "model.pt2", "model.pt2",
]  # fmt: skip


@pytest.fixture
def script(rsp, tmp_path):
    """Make the script of a shell."""

    def make(shell):
        if not shutil.which(shell):
            pytest.skip(f"{shell} is not installed")
        ran = rsp("completion", shell)
        assert ran.code == 0 and ran.stderr == ""
        path = tmp_path / f"_rsp.{shell}"
        path.write_text(ran.stdout)
        (tmp_path / "model.pt2").touch()
        return path

    return make


@pytest.mark.parametrize(("shell", "asking"), [("bash", BASH), ("fish", FISH)])
def test_what_a_shell_offers(script, shell, asking):
    path = script(shell)
    done = subprocess.run(
        [shell, "-c", asking.format(script=path)], cwd=path.parent, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert [sorted(line.split()) for line in done.stdout.splitlines()] == [sorted(o.split()) for o in OFFERED]


def test_zsh_finds_it_in_a_folder_of_functions(script):
    path = script("zsh")
    path.rename(path.parent / "_rsp")
    code = (
        f"fpath=({path.parent} $fpath); autoload -U compinit; compinit -u -D; print $_comps[rsp]; autoload +X _rsp"
    )
    done = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "_rsp\n", "")


def test_another_shell(rsp):
    ran = rsp("completion", "tcsh")
    assert ran.code == 2 and "choose from bash, zsh, fish" in ran.stderr
    ran = rsp("completion", "--help")
    for shell in ("bash", "zsh", "fish"):
        assert f"rsp completion {shell} > ~/" in ran.stdout


def test_a_tool_that_cannot_be_imported_is_left_out(rsp, monkeypatch):
    from rsp.shared import cli

    known = cli.tools()
    monkeypatch.setattr(cli, "tools", lambda: {"gone": "no.such.module", "cover": known["cover"]})
    ran = rsp("completion", "bash")
    assert ran.code == 0 and "cover" in ran.stdout and "gone" not in ran.stdout
