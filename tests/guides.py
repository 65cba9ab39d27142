"""The commands of the guides in docs/: a test runs exactly those that a reader sees.

A page declares them in its ```bash fences. The fixture `follow` runs them one after the other in an empty folder.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def page(name: str) -> str:
    """Return a page by its path in the checkout, as `docs/changes.md`; a bare name is one of docs/."""
    path = ROOT / name
    return (path if path.is_file() else ROOT / "docs" / f"{name}.md").read_text("utf-8")


def blocks(text: str, language: str = "bash", heading: str | None = None) -> list[str]:
    """Return the fences of a language, of a whole page or of what stands under a heading of the second level."""
    if heading is not None:
        found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.S | re.M)
        assert found, f"there is no heading {heading}"
        text = found[1]
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    return [block for kind, block in fences if kind == language]


def commands(text: str, heading: str | None = None) -> list[str]:
    """Return the commands of a page, a line each."""
    lines = "".join(blocks(text, "bash", heading)).replace("\\\n", " ").splitlines()
    return [re.sub(r" {2,}", " ", line) for line in lines if line.strip() and not line.startswith("#")]


def changed(line: str, changes: Iterable[tuple[str, str]]) -> str:
    """Return a command with what makes it small: a pattern and its replacement."""
    for pattern, replacement in changes:
        line = re.sub(pattern, replacement, line)
    return line


def plain(line: str) -> bool:
    """Tell whether a command asks nothing of a shell but to split it into words."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    return not re.search(r"[$`]", line) and not any(set(word) <= set("();<>|&") for word in words)


class Follower:
    """Runs commands in a folder as one shell would, but for `rsp`, which runs in this process: that is quicker.

    Args:
        folder: Where to begin. `examples` of the checkout is there, as in a checkout.
        rsp: The fixture.
        monkeypatch: The fixture: `cd` and `export` last until the test ends.
    """

    def __init__(self, folder: Path, rsp: Callable[..., Any], monkeypatch: Any) -> None:
        self._rsp, self._monkeypatch = rsp, monkeypatch
        (folder / "examples").symlink_to(ROOT / "examples")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def __call__(self, lines: Iterable[str], changes: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
        """Run commands, each of which has to end well.

        Args:
            lines: As they stand on the page.
            changes: What makes them small, each of which must fit somewhere.

        Returns:
            What each printed, stderr last, by its line on the page.
        """
        lines, changes = list(lines), list(changes)
        assert lines, "there is no command"
        for pattern, _ in changes:
            assert any(re.search(pattern, line) for line in lines), f"no command has {pattern}"
        return {line: self._run(changed(line, changes)) for line in lines}

    def _run(self, line: str) -> str:
        words = shlex.split(line)
        if words[0] == "cd":
            self._monkeypatch.chdir(words[1])
            return ""
        if words[0] == "export" and plain(line):
            for word in words[1:]:
                self._monkeypatch.setenv(*word.split("=", 1))
            return ""
        if words[0] == "rsp" and plain(line):
            ran = self._rsp(*words[1:])
            assert ran.code == 0, f"{line}\n{ran.stdout}{ran.stderr}"
            return str(ran.stdout + ran.stderr)
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr
