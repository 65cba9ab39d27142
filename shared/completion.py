"""Completion scripts for shells, made from the parsers of all tools."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from rsp.shared.locations import location

INSTALL = """\
bash:  rsp completion bash > ~/.local/share/bash-completion/completions/rsp
       (make the folder first; or in ~/.bashrc: eval "$(rsp completion bash)")
zsh:   rsp completion zsh > ~/.zfunc/_rsp
       (with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc)
fish:  rsp completion fish > ~/.config/fish/completions/rsp.fish"""


def completion(root: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script of a shell.

    Args:
        root: The parser of the whole command line, with a subparser for each tool.
        shell: `bash`, `zsh` or `fish`.
    """
    import shtab

    for parser in _parsers(root):
        for action in parser._actions:
            if _takes_path(action):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(root, shell) + "\n"


def _parsers(parser: argparse.ArgumentParser) -> Iterable[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _parsers(sub)


def _takes_path(action: argparse.Action) -> bool:
    """Tell whether file names make sense: for paths, and for positionals that are plain text, as rasters."""
    if action.choices is not None or action.nargs == 0:
        return False
    positional = not action.option_strings
    return action.type in (Path, location) or (positional and not isinstance(action.type, type))
