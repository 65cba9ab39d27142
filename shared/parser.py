"""The argument parser of every command: exact flags, suggestions, and errors that are not buried under usage."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

__all__ = ["Parser", "did_you_mean"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` where a known word is close to `word`, else an empty string."""
    from difflib import get_close_matches

    # Compared without case: `Building` is close to `building`.
    by_folded = {each.casefold(): each for each in known}
    found = get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f" (did you mean {by_folded[found[0]]}?)" if found else ""


class Parser(argparse.ArgumentParser):
    """An argparse parser that takes flags only as they are spelt, and suggests what may have been meant."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Check the flags first: argparse would report a missing `--zoom` before the unknown `--zom`."""
        if args is not None and self._subparsers is None:
            self._check_flags(args)
        return super().parse_known_args(args, namespace)

    def _check_flags(self, args: Sequence[str]) -> None:
        for arg in args:
            if arg == "--":
                return
            flag = arg.partition("=")[0]
            # As argparse has it: what holds a space is a value.
            if flag.startswith("--") and " " not in arg and flag not in self._option_string_actions:
                self.error(f"unknown option {flag}{did_you_mean(flag, self._long_flags())}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments; what is left over is an error."""
        found, rest = self.parse_known_args(args, namespace)
        self._check_rest(rest)
        return found

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments, positionals and flags in any order; what is left over is an error."""
        found, rest = self.parse_known_intermixed_args(args, namespace)
        self._check_rest(rest)
        return found

    def _check_rest(self, rest: Sequence[str]) -> None:
        flags = [arg for arg in rest if arg.startswith("-")]
        if flags:
            self.error(f"unknown option {flags[0]}")
        if rest:
            self.error(f"unexpected argument{'s' if len(rest) > 1 else ''}: {' '.join(rest)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action,
                f"invalid choice {value!r}{did_you_mean(str(value), known)}; choose from {', '.join(known)}",
            )

    def _long_flags(self) -> list[str]:
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def error(self, message: str) -> NoReturn:
        """Print the error and where to find help, and exit with code 2."""
        program, _, command = self.prog.partition(" ")
        self.exit(2, f"{self.prog}: error: {message}\nSee `{program} help {command}`.\n")
